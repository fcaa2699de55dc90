"""The results of one evaluation as text."""

from collections.abc import Sequence

from fewstep.eval.report.results import ROWS, Result


def summary(results: Sequence[Result]) -> str:
    """The results of one evaluation as a table in plain text."""
    first = results[0]
    sampling, measured = first["protocol"]["sampling"], first["protocol"]["measurement"]
    lines = [
        f"{sampling['method']} on {first['data']}, step {sampling['step']}, "
        f"{sampling['network']}, guidance {sampling['guidance_scale']:g}"
    ]
    if first["metrics"]:
        lines[0] += f"; {first['metric']} against {measured['reference']}" if measured else ""
        names = [*dict.fromkeys(name for result in results for name in result["metrics"])]
        lines.append("  ".join([f"{'steps':>7}", *(f"{name:>7}" for name in names)]))
        for result in results:
            values = [value_text(result["metrics"].get(name), len(name)) for name in names]
            lines.append("  ".join([f"{result['protocol']['sampling']['steps']:>7}", *values]))
    real = ", ".join(f"{name} {value:.3f}" for name, value in first["real"].items())
    lines += [f"  real images instead of samples: {real}"] if real else []
    prior = ", ".join(f"{name} {value:.3f}" for name, value in first.get("prior", {}).items())
    lines += [f"  the prior instead of samples: {prior}"] if prior else []
    for result in results:
        for name, row in result.get("rows", {}).items():
            found = ", ".join(f"{key} {value:.3f}" for key, value in row.items())
            lines.append(
                f"  {ROWS[name]}, {result['protocol']['sampling']['steps']} steps: {found}"
            )
    lines += [f"  skipped {first['skipped']}"] if "skipped" in first else []
    warnings = dict.fromkeys(warning for result in results for warning in result["warnings"])
    return "\n".join(lines + [f"  warning: {warning}" for warning in warnings])


def value_text(value: float | None, width: int) -> str:
    """A value, or "-" where a result has none, as wide as its heading."""
    return f"{'-' if value is None else f'{value:.3f}':>{max(7, width)}}"
