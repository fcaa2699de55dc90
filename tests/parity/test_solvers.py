"""Multistep solvers on `vp_discrete` against diffusers' schedulers, with the same denoiser.

diffusers' DPM-Solver++(3M) halves a term that ours integrates (tests/samplers/test_multistep.py).
So it is compared with ours by a denoiser without that term, x_0 linear in log(alpha / sigma), and
with the halved form by any.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import align, vp_discrete
from fewstep.diffusion.prediction import Endpoints
from fewstep.samplers.multistep import deis, dpm_solver_3m, unipc
from fewstep.samplers.ode import dpm_solver_2m
from fewstep.samplers.pndm import pndm
from tests.gaussian import Mixture
from tests.samplers.test_multistep import official_3m

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")
diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by `make parity`")

pytestmark = pytest.mark.parity

PATH = vp_discrete()
MIXTURE = Mixture(jnp.array([0.3, 0.7]), jnp.array([-1.0, 0.8]), jnp.array([0.09, 0.2]))
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "timestep_spacing": "trailing",
}
LAST = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}


def line(x, t):
    """x_0 linear in log(alpha / sigma), whatever x is."""
    x_0 = jnp.broadcast_to(align(0.2 - 0.1 * jnp.log(PATH.rho(t)), x), x.shape)
    return Endpoints(x_0, (x - align(PATH.alpha(t), x) * x_0) / align(PATH.sigma(t), x))


def dpm(order):
    return diffusers.DPMSolverMultistepScheduler(
        **BETAS, **LAST, solver_order=order, algorithm_type="dpmsolver++", euler_at_final=False
    )


def uni(order):
    return diffusers.UniPCMultistepScheduler(
        **BETAS, **LAST, solver_order=order, solver_type="bh2", predict_x0=True
    )


def schedulers():
    """(our solver, diffusers' scheduler, denoiser) by name."""
    mixture = MIXTURE.denoiser(PATH)
    log_rho = {"solver_order": 3, "solver_type": "logrho", "lower_order_final": False}
    return {
        "dpm_solver_2m": (dpm_solver_2m(), dpm(2), mixture),
        "dpm_solver_3m": (dpm_solver_3m(), dpm(3), line),
        "dpm_solver_3m, halved": (official_3m(), dpm(3), mixture),
        **{f"unipc {p}": (unipc(order=p), uni(p), mixture) for p in (1, 2, 3)},
        "deis": (
            deis(variable="log_rho"),
            diffusers.DEISMultistepScheduler(**BETAS, **log_rho),
            mixture,
        ),
        "pndm": (
            pndm(),
            diffusers.PNDMScheduler(**BETAS | {"timestep_spacing": "leading"}),
            mixture,
        ),
    }


NAMES = ("dpm_solver_2m", "dpm_solver_3m", "dpm_solver_3m, halved", "deis", "pndm")


@pytest.mark.parametrize("name", [*NAMES, *(f"unipc {p}" for p in (1, 2, 3))])
def test_samples_are_those_of_diffusers(name):
    solver, scheduler, denoise = schedulers()[name]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1.0 - betas, 0)  # in float32 1 - these is off by 1e-3
    scheduler.set_timesteps(10)
    known = [(float(k) + 1.0) / 1000.0 for k in scheduler.timesteps]
    grid = np.arange(901, 0, -100) / 1000.0 if name == "pndm" else known  # PNDM has middles too
    start = np.linspace(-2.0, 2.0, 16)[:, None]
    with jax.enable_x64(True):
        network, x = jax.jit(denoise), torch.from_numpy(start)
        for k, t in zip(scheduler.timesteps, known, strict=True):
            eps = network(jnp.asarray(x.numpy()), jnp.full(16, t)).eps
            x = scheduler.step(torch.from_numpy(np.array(eps)), k, x).prev_sample
        times = jnp.asarray([*grid, 1e-3])
        ours = jax.jit(lambda x: solver(denoise, PATH, x, times, None))(start)
    difference = np.abs(ours - x.numpy()).max()
    print(f"{name}: difference {difference:.1e}")
    assert difference < 1e-4
