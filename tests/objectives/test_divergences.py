"""Gradients of surrogates against gradients of the divergences by quadrature.

The generator is x = b + a z of standard normal z, and the teacher is N(m, s^2), at one noise level
sigma on `ve`. The fake score is exact: that of the generator's distribution, with fixed parameters.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import ve
from fewstep.objectives.distances import DISTANCES, l1, norm
from fewstep.objectives.divergences import (
    Point,
    integral_kl,
    noise_free_score_distillation,
    score_distillation,
    score_identity,
    score_implicit_matching,
)
from tests.gaussian import Mixture

SIGMA = 0.8
TEACHER = {"a": 0.7, "b": 0.3}
GENERATOR = {"a": 1.3, "b": -0.4}


def split_normal(centre, points=200, reach=9.0):
    """Nodes [N] and weights [N] of quadrature under N(0, 1), exact for a root's kink at centre.

    On each side u = centre +- r^2, with Gauss-Legendre nodes in r.
    """
    nodes, weights = np.polynomial.legendre.leggauss(points)
    end = np.sqrt(reach + abs(centre))
    r, dr = 0.5 * end * (nodes + 1.0), 0.5 * end * weights
    u = np.concatenate([centre - r**2, centre + r**2])
    density = np.exp(-0.5 * u**2) / np.sqrt(2.0 * np.pi)
    return u, density * np.concatenate([2.0 * r * dr] * 2)


def noised_nodes(generator):
    """(u, weights) of x_t = b + sqrt(a^2 + sigma^2) u, split where fake and teacher agree."""
    spread = np.sqrt(generator["a"] ** 2 + SIGMA**2)
    y = lambda u: [
        denoised(distribution, generator["b"] + spread * u) for distribution in (generator, TEACHER)
    ]
    at_0, at_1 = (np.subtract(*y(u)) for u in (0.0, 1.0))
    return split_normal(-at_0 / (at_1 - at_0))


def pair_nodes(generator, points=20):
    """z, eps: [N, 1], and weights: nodes of x_t, and Gauss-Hermite nodes of z given x_t."""
    u, along = noised_nodes(generator)
    w, across = np.polynomial.hermite_e.hermegauss(points)
    across = across / across.sum()
    a, spread = generator["a"], np.sqrt(generator["a"] ** 2 + SIGMA**2)
    u, w = (x.reshape(-1, 1) for x in np.meshgrid(u, w, indexing="ij"))
    return (
        (a * u - SIGMA * w) / spread,
        (SIGMA * u + a * w) / spread,
        np.outer(along, across).ravel(),
    )


def denoised(distribution, x_t):
    """E[x_0 | x_t] for data N(b, a^2), elementwise, on `ve`."""
    variance = distribution["a"] ** 2
    return distribution["b"] + variance / (variance + SIGMA**2) * (x_t - distribution["b"])


def gaussian_point(x_g, eps, fake, teacher):
    return Point(
        x_g=x_g,
        noise=SIGMA * eps,
        rho=jnp.full_like(x_g, SIGMA),
        fake=fake(x_g + SIGMA * eps),
        teacher=teacher(x_g + SIGMA * eps),
        null=teacher(x_g + SIGMA * eps),
    )


def surrogate_gradient(surrogate, z, eps, weights, generator=GENERATOR, offset=0.0):
    """d/d(a, b) of the mean surrogate, with an exact fake score plus an offset."""
    frozen = jax.tree.map(jnp.float64, generator)

    def loss(distribution):
        x_g = distribution["b"] + distribution["a"] * z
        point = gaussian_point(
            x_g, eps, lambda x: denoised(frozen, x) + offset, lambda x: denoised(TEACHER, x)
        )
        return jnp.sum(weights * surrogate(point))

    return jax.grad(loss)(frozen)


def divergence_gradient(function, u, weights, generator=GENERATOR, move_measure=False):
    """d/d(a, b) of E function(fake, teacher) over the generator's x_t, held fixed or not."""

    def value(distribution):
        measure = (
            distribution if move_measure else jax.tree.map(jax.lax.stop_gradient, distribution)
        )
        x_t = measure["b"] + jnp.sqrt(measure["a"] ** 2 + SIGMA**2) * u[:, None]
        return jnp.sum(weights * function(denoised(distribution, x_t), denoised(TEACHER, x_t)))

    return jax.grad(value)(jax.tree.map(jnp.float64, generator))


def relative_error(a, b):
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


ADMITTED = [
    ("squared_l2", {}, 1e-5),
    ("norm", {"power": 3.0}, 1e-3),
    ("norm", {"power": 1.5}, 5e-3),
    ("pseudo_huber", {"c": 0.5}, 1e-3),
    ("pseudo_huber_elementwise", {"c": 0.5}, 1e-3),
    ("huber", {"c": 0.5}, 1e-2),
    ("log_cosh", {}, 1e-5),
    ("exponential", {"c": 2.0}, 1e-5),
    ("cauchy", {"c": 1.0}, 1e-4),
]


@pytest.mark.parametrize(("name", "options", "tolerance"), ADMITTED)
def test_gradient_of_sim_is_that_of_the_divergence_with_the_measure_held(name, options, tolerance):
    with jax.enable_x64(True):
        distance = DISTANCES[name](**options)
        found = surrogate_gradient(
            score_implicit_matching(distance).surrogate, *pair_nodes(GENERATOR)
        )
        nodes = noised_nodes(GENERATOR)
        held = divergence_gradient(distance, *nodes)
        moved = divergence_gradient(distance, *nodes, move_measure=True)
        assert relative_error(found, held) < tolerance
        assert relative_error(found, moved) > 0.05


@pytest.mark.parametrize(("name", "options", "tolerance"), [a for a in ADMITTED if a[0] != "norm"])
def test_value_of_sim_is_the_fake_score_s_error_along_the_gradient_of_the_distance(
    name, options, tolerance
):
    # With fake + offset in place of fake the value is -E d'(y)^T offset, so it is 0 without offset.
    with jax.enable_x64(True):
        distance = DISTANCES[name](**options)
        z, eps, weights = pair_nodes(GENERATOR)
        x_g = GENERATOR["b"] + GENERATOR["a"] * z
        surrogate = score_implicit_matching(distance).surrogate
        grads = jax.grad(lambda a, b: distance(a, b).sum())
        for offset in (0.0, 0.2):
            fake = lambda x, offset=offset: denoised(GENERATOR, x) + offset
            point = gaussian_point(x_g, eps, fake, lambda x: denoised(TEACHER, x))
            expected = -offset * jnp.sum(weights * grads(point.fake, point.teacher)[:, 0])
            found = float(jnp.sum(weights * surrogate(point)))
            assert found == pytest.approx(float(expected), abs=1e-4)


def test_l1_is_refused_because_its_gradient_is_another_one():
    with jax.enable_x64(True):
        let_through = l1()._replace(least_dimensions=1)
        found = surrogate_gradient(
            score_implicit_matching(let_through).surrogate, *pair_nodes(GENERATOR)
        )
        held = divergence_gradient(l1(), *noised_nodes(GENERATOR))
        assert relative_error(found, held) > 0.3
    with pytest.raises(ValueError, match="divergence.distance.name=l1 has a gradient that jumps"):
        score_implicit_matching(l1())


def test_norm_is_refused_in_one_dimension_only():
    surrogate = score_implicit_matching(norm()).surrogate
    for dimensions in (1, 2):
        point = gaussian_point(*jnp.ones((2, 3, dimensions)), lambda x: 0.5 * x, lambda x: 0.4 * x)
        if dimensions == 1:
            with pytest.raises(ValueError, match="misses in one dimension; use pseudo_huber"):
                surrogate(point)
        else:
            assert surrogate(point).shape == (3,)


def test_gradient_of_sim_with_a_norm_in_two_dimensions():
    # x_t in polar coordinates about the point where fake and teacher agree, so that the 1 / r of
    # the gradient's derivative is integrated exactly; z given x_t has Gauss-Hermite nodes.
    with jax.enable_x64(True):
        spread = np.sqrt(GENERATOR["a"] ** 2 + SIGMA**2)
        y = lambda x: denoised(GENERATOR, x) - denoised(TEACHER, x)
        root = -y(0.0) / (y(1.0) - y(0.0))
        centre = (root - GENERATOR["b"]) / spread
        nodes, weights = np.polynomial.legendre.leggauss(80)
        radius, d_radius = 5.0 * (nodes + 1.0), 5.0 * weights
        angle = np.linspace(0.0, 2.0 * np.pi, 64, endpoint=False)
        r, phi = (m.ravel() for m in np.meshgrid(radius, angle, indexing="ij"))
        u = centre + np.stack([r * np.cos(phi), r * np.sin(phi)], -1)
        along = np.exp(-0.5 * (u**2).sum(1)) / (2.0 * np.pi) * r
        along = along * np.repeat(d_radius, len(angle)) * (2.0 * np.pi / len(angle))
        h, across = np.polynomial.hermite_e.hermegauss(4)
        w = np.stack(np.meshgrid(h, h), -1).reshape(-1, 2)
        across = np.outer(across, across).ravel() / across.sum() ** 2
        u_all, w_all = np.repeat(u, len(w), 0), np.tile(w, (len(u), 1))
        a = GENERATOR["a"]
        z, eps = (a * u_all - SIGMA * w_all) / spread, (SIGMA * u_all + a * w_all) / spread
        found = surrogate_gradient(
            score_implicit_matching(norm()).surrogate, z, eps, np.outer(along, across).ravel()
        )
        held = divergence_gradient(norm(), u, along)
        assert relative_error(found, held) < 1e-4


@pytest.mark.parametrize(("name", "options", "tolerance"), ADMITTED)
def test_gradient_of_sim_on_a_mixture(name, options, tolerance):
    # The generator is two points' width apart; its exact fake score is not affine.
    with jax.enable_x64(True):
        path = ve()
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        weights = weights / weights.sum()
        z, eps = (m.reshape(-1, 1) for m in np.meshgrid(nodes, nodes, indexing="ij"))
        pair = np.outer(weights, weights).ravel()
        t = jnp.full(len(z), SIGMA)

        def distribution(params):
            ends = jnp.stack([-params["m"], params["m"] + 0.3])
            return Mixture(jnp.array([0.4, 0.6]), ends, jnp.full(2, params["a"] ** 2))

        def teacher(x):
            return denoised(TEACHER, x)

        params = {"m": jnp.float64(1.1), "a": jnp.float64(0.5)}
        distance = DISTANCES[name](**options)
        surrogate = score_implicit_matching(distance).surrogate

        def found(params):
            frozen, total = jax.tree.map(jax.lax.stop_gradient, params), 0.0
            for share, mean in zip(
                distribution(params).weight, distribution(params).mean, strict=True
            ):
                fake = lambda x: distribution(frozen).denoiser(path)(x, t).x_0
                point = gaussian_point(mean + params["a"] * z, eps, fake, teacher)
                total += share * jnp.sum(pair * surrogate(point))
            return total

        def value(params, measure):
            total = 0.0
            for share, mean in zip(
                distribution(measure).weight, distribution(measure).mean, strict=True
            ):
                x_t = mean + measure["a"] * z + SIGMA * eps
                fake = distribution(params).denoiser(path)(x_t, t).x_0
                total += share * jnp.sum(pair * distance(fake, teacher(x_t)))
            return total

        gradient = jax.grad(found)(params)
        held = jax.grad(lambda p: value(p, jax.lax.stop_gradient(p)))(params)
        moved = jax.grad(lambda p: value(p, p))(params)
        assert relative_error(gradient, held) < 10.0 * tolerance
        assert relative_error(gradient, moved) > 0.05


def arbitrary_point(key=0, shape=(5, 6)):
    """A point whose denoisers are arbitrary, and differentiable in x_g."""
    x_g, eps, w_fake, w_teacher = jax.random.normal(jax.random.key(key), (4, *shape))
    fake = lambda x: jnp.sin(w_fake * x)
    teacher = lambda x: jnp.tanh(w_teacher * x + 0.1)
    return lambda x: gaussian_point(x, eps, fake, teacher), x_g


def value_and_gradient(surrogate):
    point, x_g = arbitrary_point()
    return surrogate(point(x_g)), jax.grad(lambda x: surrogate(point(x)).sum())(x_g)


def test_sid_with_alpha_1_is_sim_with_half_the_squared_norm_for_any_networks():
    half_square = norm(2.0)._replace(between=lambda a, b: 0.5 * jnp.sum((a - b) ** 2, axis=1))
    sid, sim = score_identity(1.0).surrogate, score_implicit_matching(half_square).surrogate
    for found, expected in zip(value_and_gradient(sid), value_and_gradient(sim), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_sid_and_sim_in_their_papers_own_terms(alpha):
    # SiD: (f_q - f_psi)^T ((f_q - x_g) - alpha (f_q - f_psi)). SIM of ||.||^2, with the scores
    # -(x_t - f) / sigma^2 and -eps / sigma of x_t given x_g: 2 / sigma^4 times SiD with alpha 1.
    point, x_g = arbitrary_point()
    p = point(x_g)
    sid = ((p.teacher - p.fake) * ((p.teacher - x_g) - alpha * (p.teacher - p.fake))).sum(1)
    np.testing.assert_allclose(score_identity(alpha).surrogate(p), sid, rtol=1e-4, atol=1e-5)
    if alpha == 1.0:
        x_t = x_g + p.noise
        fake, teacher = (-(x_t - f) / SIGMA**2 for f in (p.fake, p.teacher))
        given = -p.noise / SIGMA**2
        sim = -(2.0 * (fake - teacher) * (fake - given)).sum(1)
        np.testing.assert_allclose(sim, 2.0 / SIGMA**4 * sid, rtol=1e-3, atol=1e-4)


def test_sim_of_the_squared_distance_with_x_t_detached_is_diff_instruct():
    _, x_g = arbitrary_point()
    point, _ = arbitrary_point()

    def detached(x):
        p = point(jax.lax.stop_gradient(x))
        return p._replace(x_g=x)

    sim = score_implicit_matching(DISTANCES["squared_l2"]()).surrogate
    found = jax.grad(lambda x: sim(detached(x)).sum())(x_g)
    expected = jax.grad(lambda x: integral_kl().surrogate(point(x)).sum())(x_g)
    np.testing.assert_allclose(found, 2.0 / x_g[0].size * expected, rtol=1e-4)


def test_gradient_of_diff_instruct_is_that_of_the_kl():
    # In data, sigma^2 times d KL(N(b, P) || N(m, Q)) = ((b - m) / Q, a (1 / Q - 1 / P)).
    with jax.enable_x64(True):
        found = surrogate_gradient(integral_kl().surrogate, *pair_nodes(GENERATOR))
        p, q = (distribution["a"] ** 2 + SIGMA**2 for distribution in (GENERATOR, TEACHER))
        expected = {
            "a": SIGMA**2 * GENERATOR["a"] * (1.0 / q - 1.0 / p),
            "b": SIGMA**2 * (GENERATOR["b"] - TEACHER["b"]) / q,
        }
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_gradient_of_sid_has_a_second_root_for_alpha_above_1(alpha):
    # 2 a sigma^4 k (1/Q - alpha k) with k = 1/Q - 1/P: 0 at P = Q and at P = alpha Q / (alpha - 1).
    with jax.enable_x64(True):
        q = TEACHER["a"] ** 2 + SIGMA**2

        def in_width(p):
            distribution = {"a": np.sqrt(p - SIGMA**2), "b": TEACHER["b"]}
            z, eps = pair_nodes({**distribution, "b": distribution["b"] + 1e-9})[:2]
            weights = pair_nodes({**distribution, "b": distribution["b"] + 1e-9})[2]
            surrogate = score_identity(alpha).surrogate
            return distribution["a"], float(
                surrogate_gradient(surrogate, z, eps, weights, distribution)["a"]
            )

        for p in (0.8 * q, 1.5 * q, 4.0 * q, 8.0 * q):
            a, found = in_width(p)
            k = 1.0 / q - 1.0 / p
            assert found == pytest.approx(2.0 * a * SIGMA**4 * k * (1.0 / q - alpha * k), rel=1e-3)
        if alpha > 1.0:
            spurious = alpha * q / (alpha - 1.0)
            assert in_width(0.9 * spurious)[1] > 0.0 > in_width(1.1 * spurious)[1]


def test_score_distillation_is_the_error_of_the_noise_and_vsd_of_one_point():
    # Poole et al. 2023, eq. 3: eps_teacher - eps, here with the weight sigma / alpha, row by row.
    _, x_g = arbitrary_point()
    eps = jax.random.normal(jax.random.key(1), x_g.shape)
    teacher = lambda x: jnp.tanh(0.5 * x + 0.1)
    x_t = x_g + SIGMA * eps
    expected = SIGMA * ((x_t - teacher(x_t)) / SIGMA - eps)
    one_point = lambda _: x_g  # noqa: E731, E[x_g | x_t] of a generator that makes x_g only
    gradient = lambda divergence, fake: jax.grad(
        lambda x: divergence.surrogate(gaussian_point(x, eps, fake, teacher)).sum()
    )(x_g)
    sds = gradient(score_distillation(), one_point)
    np.testing.assert_allclose(sds, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gradient(integral_kl(), one_point), sds)


def test_score_distillation_pulls_a_sample_to_the_mode():
    # E[x_g - teacher(x_t)] = sigma^2 / (s^2 + sigma^2) (x - m).
    with jax.enable_x64(True):
        x, eps = 1.7, np.random.default_rng(0).standard_normal((200_000, 1))
        eps = np.concatenate([eps, -eps])
        x_g = jnp.full(eps.shape, x)
        point = lambda x_g: gaussian_point(x_g, eps, lambda y: x_g, lambda y: denoised(TEACHER, y))
        surrogate = score_distillation().surrogate
        found = jax.grad(lambda x_g: surrogate(point(x_g)).mean())(x_g).sum()
        q = TEACHER["a"] ** 2 + SIGMA**2
        assert float(found) == pytest.approx(SIGMA**2 / q * (x - TEACHER["b"]), rel=1e-6)


def test_noise_free_score_distillation():
    # Below the level: SDS plus the noise, of mean 0. Above it: only guidance, w (eps_y - eps_0).
    point, x_g = arbitrary_point()
    p = point(x_g)._replace(null=jnp.cos(x_g))
    direction = jax.grad(
        lambda x, level: noise_free_score_distillation(level).surrogate(p._replace(x_g=x)).sum()
    )
    sds = jax.grad(lambda x: score_distillation().surrogate(p._replace(x_g=x, fake=x)).sum())(x_g)
    np.testing.assert_allclose(direction(x_g, 2.0 * SIGMA), sds + p.noise, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(direction(x_g, 0.5 * SIGMA), p.null - p.teacher, rtol=1e-5)


@pytest.mark.parametrize(
    "divergence", [score_implicit_matching(), score_identity(1.2), integral_kl()]
)
def test_where_fake_and_teacher_agree_the_gradient_is_exactly_zero(divergence):
    _, x_g = arbitrary_point()
    same = lambda x: jnp.sin(3.0 * x)
    gradient = jax.grad(
        lambda x: divergence.surrogate(gaussian_point(x, jnp.ones_like(x), same, same)).sum()
    )(x_g)
    assert not np.any(gradient)


def test_low_noise_of_noise_free_score_distillation_leaves_its_border_out():
    make, x_g = arbitrary_point()
    point = make(x_g)._replace(null=jnp.cos(x_g))
    for rho, changes in ((0.49, True), (0.5, False), (0.51, False)):
        at = point._replace(rho=jnp.full_like(x_g, rho))
        given = noise_free_score_distillation(0.5).surrogate(at)
        without = noise_free_score_distillation(0.0).surrogate(at)
        assert bool((given != without).any()) == changes
