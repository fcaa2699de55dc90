"""Controlled diffusions from N(0, I) to a density, and the exact weights of their paths.

A step goes from a time t to s < t on a variance-preserving path, by two Gaussian kernels:

    generation   F(x_s | x_t) = N(c x_t + a f(x_t, t), a I),    f = x + score = grad log(p_t / N)
    noising      N(x_t | x_s) = N(c x_s, a I)

    euler_maruyama   a = beta_t (t - s),             c = 1 - a / 2      (Berner et al. 2024, DIS)
    exponential      a = 1 - (alpha_t / alpha_s)^2,  c = sqrt(1 - a)    (Vargas et al. 2023, DDS)

beta = -2 d log alpha / dt. The weight of a path x_T ... x_0 that starts at N(0, I) is

    log w = log rho(x_0) - log N(x_T; 0, I) + sum log N(x_t | x_s) - log F(x_s | x_t)

so E w = Z for any f and any number of steps: both are densities of the whole path. Sums of
Girsanov's formula, as in published code, are unbiased only as the steps get small.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.path import Path, ends_at_unit_variance
from fewstep.diffusion.prediction import Denoise
from fewstep.samplers.ode import Solver
from fewstep.samplers.sde import noise_like

# Paths whose noising has a finite rate end with more signal than this.
LEAST_ALPHA = 1e-3
# (x: [B, ...], t: [B] or [1]) -> f(x, t), like x
Control = Callable[[Array, Array], Array]


class Kernel(NamedTuple):
    """Factor c and variance a of a step, scalars."""

    c: Array
    a: Array


# (path, t, s) -> the kernel of a step from t to s
Discretisation = Callable[[Path, Array, Array], Kernel]


class Trajectory(NamedTuple):
    """A path of B rows. x: its end, [B, ...]. states: [N + 1, B, ...], from noise to data.

    log_ratio: sum log N(x_t | x_s) - log F(x_s | x_t), [B].
    """

    x: Array
    log_ratio: Array
    states: Array


def noising_rate(path: Path, t: Array) -> Array:
    """beta(t) = -2 d log alpha / dt."""
    return -2.0 * path.alpha_rate(t) / path.alpha(t)


def euler_kernel(path: Path, t: Array, s: Array) -> Kernel:
    """The kernel of Euler and Maruyama, with the rate at t."""
    a = noising_rate(path, t) * (t - s)
    return Kernel(1.0 - 0.5 * a, a)


def exponential_kernel(path: Path, t: Array, s: Array) -> Kernel:
    """The exact kernel of noising from s to t."""
    c = path.alpha(t) / path.alpha(s)
    # Equal to 1 - c^2, which would cancel in float32 for short steps.
    return Kernel(c, path.sigma(t) ** 2 - (c * path.sigma(s)) ** 2)


def control_of(denoise: Denoise, path: Path) -> Control:
    """f = x - eps / sigma of a denoiser; t must be above the data end."""

    def control(x: Array, t: Array) -> Array:
        sigma = path.sigma(t).reshape(t.shape + (1,) * (x.ndim - t.ndim))
        return x - denoise(x, t).eps / sigma

    return control


def simulate(
    path: Path,
    discretisation: Discretisation,
    control: Control,
    x: Array,
    times: Array,
    keys: Array,
    drive: Callable[[Array], Array] = lambda x: x,
) -> Trajectory:
    """The controlled path from x at times[0] to the last of [N + 1] descending times.

    x: [B, ...], draws from N(0, I). keys: [B]. drive: applied to each new point; stop_gradient
    leaves the parameters of the control only in `log_ratio`, whose gradient then does not go back
    through the path. Backward passes compute a step again, and keep its point alone.
    """

    def body(
        carry: tuple[Array, Array], interval: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        (x, total), (index, t, s) = carry, interval
        c, a = discretisation(path, t, s)
        f = control(x, t[None])
        after = drive(c * x + a * f + jnp.sqrt(a) * noise_like(x, keys, index))
        back, forth = x - c * after, after - c * x - a * f
        total += 0.5 * row_sum(forth**2 - back**2) / a
        return (after, total), after

    steps = jnp.arange(times.shape[0] - 1), times[:-1], times[1:]
    start = x, jnp.zeros(x.shape[0])
    (end, total), states = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), start, steps)
    return Trajectory(end, total, jnp.concatenate([x[None], states]))


def row_sum(x: Array) -> Array:
    """The sum over all axes but the first: [B, ...] -> [B]."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


def log_prior(x: Array) -> Array:
    """log N(x; 0, I): [B, ...] -> [B]."""
    dimension = math.prod(x.shape[1:])
    return -0.5 * row_sum(x**2) - 0.5 * dimension * math.log(2.0 * math.pi)


def check_noising(path: Path) -> None:
    """Raises ValueError unless a path preserves variance and noises at a finite rate."""
    needed = "a diffusion from N(0, I) needs a variance-preserving path with a finite rate"
    with jax.ensure_compile_time_eval():
        preserves, last = (
            ends_at_unit_variance(path),
            float(path.alpha(jnp.float32(path.t_max))),
        )
    if preserves and path.name == "vp_ddpm" and last <= LEAST_ALPHA:
        raise ValueError(
            f"{needed}: path.beta_max leaves alpha = {last:.1g} at the noise end, and "
            f"{LEAST_ALPHA:g} is the least; set a smaller path.beta_max"
        )
    if not preserves or last <= LEAST_ALPHA:
        raise ValueError(f"{needed}: path.name=vp_ddpm or vp_discrete, not {path.name}")


def diffusion(discretisation: Discretisation) -> Solver:
    """The solver that simulates the diffusion of a denoiser by a kernel. N evaluations.

    With the exact score its samples have the density as N grows. Raises ValueError for paths other
    than vp_ddpm and vp_discrete.
    """

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        check_noising(path)
        return simulate(path, discretisation, control_of(denoise, path), x, times, keys).x

    return solve


def euler_maruyama() -> Solver:
    """`diffusion` by Euler and Maruyama, the paths that `dis` trains and weighs."""
    return diffusion(euler_kernel)


def exponential() -> Solver:
    """`diffusion` by the exact kernel of noising, the paths that `dds` trains and weighs."""
    return diffusion(exponential_kernel)
