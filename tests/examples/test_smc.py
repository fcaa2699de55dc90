from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from fewstep.densities.density import Density
from fewstep.densities.table import find_density
from fewstep.eval import smc
from fewstep.eval.smc import ESS, LEAPFROG, MOVES, smc_within, tempered_smc

pytest.importorskip("blackjax", reason="examples/smc.py alone needs blackjax")


def test_tempered_smc_finds_normaliser_and_modes():
    from examples.smc import describe

    density = find_density("dw2")
    found = tempered_smc(density, 1000, seed=0)
    assert found.points.shape == (1000, 2)
    assert found.log_z == pytest.approx(density.log_z, abs=0.2)
    assert found.gradients % (MOVES * LEAPFROG + 1) == 0
    assert (found.points[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert "wasserstein_1" in describe(density, 100, 0)


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
