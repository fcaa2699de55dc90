"""Solvers by `objective.solver.name`."""

from collections.abc import Callable

from fewstep.samplers.controlled import euler_maruyama
from fewstep.samplers.ode import Solver, ddim, dpm_solver_2m, euler, heun
from fewstep.samplers.sde import ancestral, churned_heun

SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": euler,
    "ddim": ddim,
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
    "ancestral": ancestral,
    "churned_heun": churned_heun,
    "euler_maruyama": euler_maruyama,
}
