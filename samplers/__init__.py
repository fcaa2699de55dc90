"""Solvers by `objective.solver.name`."""

from collections.abc import Callable

from fewstep.samplers.controlled import euler_maruyama, exponential
from fewstep.samplers.multistep import deis, dpm_solver_3m, unipc
from fewstep.samplers.ode import Solver, ddim, dpm_solver_2m, euler, genie, heun
from fewstep.samplers.pndm import pndm
from fewstep.samplers.sde import ancestral, churned_heun

SOLVERS: dict[str, Callable[..., Solver]] = {
    "euler": euler,
    "ddim": ddim,
    "heun": heun,
    "genie": genie,
    "deis": deis,
    "dpm_solver_2m": dpm_solver_2m,
    "dpm_solver_3m": dpm_solver_3m,
    "unipc": unipc,
    "pndm": pndm,
    "ancestral": ancestral,
    "churned_heun": churned_heun,
    "euler_maruyama": euler_maruyama,
    "exponential": exponential,
}
