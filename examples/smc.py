"""Adaptive tempered SMC on a density, by itself (eval/smc.py).

    python -m examples.smc --density=gmm9

The last line has the numbers of an evaluation (docs/densities.md), and how many gradients one
particle took. Needs blackjax. `--config.evaluate.rows="('smc',)"` has the same row beside a run.
"""

import time

import numpy as np
from absl import app, flags

from fewstep.densities.density import Density
from fewstep.densities.table import find_density
from fewstep.densities.user_code import permit
from fewstep.eval.points import point_metrics
from fewstep.eval.smc import check_installed, tempered_smc

SEED = 0


def describe(density: Density, count: int, seed: int) -> str:
    """A line with what one run reaches."""
    started = time.time()
    found = tempered_smc(density, count, seed)
    seconds = time.time() - started
    numbers = {"log_z": found.log_z, "gradients": float(found.gradients), "seconds": seconds}
    if density.sample:
        exact = density.sample(np.random.default_rng(seed + 1), count)
        numbers |= point_metrics(found.points, exact, density)
    return f"{density.name}: " + ", ".join(f"{name} {x:.4g}" for name, x in numbers.items())


def main(_: list[str]) -> None:
    """Runs SMC on --density."""
    asked = flags.FLAGS
    check_installed("examples.smc")
    permit(asked.density)
    print(describe(find_density(asked.density), asked.particles, asked.seed))


if __name__ == "__main__":
    flags.DEFINE_string("density", "gmm9", "Name of the density, or a file of yours.")
    flags.DEFINE_integer("particles", 2000, "Particles.")
    flags.DEFINE_integer("seed", SEED, "Seed.")
    app.run(main)
