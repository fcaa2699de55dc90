"""The health metrics of a generator, one by one."""

import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import linear, ve
from fewstep.objectives.divergences import Point
from fewstep.objectives.health import health_metrics

ROWS, PIXELS = 16, 6


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    draw = lambda scale, shift: (scale * rng.normal(size=(ROWS, PIXELS)) + shift).astype("f")
    return {"x_g": draw(1.0, 0.5), "fake": draw(0.7, 0.2), "teacher": draw(1.3, -0.4)}


def logged_metrics(arrays, t, path):
    """The metrics, as numbers, of points with these arrays."""
    unused = dict.fromkeys(Point._fields)
    point = Point(**unused | {name: jnp.asarray(array) for name, array in arrays.items()})
    metrics = health_metrics(point, jnp.asarray(t), path)
    return {k: float(m.total / m.count) for k, m in metrics.items() if m.count > 0}


def test_every_number_is_what_it_is_called(arrays):
    x_g, fake, teacher = (a.astype(float) for a in arrays.values())
    expected = {
        "gap": ((fake - teacher) ** 2).mean(),
        "fake_error": ((x_g - fake) ** 2).mean(),
        "teacher_error": ((x_g - teacher) ** 2).mean(),
        "fake_excess": 2.0 * (fake * (fake - x_g)).mean(),
        "fake_lag": ((x_g - fake) * (fake - teacher)).sum() / ((fake - teacher) ** 2).sum(),
        "sample_mean": x_g.mean(),
        "sample_std": np.sqrt(x_g.var(axis=0).mean()),
    }
    found = logged_metrics(arrays, np.full(ROWS, 0.5, "f"), linear())
    assert {k: v for k, v in found.items() if "noise" not in k} == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 3) for value in expected.values()}) == len(expected)


@pytest.mark.parametrize("path", [linear(), ve()])
def test_the_gap_is_logged_by_noise_level(arrays, path):
    t = np.linspace(path.t_min, path.t_max, ROWS, dtype="f")
    found = logged_metrics(arrays, t, path)
    angle = np.arctan2(path.sigma(t), path.alpha(t)) / (np.pi / 2)
    gap = ((arrays["fake"] - arrays["teacher"]) ** 2).mean(axis=1)
    bins = np.minimum((8 * angle).astype(int), 7)
    for level in range(8):
        if (bins == level).any():
            assert found[f"gap_noise_{level}"] == pytest.approx(gap[bins == level].mean(), rel=1e-4)
        else:
            assert f"gap_noise_{level}" not in found
