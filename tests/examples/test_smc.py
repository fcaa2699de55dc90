import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.densities.density import Density
from fewstep.densities.table import find_density
from fewstep.eval import smc
from fewstep.eval.smc import ESS, LEAPFROG, MOVES, next_temperature, smc_within, tempered_smc
from fewstep.samplers.controlled import log_prior

pytest.importorskip("blackjax", reason="examples/smc.py alone needs blackjax")


def test_tempered_smc_finds_normaliser_and_modes():
    from examples.smc import describe

    density = find_density("dw2")
    found = tempered_smc(density, 1000, seed=0)
    assert found.points.shape == (1000, 2)
    assert found.log_z == pytest.approx(density.log_z, abs=0.2)
    assert found.gradients % (MOVES * LEAPFROG + 1) == 0
    assert (found.points[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.1)
    line = describe(density, 100, 0)
    assert "accepted" in line and "wasserstein_1" in line


def normal(deviation, scale=1.0):
    """N(0, deviation^2), normalised."""
    log_density = lambda x: log_prior((x / deviation)[None])[0] - math.log(deviation)
    return Density("normal", 1, log_density, scale, log_z=0.0)


def test_the_share_is_that_of_the_particles_at_each_temperature():
    density = normal(0.02)
    step = jax.jit(partial(next_temperature, density, 0.7))
    x, temperature = jax.random.normal(jax.random.key(1), (4000, 1)), jnp.float32(0.0)
    for index in range(3):
        new = step(jax.random.key(index), x, temperature, jnp.float32(0.1))
        ratio = density.log_densities(x) - log_prior(x)
        w = np.exp((new.temperature - temperature) * ratio)
        assert w.sum() ** 2 / (w**2).sum() == pytest.approx(0.7 * len(x), rel=0.01)
        assert new.log_factor == pytest.approx(np.log(w.mean()), abs=1e-4)
        x, temperature = new.x, new.temperature


def test_particles_move_at_the_density_itself_last():
    """One temperature from the prior: resampling repeats points, and moves part them."""
    found = tempered_smc(normal(0.5), 4000, seed=0, share=0.02)
    assert found.gradients == MOVES * LEAPFROG + 1
    assert len(np.unique(found.points)) > 0.9 * 4000
    assert found.points.std() == pytest.approx(0.5, rel=0.06)


def test_points_are_in_the_density_s_own_units():
    found = tempered_smc(normal(1.5, scale=3.0), 4000, seed=0)
    assert found.points.std() == pytest.approx(1.5, rel=0.06)
    assert found.log_z == pytest.approx(0.0, abs=0.1)


def test_points_are_in_random_order(monkeypatch):
    """Copies of a particle, which hardly move here, are not neighbours."""
    monkeypatch.setattr(smc, "step_size", lambda dim: 1e-3)
    x = tempered_smc(normal(0.1), 4000, seed=0, share=0.02).points[:, 0]
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.06


def test_steps_of_hmc_follow_the_density():
    """The size at the prior is 0.15, of which a deviation of 0.01 refuses all."""
    found = tempered_smc(normal(0.01), 2000, seed=0)
    assert 0.4 < found.accepted < 0.99
    assert found.points.std() == pytest.approx(0.01, rel=0.06)
    assert found.log_z == pytest.approx(0.0, abs=0.15)


def test_a_particle_where_the_density_is_no_number_has_no_weight():
    half = lambda x: jnp.where(x[0] > 0.0, jnp.nan, log_prior(x[None])[0])
    found = tempered_smc(Density("half", 1, half), 2000, seed=0)
    assert found.log_z == pytest.approx(math.log(0.5), abs=0.1)
    assert (found.points <= 0.0).all() and found.points.std() > 0.5


def test_every_gradient_of_a_particle_is_counted():
    seen, particles = [], 10

    @jax.custom_vjp
    def log_density(x):
        return -2.0 * jnp.sum(x**2)

    def backward(x, outer):
        jax.debug.callback(lambda _: seen.append(1), x)
        return (-4.0 * outer * x,)

    log_density.defvjp(lambda x: (log_density(x), x), backward)
    found = tempered_smc(Density("narrow", 1, log_density), particles, seed=0)
    jax.effects_barrier()
    assert len(seen) == found.gradients * particles > 0


def test_smc_that_does_not_end_names_the_field(monkeypatch):
    monkeypatch.setattr(smc, "MOST_TEMPERATURES", 1)
    with pytest.raises(ValueError, match="SMC of density:dw2 has not come .* leave it out"):
        tempered_smc(find_density("dw2"), 100, seed=0)


@pytest.mark.some_days(3)
def test_smc_of_a_budget_takes_as_many_temperatures_as_fit(monkeypatch):
    density, of_temperature = find_density("dw2"), MOVES * LEAPFROG + 1
    budget = 3 * of_temperature + 1
    found, share = smc_within(budget, density, 200, seed=0)
    assert found.gradients == 3 * of_temperature and share < ESS
    again = tempered_smc(density, 200, 0, share)
    assert (again.gradients, again.log_z) == (found.gradients, found.log_z)
    monkeypatch.setattr(smc, "MOST_TEMPERATURES", 3)  # a share of more is over the budget too
    assert smc_within(1000, density, 200, seed=0)[0].gradients == 3 * of_temperature
    with pytest.raises(ValueError, match="takes at least 17 gradients a particle, not 16"):
        smc_within(16, density, 200, seed=0)


def test_a_density_of_the_user_is_run(tmp_path, capsys, monkeypatch):
    from examples import smc as example

    path = tmp_path / "mine.py"
    path.write_text(
        "import jax.numpy as jnp\ndim, scale = 1, 1.0\n"
        "def log_density(x): return -0.5 * jnp.sum(x**2)\n"
    )
    asked = SimpleNamespace(density=str(path), particles=50, seed=0, gradients=None)
    monkeypatch.setattr(example, "flags", SimpleNamespace(FLAGS=asked))
    example.main([])
    assert "log_z" in capsys.readouterr().out
