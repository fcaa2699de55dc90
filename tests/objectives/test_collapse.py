"""Why a narrow network with the skip weights of EDM collapses, and what says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from fewstep.densities.table import find_density
from fewstep.eval.points import collapse_warnings, point_metrics
from fewstep.models.mlp import mlp
from fewstep.training.densities import check_density_network

DIMENSION, WIDTH, COUNT = 20, 8, 600
# Jutras-Dube et al. 2024 take EDM's weights with the time 1 of the prior as noise level.
SIGMA_DATA = 0.5
SKIP = SIGMA_DATA**2 / (1.0 + SIGMA_DATA**2)
OUT = SIGMA_DATA / np.sqrt(1.0 + SIGMA_DATA**2)


@pytest.fixture(scope="module")
def narrow():
    """(network, random parameters) of a perceptron that is narrower than its points."""
    network = mlp((DIMENSION,), width=WIDTH, depth=1)
    params = jax.jit(network.init)(jax.random.key(0))
    random = lambda leaf: leaf + jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return network, jax.tree.map(random, params)


def test_a_narrow_network_leaves_only_the_skip_in_most_directions(narrow):
    """Outside the columns of its last layer f = c_skip x + a constant, for any parameters."""
    network, params = narrow
    x, one = jax.random.normal(jax.random.key(1), (COUNT, DIMENSION)), jnp.ones(COUNT)
    output = network.apply(params, x, one, one, {"label": jnp.full(COUNT, -1)})
    f = np.asarray(SKIP * x + OUT * output, np.float64)
    columns, *_ = np.linalg.svd(np.asarray(params["output"]["kernel"]).T)
    outside = columns[:, WIDTH:]
    rest = (f - SKIP * np.asarray(x)) @ outside
    assert outside.shape[1] == DIMENSION - WIDTH
    np.testing.assert_allclose(rest, np.broadcast_to(rest[0], rest.shape), atol=5e-3)
    assert (f @ columns[:, :WIDTH]).std() > 1.5 * SKIP


def best_samples(skip, out, rng):
    """Samples of the best map skip x + out A h(x) of the prior to itself, with 8 rows of h.

    By Eckart and Young it is the identity in 8 directions, and the skip alone in the others.
    """
    x = rng.standard_normal((COUNT, DIMENSION))
    basis, _ = np.linalg.qr(rng.standard_normal((DIMENSION, WIDTH)))
    return skip * x + (1.0 - skip) * (x @ basis) @ basis.T if out else skip * x


@pytest.mark.parametrize(("skip", "out", "collapses"), [(SKIP, OUT, True), (1.0, 1.0, False)])
def test_the_collapse_is_below_the_floor_and_labelled(skip, out, collapses):
    """One of the 20 coordinates is a well; the others are the prior, as in dw100 of the paper.

    With f = x + t F, F = 0 is the identity, so no width is needed.
    """
    density, rng = find_density(f"wells-{DIMENSION}-1-2"), np.random.default_rng(0)
    real, other = (density.sample(rng, COUNT) for _ in range(2))
    made = best_samples(skip, out, rng)
    made[:, 0] = density.sample(rng, COUNT)[:, 0]
    metrics, floor = (point_metrics(points, real, density) for points in (made, other))
    assert (metrics["wasserstein_1"] < 0.95 * floor["wasserstein_1"]) == collapses
    warnings = collapse_warnings(metrics, floor)
    assert bool(warnings) == collapses
    if collapses:
        assert "the samples have collapsed, which is no win" in warnings[0]
        assert metrics["deviation_ratio"] < 0.9
    else:
        assert metrics["deviation_ratio"] == pytest.approx(1.0, abs=0.12)


def test_such_a_network_is_refused_before_training(narrow):
    network, _ = narrow
    density = find_density(f"wells-{DIMENSION}-1-2")
    fields = {"model": {"width": WIDTH}, "data": {"name": "density:wells-20-1-2"}, "debug": False}
    with pytest.raises(ValueError, match="model.width=8 is below the 20 dimensions.*collapse"):
        check_density_network(ConfigDict(fields), network, density)
