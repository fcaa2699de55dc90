"""Multistep solvers of the probability-flow ODE, with the interface of `samplers.ode`.

With rho = sigma / alpha and lambda = -log rho, the solution from t to s is

    x_s = (alpha_s / alpha_t) x_t + alpha_s int_{rho_t}^{rho_s} eps drho                 (exact)
        = (sigma_s / sigma_t) x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x_0 dlambda.

A solver of order r puts for eps or x_0 the polynomial through its last r values. DDIM is order 1,
the constant. So with Lagrange's basis L_j, which sums to 1, and y = eps or x_0,

    x_s = DDIM(x_t) + alpha_s sum_j c_j (y_j - y),    c_j = int L_j drho, or with x_0
                                                      c_j = rho_s int e^lambda L_j dlambda.

The integrals are by Gauss-Legendre quadrature, which does not cancel in float32. An interval that
starts at pure noise or, for x_0, ends without noise is infinitely long: its order is 1.

The first steps have fewer values and so a lower order. The first is a step of DDIM, whose error is
of size N^-2 on N equal steps, or N^-3 after UniPC's correction. So solvers reach their order on
graded grids, whose first steps are of size N^-2. On equal steps it is at most 2, or 3 for UniPC.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.diffusion.path import Path, align
from fewstep.diffusion.prediction import Denoise
from fewstep.diffusion.spacing import PURE_NOISE
from fewstep.samplers.grids import StepsError
from fewstep.samplers.ode import Solver

ORDERS = (1, 2, 3)
# Points of quadrature on [0, 1]: 1e-7 also for an interval from rho = 100 to 1.
_ROOTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)
POINTS, WEIGHTS = 0.5 * (_ROOTS + 1.0), 0.5 * _WEIGHTS
# DEIS: the variable in which eps is a polynomial. "t" is the paper's tAB, "log_rho" diffusers'.
VARIABLES: dict[str, Callable[[Path, Array], Array]] = {
    "t": lambda path, rho: path.time_at(rho),
    "log_rho": lambda path, rho: jnp.log(rho),
}
# (path, times: [N + 1]) -> c: [N, order - 1] for the values before the present one, newest first
Coefficients = Callable[[Path, Array], Array]


def noise_levels(path: Path, times: Array) -> Array:
    """rho at the times, infinite at pure noise, where float32 may give a huge number."""
    rho = path.rho(times)
    return jnp.where(rho < PURE_NOISE, rho, jnp.inf)


def check_steps(solver: str, order: int, steps: int) -> None:
    """Raises StepsError for fewer steps than a solver needs to reach its order."""
    if steps < order:
        raise StepsError(
            f"solver.name={solver} of order {order} needs {order} sampling steps or more, not "
            f"{steps}"
        )


def check_order(solver: str, order: int) -> None:
    """Raises ValueError unless the order is 1, 2 or 3."""
    if order not in ORDERS:
        raise ValueError(f"solver.order={order} must be 1, 2 or 3 for solver.name={solver}")


def recent(values: Array, count: int) -> Array:
    """The last `count` values at each of the N starts of intervals, newest first: [N, count].

    values: [N + 1]. NaN stands for what is before the first.
    """
    padded = jnp.concatenate([jnp.full(count - 1, jnp.nan, values.dtype), values[:-1]])
    return jnp.stack([padded[count - 1 - j : padded.size - j] for j in range(count)], axis=1)


def lagrange(nodes: Array, points: Array) -> Array:
    """Lagrange's basis through the finite nodes, zero for others: [N, r], [N, q] -> [N, r, q]."""
    known = jnp.isfinite(nodes)
    nodes = jnp.where(known, nodes, 0.0)
    others = known[:, None] & ~jnp.eye(nodes.shape[1], dtype=bool)
    gaps = jnp.where(others, nodes[:, :, None] - nodes[:, None], 1.0)[..., None]
    ratios = (points[:, None, None] - nodes[:, None, :, None]) / gaps
    return jnp.where(known[..., None], jnp.where(others[..., None], ratios, 1.0).prod(2), 0.0)


def eps_coefficients(path: Path, times: Array, order: int, variable: str) -> Array:
    """c_j = int L_j drho for the polynomial of eps in a variable: [N, order - 1]."""
    rho, change = noise_levels(path, times), VARIABLES[variable]
    finite = jnp.isfinite(rho[:-1])
    start = jnp.where(finite, rho[:-1], 1.0)[:, None]
    length = rho[1:, None] - start
    basis = lagrange(recent(change(path, rho), order), change(path, start + POINTS * length))
    integrals = jnp.einsum("q,njq->nj", WEIGHTS, basis[:, 1:]) * length
    return jnp.where(finite[:, None], integrals, 0.0)


def x_0_coefficients(h: Array, nodes: Array) -> Array:
    """c_j = rho_s int e^lambda L_j dlambda for the polynomial of x_0 in lambda: [N, r - 1].

    h: [N], lengths in lambda. nodes: [N, r], lambda less that of each interval's start; the first
    is 0, the start itself. An infinite interval gives 0.
    """
    finite = jnp.isfinite(h)
    length = jnp.where(finite, h, 1.0)[:, None]
    basis = lagrange(nodes, POINTS * length)[:, 1:]
    weights = WEIGHTS * jnp.exp(-length * (1.0 - POINTS))
    integrals = length * jnp.einsum("nq,njq->nj", weights, basis)
    return jnp.where(finite[:, None], integrals, 0.0)


def log_snr_steps(path: Path, times: Array, count: int) -> tuple[Array, Array]:
    """(h: [N], nodes: [N, count]): lengths of intervals in lambda, and the last starts."""
    log_snr = -jnp.log(noise_levels(path, times))
    return jnp.diff(log_snr), recent(log_snr, count) - log_snr[:-1, None]


def adams_bashforth(name: str, order: int, part: str, coefficients: Coefficients) -> Solver:
    """The solver of the module's docstring. part: x_0 or eps. N evaluations."""

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        check_steps(name, order, times.shape[0] - 1)

        def body(
            carry: tuple[Array, Array], interval: tuple[Array, Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            x, past = carry
            t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in interval[:2])
            ends = denoise(x, t)
            y = getattr(ends, part)
            correction = jnp.tensordot(interval[2], past - y, 1)
            x = path.interpolate(*ends, s) + align(path.alpha(s), x) * correction
            return (x, jnp.concatenate([y[None], past])[: order - 1]), None

        past = jnp.zeros((order - 1, *x.shape), x.dtype)
        intervals = times[:-1], times[1:], coefficients(path, times).astype(x.dtype)
        return jax.lax.scan(body, (x, past), intervals)[0][0]

    return solve


def deis(order: int = 3, variable: str = "t") -> Solver:
    """DEIS (Zhang & Chen 2023, eq. 14): eps is a polynomial. N evaluations.

    order: on graded grids; at most 2 on equal steps. variable: of the polynomial, "t" (the paper's
    tAB) or "log_rho". Raises ValueError for another order or variable.
    """
    check_order("deis", order)
    if variable not in VARIABLES:
        raise ValueError(f"solver.variable={variable!r} must be t or log_rho")
    return adams_bashforth(
        "deis",
        order,
        "eps",
        lambda path, times: eps_coefficients(path, times, order, variable),
    )


def dpm_solver_3m() -> Solver:
    """DPM-Solver++(3M) (Lu et al. 2022): x_0 is a parabola in lambda. N evaluations.

    Its order is 3 on graded grids and 2 on equal steps. It integrates the parabola exactly. The
    authors' code and diffusers halve its second derivative, so that their solver is of order 2 on
    both (tests/parity).
    """
    order = 3
    return adams_bashforth(
        "dpm_solver_3m",
        order,
        "x_0",
        lambda path, times: x_0_coefficients(*log_snr_steps(path, times, order)),
    )


def halved_if_linear(h: Array, nodes: Array, coefficients: Array) -> Array:
    """UniPC's coefficients with B(h) = e^h - 1: half of B(h) where a line is integrated.

    coefficients: [N, r - 1], exact for polynomials, which those of higher degree keep.
    """
    finite = jnp.isfinite(nodes[:, 1:])
    gaps = jnp.where(finite, nodes[:, 1:], 1.0)
    line = jnp.where(finite, -0.5 * jnp.expm1(-h)[:, None] * h[:, None] / gaps, 0.0)
    linear = (finite.sum(axis=1) == 1) & jnp.isfinite(h)
    return jnp.where(linear[:, None], line, coefficients)


def unipc(order: int = 2) -> Solver:
    """UniPC (Zhao et al. 2023, algorithms 5 and 7, B(h) = e^h - 1). N evaluations.

    Its order is p + 1 on graded grids, and at most 3 on equal steps.

    A step predicts x_s from the last p values of x_0, as the other solvers. The value at the
    predicted x_s then gives the polynomial one more node, and corrects x_s for the next step. The
    last step is not corrected. order: p. Raises ValueError for another than 1, 2 and 3.
    """
    check_order("unipc", order)

    def coefficients(path: Path, times: Array) -> tuple[Array, Array]:
        """Of the predictor, [N, p - 1]; of the corrector before it, [N, p], its new node first."""
        h, nodes = log_snr_steps(path, times, order)
        predictor = halved_if_linear(h, nodes, x_0_coefficients(h, nodes))
        nodes = jnp.concatenate([nodes[:, :1], h[:, None], nodes[:, 1:]], axis=1)
        corrector = halved_if_linear(h, nodes, x_0_coefficients(h, nodes))
        return predictor, jnp.concatenate([jnp.zeros((1, order)), corrector[:-1]])

    def solve(denoise: Denoise, path: Path, x: Array, times: Array, keys: Array | None) -> Array:
        check_steps("unipc", order, times.shape[0] - 1)

        def body(
            carry: tuple[Array, Array, Array], interval: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array, Array], None]:
            predicted, ddim, past = carry
            t, s, predictor, corrector = interval
            x_0 = denoise(predicted, jnp.broadcast_to(t, x.shape[:1])).x_0
            new = jnp.concatenate([x_0[None], past[1:]]) - past[0]
            x_t = ddim + path.alpha(t) * jnp.tensordot(corrector, new, 1)
            ratio = path.sigma(s) / path.sigma(t)
            ddim = ratio * x_t + (path.alpha(s) - ratio * path.alpha(t)) * x_0
            correction = jnp.tensordot(predictor, past[: order - 1] - x_0, 1)
            past = jnp.concatenate([x_0[None], past[:-1]])
            return (ddim + path.alpha(s) * correction, ddim, past), None

        past = jnp.zeros((order, *x.shape), x.dtype)
        weights = (values.astype(x.dtype) for values in coefficients(path, times))
        return jax.lax.scan(body, (x, x, past), (times[:-1], times[1:], *weights))[0][0]

    return solve
