"""Orders of convergence of all deterministic solvers, with an exact network, in one picture.

    python -m examples.solvers --out=docs/samplers.png

The network is the denoiser of eight wide Gaussians in closed form, a flow without sharp turns. The
picture has the error of each solver at the end of the same trajectories, by its number of steps,
and the example prints the order that the last two numbers show. Steps are graded, since the first
of equal ones would bound the order of multistep solvers. Solvers that draw noise follow no
trajectory.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from examples import picture
from examples.mixtures import ring
from fewstep.diffusion.path import linear
from fewstep.samplers import SOLVERS
from fewstep.samplers.ode import Solver

STEPS = (8, 16, 32, 64, 128, 256)
REFERENCE = 4096  # steps of the most exact solver
LEVELS = (0.1, 10.0)  # noise levels sigma / alpha at the end and at the start
ROWS = 64
DEVIATION = 0.5  # of each Gaussian


def solvers() -> dict[str, Solver]:
    """The deterministic solvers, by title, each with every order that it has."""
    made = {name: SOLVERS[name]() for name in ("euler", "ddim", "heun", "genie", "dpm_solver_2m")}
    made["dpm_solver_3m"] = SOLVERS["dpm_solver_3m"]()
    made |= {f"deis, order={q}": SOLVERS["deis"](order=q) for q in (2, 3)}
    made |= {f"unipc, order={p}": SOLVERS["unipc"](order=p) for p in (1, 2, 3)}
    return made | {"pndm": SOLVERS["pndm"]()}


def graded_times(steps: int) -> Array:
    """Times whose first steps are of size 1 / N^2: [N + 1].

    The first steps of a multistep solver have lower orders, which small steps hide.
    """
    start, end = (linear().time_at(jnp.float64(rho)) for rho in LEVELS[::-1])
    return start + (end - start) * jnp.linspace(0.0, 1.0, steps + 1) ** 2


def errors() -> dict[str, list[float]]:
    """The root mean square error of each solver for each of STEPS, by title."""
    path, mixture = linear(), ring()._replace(deviation=DEVIATION)
    t = jnp.full((ROWS,), graded_times(1)[0])
    key_x, key_eps = jax.random.split(jax.random.key(0))
    x_0 = mixture.sample(key_x, ROWS).astype(jnp.float64)
    x = path.interpolate(x_0, jax.random.normal(key_eps, x_0.shape, jnp.float64), t)

    @partial(jax.jit, static_argnums=0)
    def run(solver: Solver, times: Array) -> Array:
        return solver(partial(mixture.endpoints, path), path, x, times, None)

    made = solvers()
    exact = run(made["unipc, order=3"], graded_times(REFERENCE))
    distance = lambda end: float(jnp.sqrt(jnp.mean((end - exact) ** 2)))
    return {
        name: [distance(run(solver, graded_times(steps))) for steps in STEPS]
        for name, solver in made.items()
    }


def write_picture(path: Path, found: Mapping[str, list[float]]) -> None:
    """Draw the errors by the number of steps, on logarithmic axes."""
    figure = Figure((7.5, 5.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    for index, (name, values) in enumerate(found.items()):
        axes.loglog(STEPS, values, marker="osv^Dx"[index // 4], label=name, markersize=4)
    for order in (1, 2, 3, 4):
        line = 0.3 * (np.array(STEPS) / STEPS[0]) ** -float(order)
        axes.loglog(STEPS, line, ":", color="0.7", linewidth=1.0)
        axes.annotate(f"order {order}", (STEPS[-1], line[-1]), color="0.5", fontsize=8)
    axes.set(xlabel="sampling steps", ylabel="root mean square error", ylim=(1e-8, 1.0))
    axes.set_xticks(STEPS, list(map(str, STEPS)))
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def compare(out: Path) -> None:
    """Measure all solvers in float64, write the picture, and print their orders."""
    with jax.enable_x64(True):
        found = errors()
    write_picture(out, found)
    for name, values in found.items():
        print(f"{name:16} order {np.log2(values[-2] / values[-1]):.2f}, error {values[-1]:.1e}")
    print(out)


if __name__ == "__main__":
    picture.main(compare)
