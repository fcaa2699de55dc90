import io

import numpy as np
import pytest
from PIL import Image

from fewstep.eval.report.curves import (
    PALETTE,
    Line,
    Plot,
    legend_size,
    look,
    looks,
    noise_plot,
    plot_png,
    steps_plot,
    training_plot,
)
from fewstep.eval.report.runs import group_by_method, load_runs
from tests.eval.evaluated import evaluated_run

ROWS = [{"step": 1, "loss": 2.0}, {"step": 2, "evaluate/frechet_1": 9.0}, {"step": 3, "loss": 1.0}]
PLAYERS = [{"step": s, "generator/loss": 5.0, "fake/loss": 6.0, "loss_scale": 7.0} for s in (1, 2)]


def groups(tmp_path, *runs):
    """Groups of evaluated runs, each given by its fields."""
    folders = [
        evaluated_run(tmp_path / str(place), **{"steps": (1,), **fields})
        for place, fields in enumerate(runs)
    ]
    return group_by_method(load_runs(folders))


def points(plot):
    """Points by label, of every line of that label."""
    found = {}
    for line in plot.lines:
        found.setdefault(line.label, []).append(list(line.points))
    return found


def test_distances_are_means_of_the_seeds_with_their_range(tmp_path):
    fields = {"method": "cd", "fall": 1.0, "steps": (1, 2)}
    plot = steps_plot(
        groups(
            tmp_path,
            {**fields, "seed": 0, "frechet": 0.5},
            {**fields, "seed": 1, "frechet": 1.0},
            {**fields, "method": "ect", "frechet": 4.0},
        ),
        "fd-classifier-1k",
    )
    cd, ect = plot.lines
    assert (cd.label, ect.label) == ("cd", "ect")
    assert cd.points == [(1, 0.75), (2, 0.375)] and list(cd.band) == [(0.5, 1.0), (0.25, 0.5)]
    assert ect.points == [(1, 4.0), (2, 2.0)] and not ect.band
    assert plot.level == (0.34, "real images")
    assert plot.by_steps and plot.y_label == "fd-classifier-1k"


def test_without_metrics_there_are_no_distances(tmp_path):
    assert steps_plot(groups(tmp_path, {"measurement": {}}), "samples") is None


def test_losses_are_one_line_per_run_and_player(tmp_path):
    found = groups(
        tmp_path,
        {"method": "a", "seed": 0, "rows": ROWS},
        {"method": "a", "seed": 1, "rows": ROWS},
        {"method": "b", "rows": PLAYERS},
        {"method": "c", "rows": []},
    )
    plot = training_plot(found, "loss")
    assert points(plot) == {
        "a": [[(1, 2.0), (3, 1.0)], [(1, 2.0), (3, 1.0)]],
        "b, generator": [[(1, 5.0), (2, 5.0)]],
        "b, fake": [[(1, 6.0), (2, 6.0)]],
    }
    a, again, generator, fake = (line.look for line in plot.lines)
    assert a == again != generator
    assert generator.colour == fake.colour and generator.dash != fake.dash
    assert training_plot(found, "frechet_1") is None  # one point is no curve
    assert training_plot(found, "gap") is None


def test_distances_are_drawn_against_the_cost_of_training_where_it_is_known(tmp_path):
    rows = [{"step": step, "evaluate/frechet_4": 90.0 / step} for step in (1000, 3000)]
    found = groups(tmp_path, {"method": "a", "rows": rows}, {"method": "b", "rows": rows})
    assert training_plot(found, "frechet_4", by_cost=True) is None
    costly = {"network_evaluations": 6e6}  # after 3,000 steps
    found["b"] = [run._replace(budget={**run.budget, **costly}) for run in found["b"]]
    plot = training_plot(found, "frechet_4", by_cost=True)
    assert points(plot) == {"b": [[(2e6, 0.09), (6e6, 0.03)]]}
    assert plot.x_label == "network evaluations in training"
    assert plot.lines[0].look == training_plot(found, "frechet_4").lines[1].look


def test_the_last_loss_of_each_noise_level_is_the_mean_of_the_seeds(tmp_path):
    rows = [
        {"step": 1, "loss": 1.0, "loss_noise_0": 9.0, "loss_noise_3": 4.0, "loss_noise_7": 1.0},
        {"step": 2, "loss": 1.0, "loss_noise_0": 8.0, "loss_noise_7": 2.0},
        {"step": 2, "evaluate/frechet_1": 9.0},
    ]
    doubled = [{k: v if k == "step" else 2 * v for k, v in row.items()} for row in rows]
    player = [{"step": 1, "fake/loss_noise_1": 5.0, "fake/loss_noise_2": 6.0, "generator/loss": 1}]
    found = groups(
        tmp_path,
        {"method": "a", "seed": 0, "rows": rows},
        {"method": "a", "seed": 1, "rows": doubled},
        {"method": "b", "rows": player},
        {"method": "c", "rows": ROWS},
    )
    assert points(noise_plot(found)) == {
        "a": [[(1, 12.0), (4, 6.0), (8, 3.0)]],
        "b": [[(2, 5.0), (3, 6.0)]],
    }
    assert noise_plot({"c": found["c"]}) is None


def test_looks_differ_beyond_the_palette():
    found = looks([f"method {i}" for i in range(28)])
    assert len(set(found.values())) == 28
    assert look(0).colour == look(len(PALETTE)).colour


def draw_pixels(lines, **fields):
    """The pixels of a plot, float [H, W, 4], on which nothing is drawn where alpha is 0."""
    plot = Plot(lines, "step", "loss", **fields)
    png = plot_png(plot, "#222222")
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), float)


def find_colour(pixels, colour):
    """Which pixels have a colour, and are opaque."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (abs(pixels[..., :3] - rgb).max(axis=-1) < 3) & (pixels[..., 3] > 250)


def test_a_plot_has_the_colours_of_its_lines_and_a_clear_ground():
    lines = [Line(name, look(i), [(1, 1.0 + i), (9, 2.0 + i)]) for i, name in enumerate("ab")]
    pixels = draw_pixels(lines, level=(1.5, "real images"))
    assert (
        find_colour(pixels, PALETTE[0]).sum() > 500 and find_colour(pixels, PALETTE[1]).sum() > 500
    )
    assert not find_colour(pixels, PALETTE[2]).any()
    assert pixels[0, 0, 3] == 0


@pytest.mark.parametrize("count", [2, 9])
def test_long_labels_stay_inside_the_picture(count):
    lines = [Line(f"{'long_name_' * 9}{i}", look(i), [(1, 1.0), (9, 2.0)]) for i in range(count)]
    pixels = draw_pixels(lines, by_steps=True)
    ink = pixels[..., 3] > 0
    assert not (ink[:, :4].any() or ink[:, -4:].any() or ink[-4:].any())
    assert legend_size([line.label for line in lines]) == (1, 2 * count)


def test_any_sign_in_a_label_is_drawn():
    draw_pixels([Line(r"$\x$ <c> _^{", look(0), [(1, -1.0), (2, 3.0)])])


@pytest.mark.parametrize("values", [(0.41, 0.43), (0.3, 20.0), (1e-5, 1e3), (0.0, 1.0), (1.0, 1.0)])
def test_every_range_of_values_is_drawn(values):
    points = list(zip((1, 128), values, strict=True))
    draw_pixels([Line("a", look(0), points)], by_steps=True)
    draw_pixels([Line("a", look(0), points)])
