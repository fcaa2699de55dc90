"""Counts and durations as short text."""


def short_number(count: float) -> str:
    """A large number as short text: 1200 as 1,200, 1234567 as 1.23 M."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if float(f"{count:.3g}") >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:,.0f}"


def duration_text(seconds: float) -> str:
    """A duration as text: 45 s, 12 min 5 s, 3 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
