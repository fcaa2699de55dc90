"""Pictures of points of more than two coordinates: marginals, over those of exact points."""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from fewstep.data.spaces.grid import INK, PAPER
from fewstep.data.spaces.scatter import DPI, FAINT, PANEL, to_colour

# A picture has the first coordinates and the last ones: densities differ in them, if at all.
FIRST, LAST = 3, 2
BINS = 60
# Share of all points on each side that a panel may leave out, so that a far point hides no shape.
TAIL = 0.002
HEIGHT = 0.6  # of a panel, as a share of its width

# () -> exact points [M, D]
Truth = Callable[[], np.ndarray]


def marginals(
    points: np.ndarray,
    columns: int = 1,
    captions: Sequence[str] = (),
    truth: Truth | None = None,
) -> Image.Image:
    """A picture of points [N, D]: one panel for each coordinate that is shown.

    columns, captions: unused, as in `scatter`. truth: as for `marginal_panels`.
    """
    return marginal_panels({"": points}, truth)


def marginal_panels(rows: Mapping[str, np.ndarray], truth: Truth | None = None) -> Image.Image:
    """A picture with a line of panels for each title: histograms of coordinates, alike in range.

    rows: title -> points [N, D]. truth: exact points, filled behind each histogram; None if there
    are none. Raises ValueError if there is no title, or a title has no points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows or not all(map(len, rows.values())):
        raise ValueError("a picture needs at least one title, and points for each title")
    exact = truth() if truth else None
    everything = np.concatenate([*rows.values(), *([] if exact is None else [exact])])
    shown = coordinates(everything.shape[1])
    size = (PANEL * len(shown), HEIGHT * PANEL * len(rows))
    figure = Figure(size, DPI, facecolor=to_colour(PAPER), layout="constrained")
    FigureCanvasAgg(figure)
    lines = figure.subplots(len(rows), len(shown), squeeze=False, sharex="col", sharey="col")
    for line, (title, points) in zip(lines, rows.items(), strict=True):
        for panel, i in zip(line, shown, strict=True):
            bins = edges(everything[:, i])
            ink = to_colour(INK)
            if exact is not None:
                panel.hist(exact[:, i], bins, density=True, color=ink, alpha=FAINT)
            panel.hist(points[:, i], bins, density=True, color=ink, histtype="step")
            panel.set_facecolor(to_colour(PAPER))
            panel.tick_params(colors=ink, labelsize="x-small")
            panel.set_yticks([])
            panel.spines[:].set_color(ink)
            panel.set_title(f"{title} x{i + 1}".strip(), color=ink, fontsize="small", wrap=True)
    figure.savefig(picture := io.BytesIO(), format="png")
    return Image.open(picture).convert("RGB")


def coordinates(dimension: int) -> list[int]:
    """The coordinates that are shown: all, or the first and the last."""
    if dimension <= FIRST + LAST:
        return [*range(dimension)]
    return [*range(FIRST), *range(dimension - LAST, dimension)]


def edges(values: np.ndarray) -> np.ndarray:
    """Edges of the bins of one coordinate, which leave the tails out: [BINS + 1]."""
    low, high = np.quantile(values, (TAIL, 1.0 - TAIL))
    middle, half = 0.5 * (low + high), 0.5 * max(high - low, 1e-6)
    return np.linspace(middle - 1.05 * half, middle + 1.05 * half, BINS + 1)
