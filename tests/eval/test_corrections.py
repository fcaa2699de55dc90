"""Rows of corrected samples, on a Gaussian proposal for another Gaussian."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.densities.density import Density
from fewstep.eval import corrections
from fewstep.eval.corrections import counted, hmc_row, resampled, weighted_row
from fewstep.objectives.flow_weights import weighted_rows
from fewstep.samplers.hmc import Adapted, gradients, hmc
from fewstep.training.cost.sampling_cost import Counts

SCALE, LOG_Z, COUNT = 2.0, 0.7, 4000


def log_density(x):
    return LOG_Z - 0.5 * jnp.sum((x - 1.0) ** 2) - 0.5 * math.log(2.0 * math.pi)


DENSITY = Density("normal", 1, log_density, SCALE, log_z=LOG_Z)
EPS = jax.random.normal(jax.random.key(0), (COUNT, 1))


def moments(points):
    return {"mean": points.mean(), "deviation": points.std()}


def test_proposals_are_resampled_by_the_weights_of_their_map():
    """x = 2 (0.8 eps), while the density is N(1, 1)."""
    rows = weighted_rows(DENSITY, lambda params, eps, *others, **how: params * eps)
    made = rows(0.8, EPS, {}, jnp.zeros(COUNT), steps=1, guidance_scale=1.0)
    assert np.std(made["x"]) == pytest.approx(0.8, rel=0.05)
    row = weighted_row(DENSITY, jax.tree.map(np.asarray, made), moments)
    assert row["mean"] == pytest.approx(1.0, abs=0.1)
    assert row["deviation"] == pytest.approx(1.0, abs=0.1)
    assert row["log_z_bias"] == pytest.approx(0.0, abs=0.1) and 0.3 < row["ess"] < 0.9


def test_a_chain_is_in_units_of_the_scale():
    row, taken = hmc_row(DENSITY, np.asarray(0.5 + 0.5 * EPS), moments)  # exact
    assert row["mean"] == pytest.approx(1.0, abs=0.1)
    assert row["deviation"] == pytest.approx(1.0, abs=0.1) and row["accepted"] > 0.9
    assert taken == gradients(10) + gradients(1)
    start, _ = hmc_row(DENSITY, np.zeros((COUNT, 1), np.float32), moments)
    assert start["deviation"] > 0.5


def test_a_chain_does_not_repeat_the_step_that_chose_its_size(monkeypatch):
    """That step was accepted, so a chain that began with it would count it twice."""
    seen = {}

    def note(log_density, x, key):
        seen.update(log_density=log_density, key=key)
        return Adapted(0.4, 1)

    monkeypatch.setattr(corrections, "adapted_size", note)
    row, _ = hmc_row(DENSITY, np.asarray(EPS), moments)
    repeated = hmc(seen["log_density"], EPS, seen["key"], corrections.HMC_STEPS, 0.4)
    again = moments(SCALE * np.asarray(repeated.x))
    assert abs(row["mean"] - again["mean"]) > 1e-4


def test_resampling_keeps_each_point_as_often_as_its_weight():
    points = np.arange(4.0)[:, None].repeat(25, axis=0)
    weights = np.repeat([0.0, 1.0, 2.0, 1.0], 25)
    counts = np.bincount(resampled(points, weights, 0)[:, 0].astype(int), minlength=4)
    np.testing.assert_array_equal(counts, [0, 25, 50, 25])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_left_out(bad):
    """Samples at 0 and 1 have weights 1 and 3, and one at 9 has none."""
    order = np.random.default_rng(0).permutation(300) % 3
    x, log_w = np.array([[0.0, 1.0, 9.0], [0.0, math.log(3.0), bad]])[:, order]
    rows = {"x": x[:, None] / SCALE, "log_w": log_w, "sign": np.ones(300)}
    row = weighted_row(DENSITY, rows, moments)
    assert row["mean"] == pytest.approx(0.75, abs=0.03)
    assert row["weightless"] == pytest.approx(1.0 / 3.0)
    assert row["log_z"] == pytest.approx(math.log(4.0 / 3.0))
    assert row["ess"] == pytest.approx(16.0 / 30.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_without_any_weight_has_no_metrics(bad):
    rows = {"x": np.zeros((5, 1)), "log_w": np.full(5, bad), "sign": np.ones(5)}
    assert weighted_row(DENSITY, rows, moments) == {"weightless": 1.0}


@pytest.mark.parametrize("weights", [[0.0, np.nan], [1.0, np.inf], [0.0, 0.0]])
def test_points_are_not_resampled_by_weights_that_say_nothing(weights):
    with pytest.raises(ValueError, match="the sum of weights is .*; it must be finite"):
        resampled(np.zeros((2, 1)), np.array(weights), 0)


def test_counts_of_a_row():
    assert counted(Counts(3, 2), 5, 7) == {"evaluations": 15.0, "gradients": 17.0}
