"""Adaptive tempered SMC on a density, by itself (eval/smc.py).

    python -m examples.smc --density=gmm9

The last line has the numbers of an evaluation (docs/densities.md), and how many gradients one
particle took. `--gradients=128` keeps to a budget of them, such as the steps of a diffusion that
you compare with. Needs blackjax. `--config.evaluate.rows="('smc',)"` has the same row beside a run.
"""

import time

import numpy as np
from absl import app, flags

from fewstep.densities.density import Density
from fewstep.densities.table import find_density
from fewstep.densities.user_code import permit
from fewstep.eval.points import point_metrics
from fewstep.eval.smc import ESS, check_installed, smc_within, tempered_smc

SEED = 0


def describe(density: Density, count: int, seed: int, budget: int | None = None) -> str:
    """A line with what one run reaches; seconds are those of a search too, with a budget."""
    started = time.time()
    if budget is None:
        found, share = tempered_smc(density, count, seed), ESS
    else:
        found, share = smc_within(budget, density, count, seed)
    numbers = {
        "log_z": found.log_z,
        "gradients": float(found.gradients),
        "accepted": found.accepted,
        "share": share,
        "seconds": time.time() - started,
    }
    if density.sample:
        exact = density.sample(np.random.default_rng(seed + 1), count)
        numbers |= point_metrics(found.points, exact, density)
    return f"{density.name}: " + ", ".join(f"{name} {x:.4g}" for name, x in numbers.items())


def main(_: list[str]) -> None:
    """Runs SMC on --density."""
    asked = flags.FLAGS
    check_installed("examples.smc")
    permit(asked.density)
    print(describe(find_density(asked.density), asked.particles, asked.seed, asked.gradients))


if __name__ == "__main__":
    flags.DEFINE_string("density", "gmm9", "Name of the density, or a file of yours.")
    flags.DEFINE_integer("particles", 2000, "Particles.")
    flags.DEFINE_integer("gradients", None, "Most gradients a particle.", lower_bound=1)
    flags.DEFINE_integer("seed", SEED, "Seed.")
    app.run(main)
