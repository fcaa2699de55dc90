"""A bar chart of a GPU's measurements."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from fewstep.files import replace_file


def plot(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the images per second of every row that has them, labelled with the MFU."""
    measured = {name: row for name, row in rows.items() if "images_per_second" in row}
    if not measured:
        return
    figure, axes = pyplot.subplots(figsize=(8.0, 1.0 + 0.28 * len(measured)), layout="constrained")
    speeds = [row["images_per_second"] for row in measured.values()]
    colors = ["tab:orange" if name.startswith("torch") else "tab:blue" for name in measured]
    bars = axes.barh(list(measured), speeds, color=colors)
    shares = [f"{row['mfu']:.0%}" if "mfu" in row else "" for row in measured.values()]
    axes.bar_label(
        bars, [f"{speed:,.0f}  {share}" for speed, share in zip(speeds, shares, strict=True)]
    )
    axes.set_xscale("log")
    axes.set_xlabel("images per second; share of the measured matrix product")
    axes.invert_yaxis()
    axes.margins(x=0.25)
    figure.savefig(png := io.BytesIO(), format="png", dpi=120)
    replace_file(path, png.getvalue())
    pyplot.close(figure)
