"""Pictures of points: scatter plots of two coordinates, or histograms in one dimension."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fewstep.data.spaces.grid import INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = 2.6  # side of a panel, inches
DPI = 100
COLUMNS = 5  # panels side by side, at most
BINS = 80
MARGIN = 0.05  # free share of the range of all points, on each side
DOT, OPACITY = 2.0, 0.5
# Contours of a log density: points of the grid on each side, and depths below its maximum.
GRID, DEPTHS = 120, (-8.0, -5.0, -3.0, -1.5, -0.5)
FAINT = 0.35

# points [N, 2] -> log density [N]
LogDensity = Callable[[np.ndarray], np.ndarray]


def scatter(
    points: np.ndarray,
    columns: int = 1,
    captions: Sequence[str] = (),
    log_density: LogDensity | None = None,
) -> Image.Image:
    """A picture of points [N, D] in one panel.

    columns, captions: unused, since points have no order and no pictures of their own. log_density:
    as for `scatter_panels`.
    """
    return scatter_panels({"": points}, log_density)


def scatter_panels(
    rows: Mapping[str, np.ndarray], log_density: LogDensity | None = None
) -> Image.Image:
    """A picture with one panel for each title. All panels have the same axes.

    rows: title -> points [N, D]. log_density: drawn as contours; None, or D must be 2. Raises
    ValueError if there is no title, or a title has no points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows or not all(map(len, rows.values())):
        raise ValueError("a picture needs at least one title, and points for each title")
    columns = min(COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    size = (PANEL * columns, PANEL * lines)
    figure = Figure(size, DPI, facecolor=to_colour(PAPER), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
    ranges = axis_ranges(np.concatenate([*rows.values()]))
    for panel, (title, points) in zip(panels, rows.items(), strict=False):
        draw(panel, points, ranges)
        if log_density:
            draw_contours(panel, log_density, ranges)
        panel.set_title(title, color=to_colour(INK), fontsize="small", wrap=True)
    for panel in panels[len(rows) :]:
        panel.set_axis_off()
    figure.savefig(picture := io.BytesIO(), format="png")
    return Image.open(picture).convert("RGB")


def draw(panel: "Axes", points: np.ndarray, ranges: np.ndarray) -> None:
    """Draws points [N, D] in a panel. ranges: [D, 2], the range of each coordinate."""
    panel.set_facecolor(to_colour(PAPER))
    panel.tick_params(colors=to_colour(INK), labelsize="x-small")
    panel.spines[:].set_color(to_colour(INK))
    panel.set_xlim(ranges[0])
    if points.shape[1] == 1:
        low, high = ranges[0]
        panel.hist(points[:, 0], BINS, range=(low, high), density=True, color=to_colour(INK))
    else:
        panel.set_ylim(ranges[1])
        panel.scatter(*points[:, :2].T, s=DOT, alpha=OPACITY, color=to_colour(INK), linewidths=0)


def draw_contours(panel: "Axes", log_density: LogDensity, ranges: np.ndarray) -> None:
    """Draws contours of a log density in the plane, below its largest value in the panel."""
    lines = [np.linspace(low, high, GRID) for low, high in ranges]
    grid = np.stack(np.meshgrid(*lines), axis=-1)
    values = log_density(grid.reshape(-1, 2)).reshape(GRID, GRID)
    levels = values.max() + np.asarray(DEPTHS)
    colours = to_colour(INK)
    panel.contour(*lines, values, levels=levels, colors=[colours], linewidths=0.5, alpha=FAINT)


def axis_ranges(points: np.ndarray) -> np.ndarray:
    """The range of each coordinate of points [N, D], with a margin: [D, 2]."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * np.where(high > low, high - low, 1.0)
    return np.stack([low - margin, high + margin], axis=1)


def to_colour(rgb: tuple[int, int, int]) -> tuple[float, ...]:
    """A colour in bytes as matplotlib takes it, in [0, 1]."""
    return tuple(value / 255 for value in rgb)
