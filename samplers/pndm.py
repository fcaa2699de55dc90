"""PNDM, pseudo numerical methods for diffusion models (Liu et al. 2022), on any path.

A classical method gives an average eps' of eps over an interval, and the step takes DDIM's form,

    x_s = (alpha_s / alpha_t) x_t + alpha_s (rho_s - rho_t) eps',    rho = sigma / alpha   (eq. 11)

so eps' = eps(x_t, t) is DDIM. An interval that starts at pure noise, where rho is infinite, takes
DDIM's step.
"""

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path
from fewstep.diffusion.prediction import Denoise, Endpoints
from fewstep.samplers.multistep import check_steps, noise_levels
from fewstep.samplers.ode import Solver

WARM_UP = 3  # steps of the Runge-Kutta method, which gives the Adams-Bashforth method its values
ADAMS = (55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0)


def transfer(path: Path, ends: Endpoints, average: Array, t: Array, s: Array) -> Array:
    """x_s by DDIM's step with an average of eps. ends: the prediction at x_t; t, s: scalars."""
    rho = noise_levels(path, t)
    length = jnp.where(jnp.isfinite(rho), path.rho(s) - rho, 0.0)
    rows = jnp.broadcast_to(s, average.shape[:1])
    return path.interpolate(*ends, rows) + path.alpha(s) * length * (average - ends.eps)


def pndm() -> Solver:
    """Three steps of a Runge-Kutta method, then the Adams-Bashforth method, both of order 4.

    Liu et al. 2022, F-PNDM. Order 4 for equal steps in a time of which rho is a linear function
    (`ve`), for which the two methods are meant; else order 2. N + 9 evaluations. Its solver raises
    StepsError for fewer than 4 steps.
    """

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        check_steps("pndm", WARM_UP + 1, times.shape[0] - 1)

        def ends_at(x: Array, t: Array) -> Endpoints:
            return denoise(x, jnp.broadcast_to(t, x.shape[:1]))

        def runge_kutta(x: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
            t, s = interval
            middle, ends = 0.5 * (t + s), ends_at(x, t)
            eps_2 = ends_at(transfer(path, ends, ends.eps, t, middle), middle).eps
            eps_3 = ends_at(transfer(path, ends, eps_2, t, middle), middle).eps
            eps_4 = ends_at(transfer(path, ends, eps_3, t, s), s).eps
            average = (ends.eps + 2.0 * eps_2 + 2.0 * eps_3 + eps_4) / 6.0
            return transfer(path, ends, average, t, s), ends.eps

        def adams(
            carry: tuple[Array, Array], interval: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            x, past = carry
            ends = ends_at(x, interval[0])
            known = jnp.concatenate([ends.eps[None], past])
            average = jnp.tensordot(jnp.asarray(ADAMS, x.dtype), known, 1)
            return (transfer(path, ends, average, *interval), known[:-1]), None

        begin = times[:WARM_UP], times[1 : WARM_UP + 1]
        x, past = jax.lax.scan(runge_kutta, x, begin)
        rest = times[WARM_UP:-1], times[WARM_UP + 1 :]
        return jax.lax.scan(adams, (x, past[::-1]), rest)[0][0]

    return solve
