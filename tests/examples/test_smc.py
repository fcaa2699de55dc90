from types import SimpleNamespace

import pytest

from fewstep.densities.table import find_density
from fewstep.eval.smc import LEAPFROG, MOVES, tempered_smc

pytest.importorskip("blackjax", reason="examples/smc.py alone needs blackjax")


def test_tempered_smc_finds_normaliser_and_modes():
    from examples.smc import describe

    density = find_density("dw2")
    found = tempered_smc(density, 1000, seed=0)
    assert found.points.shape == (1000, 2)
    assert found.log_z == pytest.approx(density.log_z, abs=0.2)
    assert found.gradients % (MOVES * LEAPFROG) == 0
    assert (found.points[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert "wasserstein_1" in describe(density, 100, 0)


def test_a_density_of_the_user_is_run(tmp_path, capsys, monkeypatch):
    from examples import smc

    path = tmp_path / "mine.py"
    path.write_text(
        "import jax.numpy as jnp\ndim, scale = 1, 1.0\n"
        "def log_density(x): return -0.5 * jnp.sum(x**2)\n"
    )
    asked = SimpleNamespace(density=str(path), particles=50, seed=0)
    monkeypatch.setattr(smc, "flags", SimpleNamespace(FLAGS=asked))
    smc.main([])
    assert "log_z" in capsys.readouterr().out
