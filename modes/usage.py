"""The text of --help: examples, one line for each mode, and the flags of one mode."""

import textwrap
from collections.abc import Mapping

from fewstep.modes import MODES

EXAMPLES = """\
python main.py --config=configs/digits.py:shortcut --workdir=runs/digits
python main.py --mode=sample --workdir=runs/digits --steps=1 --seeds=0-63 --out=samples
python main.py --mode=evaluate --workdir=runs/digits --steps=1,4 --num_samples=500
python main.py --mode=report --workdirs=runs/digits,runs/compare --out=report.html"""
WIDTH = 96


def usage(mode: str, joining: Mapping[str, str], common: Mapping[str, str]) -> str:
    """Return the text of --help for a mode.

    joining: flag -> help of the flags for several processes. common: the same for the flags of all
    modes.
    """
    chosen = MODES[mode]
    flags = {name: flag.help for name, flag in chosen.flags.items()}
    if chosen.replaces:
        fields = ", ".join(chosen.replaces)
        flags["config.FIELD"] = (
            f"Replaces one of these fields of the run, without --config: {fields}."
        )
    elif "config" in flags:
        flags["config.FIELD"] = "Any field of the config, such as --config.batch_size=64."
    flags |= (joining if chosen.together else {}) | common
    modes = {name: each.summary for name, each in MODES.items()}
    return "\n\n".join(
        (
            "Train, evaluate and sample few-step generative models.",
            textwrap.indent(EXAMPLES, "    "),
            "Modes (--mode=MODE; default train). --mode=MODE --help shows the flags of a mode:",
            format_columns(modes),
            f"Flags of --mode={mode}:",
            format_columns({f"--{name}": text for name, text in flags.items()}),
        )
    )


def format_columns(rows: Mapping[str, str]) -> str:
    """Format names and texts in two columns."""
    width = max(map(len, rows))
    return "\n".join(
        textwrap.fill(
            f"{name:{width}}  {text}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
        for name, text in rows.items()
    )
