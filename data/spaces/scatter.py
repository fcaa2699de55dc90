"""Pictures of points: their first two coordinates, or a histogram in one dimension."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fewstep.data.spaces.grid import INK, PAPER

PANEL = 2.6  # inches of a side
DPI = 100
COLUMNS = 5  # panels beside each other
BINS = 80
MARGIN = 0.05  # of the range of all points, left free on each side
DOT, OPACITY = 2.0, 0.5


def scatter(points: np.ndarray, columns: int = 1) -> Image.Image:
    """One panel of points [N, D]. columns: not used; points have no order to be shown in."""
    return scatter_panels({"": points})


def scatter_panels(rows: Mapping[str, np.ndarray]) -> Image.Image:
    """One panel for each title, of points [N, D]; all panels have the same axes.

    Raises ValueError if there is no row, or one has no points.
    """
    if not rows or not all(map(len, rows.values())):
        raise ValueError("a picture needs at least one title, and points for each")
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    size = (PANEL * columns, PANEL * lines)
    figure = Figure(size, DPI, facecolor=to_colour(PAPER), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
    windows = axis_ranges(np.concatenate([*rows.values()]))
    for panel, (title, points) in zip(panels, rows.items(), strict=False):
        draw(panel, points, windows)
        panel.set_title(title, color=to_colour(INK), fontsize="small", wrap=True)
    for panel in panels[len(rows) :]:
        panel.set_axis_off()
    figure.savefig(picture := io.BytesIO(), format="png")
    return Image.open(picture).convert("RGB")


def draw(panel: Axes, points: np.ndarray, windows: np.ndarray) -> None:
    """Points [N, D] in a panel. windows: [D, 2], the range of each coordinate."""
    panel.set_facecolor(to_colour(PAPER))
    panel.tick_params(colors=to_colour(INK), labelsize="x-small")
    panel.spines[:].set_color(to_colour(INK))
    panel.set_xlim(windows[0])
    if points.shape[1] == 1:
        low, high = windows[0]
        panel.hist(points[:, 0], BINS, range=(low, high), density=True, color=to_colour(INK))
    else:
        panel.set_ylim(windows[1])
        panel.scatter(*points[:, :2].T, s=DOT, alpha=OPACITY, color=to_colour(INK), linewidths=0)


def axis_ranges(points: np.ndarray) -> np.ndarray:
    """The range of each coordinate of points [N, D], with a margin: [D, 2]."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * np.where(high > low, high - low, 1.0)
    return np.stack([low - margin, high + margin], axis=1)


def to_colour(rgb: tuple[int, int, int]) -> tuple[float, ...]:
    """A colour as matplotlib takes it."""
    return tuple(value / 255 for value in rgb)
