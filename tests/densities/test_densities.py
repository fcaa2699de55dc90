"""Every density against what is known of it: scores, normalisers, samples, modes, symmetries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.densities.density import check_density
from fewstep.densities.lattice import phi4
from fewstep.densities.picture import EDGE, HALF, picture
from fewstep.densities.posteriors import (
    cox_process,
    decoder_posterior,
    draw_points,
    logistic_regression,
)
from fewstep.densities.table import DENSITIES, find_density, is_place
from fewstep.densities.user_code import permit
from fewstep.densities.wells import MOST_DELTA

# Cheap to evaluate, and with exact samples.
EXACT = ("image", "gmm9", "gmm40", "rings", "dw2", "mw54", "manywell", "funnel", "phi4-4-0.2-0")
COUNT = 20_000


def samples(density, count=COUNT):
    return density.sample(np.random.default_rng(1), count)


def log_rho(density, x):
    return np.asarray(jax.jit(density.log_densities)(jnp.asarray(x, jnp.float32)))


@pytest.mark.parametrize("name", sorted({*DENSITIES, *EXACT} - {"gmm25", "mw52", "dw100"}))
def test_score_is_the_gradient_in_units_of_the_scale(name):
    density = check_density(find_density(name))
    y = np.random.default_rng(0).standard_normal((3, density.dim)).astype(np.float32)
    score = np.asarray(jax.jit(density.scaled_score)(y))
    along = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32)
    h = 1e-3 / math.sqrt(density.dim)
    evaluate = jax.jit(density.scaled_log_density)
    slope = (evaluate(y + h * along) - evaluate(y - h * along)) / (2 * h)
    wanted = (score * along).sum(axis=1)
    np.testing.assert_allclose(slope, wanted, rtol=0.03, atol=0.02 * np.abs(score).max() + 0.05)


@pytest.mark.parametrize("name", ["gmm9", "rings", "dw2", "image"])
def test_normaliser_by_quadrature_in_the_plane(name):
    density = find_density(name)
    side = 9.0 if name == "gmm9" else 6.5
    line = np.linspace(-side, side, 801)
    log_z = -np.inf
    for part in np.array_split(line, 4):
        grid = np.stack(np.meshgrid(part, line, indexing="ij"), axis=-1).reshape(-1, 2)
        log_z = np.logaddexp(log_z, np.logaddexp.reduce(log_rho(density, grid).astype(float)))
    assert log_z + 2 * math.log(line[1] - line[0]) == pytest.approx(density.log_z, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "log_z"),
    [
        ("rings", 2.304881),
        ("dw2", 1.211940),
        ("dw100", 91.2679),
        ("mw54", -0.541056),
        ("mw52", 42.8173),
        ("manywell", 164.69568),
        ("phi4-8-0.2-0", 39.879128),
        ("wells-1-1-40", -1.271958),  # by quadrature about its wells, at +-6.3
        ("wells-1-1-300", -2.279524),
    ],
)
def test_normalisers_known_in_closed_form_or_from_the_literature(name, log_z):
    assert find_density(name).log_z == pytest.approx(log_z, abs=1e-4)


@pytest.mark.parametrize("name", EXACT)
def test_samples_have_the_density(name):
    """E[div g + g . score] = 0 for any g (Stein); here g_i = tanh(x_i)."""
    density = find_density(name)
    x = samples(density)
    y = (x / density.scale).astype(np.float32)
    score = np.asarray(jax.jit(density.scaled_score)(y), np.float64)
    stein = (1.0 - np.tanh(y) ** 2 + np.tanh(y) * score).mean(axis=1)
    assert abs(stein.mean()) < 4.5 * stein.std() / math.sqrt(COUNT)
    for symmetry in density.symmetries:
        moved = np.asarray(symmetry(x[:500]))
        np.testing.assert_allclose(
            log_rho(density, moved), log_rho(density, x[:500]), rtol=1e-3, atol=2e-2
        )
        assert np.abs(moved - x[:500]).max() > 0.1


def exact_mixture(density, means, deviation, x):
    """log density and score of a mixture in units of x, in float64: [N], [N, D]."""
    offset = np.asarray(x, np.float64)[:, None] - means
    logits = -0.5 * (offset**2).sum(axis=-1) / deviation**2
    total = np.logaddexp.reduce(logits, axis=1)
    constant = math.log(len(means)) + 0.5 * density.dim * math.log(2.0 * math.pi * deviation**2)
    share = np.exp(logits - total[:, None])[..., None]
    return total - constant, -(share * offset).sum(axis=1) / deviation**2


@pytest.mark.parametrize("name", ["gmm9", "gmm40"])
def test_mixtures_are_those_of_double_precision_near_and_far(name):
    """Batches of 256, in which squares of far points do not cancel to the same number twice."""
    line = np.array([-5.0, 0.0, 5.0])
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    forty = np.random.default_rng(0).uniform(-40.0, 40.0, (40, 2))
    given = {"gmm9": (grid, 0.3**0.5), "gmm40": (forty, 1.0)}[name]
    density = find_density(name)
    score = jax.jit(jax.vmap(jax.grad(density.log_density)))
    near = np.float32(samples(density, 256))
    value, slope = exact_mixture(density, *given, near)
    np.testing.assert_allclose(log_rho(density, near), value, atol=2e-5)
    np.testing.assert_allclose(score(near), slope, atol=2e-5)
    between = np.float32([(given[0][0] + given[0][1]) / 2, (given[0][0] + given[0][1]) / 2])
    np.testing.assert_allclose(
        score(between), exact_mixture(density, *given, between)[1], atol=1e-4
    )
    way = np.random.default_rng(3).standard_normal((256, 2))
    for radius in (30.0, 2e4, 1e6, 1e9):
        far = np.float32(radius * way / np.linalg.norm(way, axis=1, keepdims=True))
        value, slope = exact_mixture(density, *given, far)
        np.testing.assert_allclose(log_rho(density, far), value, rtol=1e-6)
        np.testing.assert_allclose(score(far), slope, rtol=1e-5, atol=1e-5 * radius)


@pytest.mark.parametrize("name", ["gmm9", "gmm40", "rings", "mw54", "dw2"])
def test_modes_have_their_weights(name):
    density = find_density(name)
    counts = np.bincount(
        density.modes.assign(samples(density)), minlength=len(density.modes.weight)
    )
    error = np.sqrt(density.modes.weight * (1 - density.modes.weight) / COUNT)
    assert density.modes.weight.sum() == pytest.approx(1.0)
    assert (np.abs(counts / COUNT - density.modes.weight) < 5 * error + 2e-4).all()


def test_moments_of_samples():
    rings = np.linalg.norm(samples(find_density("rings")), axis=1)
    assert rings.mean() == pytest.approx(3.890556, abs=0.04)
    assert (rings**2).mean() == pytest.approx(17.015, abs=0.3)
    wells = samples(find_density("wells-3-2-4"))
    np.testing.assert_allclose(wells.std(axis=0), [1.98346, 1.98346, 1.0], rtol=0.02)
    funnel = samples(find_density("funnel"))
    assert funnel[:, 0].std() == pytest.approx(3.0, rel=0.02)
    assert (funnel[:, 1:] * np.exp(-0.5 * funnel[:, :1])).std() == pytest.approx(1.0, rel=0.02)


def test_the_narrowest_wells_have_their_width():
    """To first order a well is Gaussian, of variance 1 / (8 delta)."""
    x = np.abs(samples(find_density(f"wells-1-1-{MOST_DELTA:g}")))
    assert x.std() == pytest.approx((8.0 * MOST_DELTA) ** -0.5, rel=0.02)
    assert len(np.unique(np.round(x, 3))) > 100


def test_a_picture_is_sampled_in_proportion_to_its_values():
    values = np.array([[1.0, 3.0], [2.0, 6.0]])
    density = picture("four", values)
    x = samples(density, 100_000)
    inside = x[(np.abs(x) < HALF).all(axis=1)]
    mass, strip = values.mean() * 4 * HALF**2, EDGE * math.sqrt(0.5 * math.pi)
    beyond = 2 * HALF * strip * (4 + 8 + 3 + 9) / 2 + strip**2 * 12
    assert len(inside) / len(x) == pytest.approx(mass / (mass + beyond), abs=0.006)
    assert density.log_z == pytest.approx(math.log(mass + beyond))
    # The first axis goes right: its right half has (2 + 6) against (1 + 3) of darkness at the ends.
    right = (inside[:, 0] > 0).mean()
    assert right == pytest.approx((0.25 * 4 + 0.75 * 8) / (4 + 8), abs=0.006)
    far = x[(np.abs(x[:, 0]) > HALF)]
    assert (np.abs(far[:, 0]) - HALF).std() == pytest.approx(
        EDGE * math.sqrt(1 - 2 / math.pi), 0.03
    )


def test_the_photograph_is_upright():
    """Its sky is bright, so points lie below the middle."""
    x = samples(find_density("image"), 5000)
    assert (x[:, 1] < 0).mean() > 0.55


def test_a_gaussian_field_has_the_variances_of_its_modes():
    field = samples(phi4("field", 4, 0.2, 0.0)).reshape(COUNT, 4, 4)
    zero_mode = field.mean(axis=(1, 2)) * 4  # normalised Fourier mode k = 0
    assert zero_mode.var() == pytest.approx(1 / (2 - 8 * 0.2), rel=0.05)


def test_a_field_with_self_coupling_needs_no_free_one():
    """The zero mode of the free field has no curvature at kappa = 1/4."""
    with np.errstate(all="raise"):
        assert phi4("x", 4, 0.25, 0.02).log_z is None


def test_the_self_coupling_of_a_field():
    """The action of Lang et al. (2007), site by site."""
    side, kappa, coupling = 3, 0.3, 0.022
    phi = np.random.default_rng(0).standard_normal((side, side))
    action = 0.0
    for i in range(side):
        for j in range(side):
            next_to = phi[(i + 1) % side, j] + phi[i, (j + 1) % side]
            own = (1.0 - 2.0 * coupling) * phi[i, j] ** 2 + coupling * phi[i, j] ** 4
            action += own - 2.0 * kappa * phi[i, j] * next_to
    found = phi4("x", side, kappa, coupling).log_density(jnp.asarray(phi.ravel()))
    assert found == pytest.approx(-action, rel=1e-5)


def test_logistic_regression_integrates_to_the_evidence():
    features, labels = np.array([[-1.0], [0.2], [1.3]]), np.array([0, 1, 1])
    density = logistic_regression("small", features, labels)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((COUNT, 2))
    z = (features - features.mean(0)) / features.std(0)
    logits = w[:, :1] * z.T + w[:, 1:]
    evidence = np.prod(1 / (1 + np.exp(-(2 * labels - 1) * logits)), axis=1)
    line = np.linspace(-6, 6, 161)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    log_z = np.logaddexp.reduce(log_rho(density, grid).astype(float)) + 2 * math.log(
        line[1] - line[0]
    )
    assert log_z == pytest.approx(math.log(evidence.mean()), abs=0.02)


def test_the_posterior_of_a_linear_decoder_is_gaussian():
    """log Z = log N(image; b, A A^T + s^2 I), and the mode is that of ridge regression."""
    from scipy.stats import multivariate_normal

    rng = np.random.default_rng(0)
    a, b, s = rng.standard_normal((6, 2)) * 0.3, rng.standard_normal(6), 0.4
    image = (b + a @ rng.standard_normal(2) + s * rng.standard_normal(6)).reshape(2, 3, 1)
    decode = lambda z: (jnp.asarray(a) @ z + jnp.asarray(b)).reshape(2, 3, 1)
    density = check_density(decoder_posterior("linear", decode, 2, image, s))
    line = np.linspace(-7, 7, 201)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    log_z = np.logaddexp.reduce(log_rho(density, grid).astype(float)) + 2 * math.log(
        line[1] - line[0]
    )
    evidence = multivariate_normal(b, a @ a.T + s**2 * np.eye(6)).logpdf(image.ravel())
    assert log_z == pytest.approx(evidence, abs=1e-3)
    mode = np.linalg.solve(a.T @ a + s**2 * np.eye(2), a.T @ (image.ravel() - b))
    score = jax.grad(density.log_density)(jnp.asarray(mode, jnp.float32))
    np.testing.assert_allclose(score, 0.0, atol=1e-4)


def test_the_cox_process_at_its_prior():
    """E_prior[rho / prior] = E over fields of the Poisson likelihood, against NumPy."""
    side = 4
    points = draw_points(np.random.default_rng(3), 30.0, side)
    density = cox_process("drawn", points, side)
    assert density.dim == 16
    x = np.random.default_rng(0).standard_normal((5, 16))
    counts, _, _ = np.histogram2d(*points.T, bins=side, range=[[0, 1], [0, 1]])
    mean = math.log(len(points)) - 0.5 * 1.91
    centre = (np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), -1) + 0.5) / side
    centre = centre.reshape(-1, 2)
    gap = np.linalg.norm(centre[:, None] - centre, axis=-1)
    from scipy.stats import multivariate_normal

    prior = multivariate_normal(np.full(16, mean), 1.91 * np.exp(-33 * gap)).logpdf(x)
    wanted = prior + (counts.ravel() * x - np.exp(x) / 16).sum(axis=1)
    np.testing.assert_allclose(log_rho(density, x), wanted, rtol=1e-4)


def test_a_drawn_pattern_has_the_expected_number_of_points():
    rng = np.random.default_rng(0)
    counts = [len(draw_points(rng, 30.0, 4)) for _ in range(1500)]
    assert np.mean(counts) == pytest.approx(30.0, abs=4 * np.std(counts) / math.sqrt(1500))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gmm8", "did you mean 'density:gmm9'"),
        ("wells-3-4-2", "1 <= m <= d"),
        ("wells-3-3-0", "0 < delta <= 300"),
        ("wells-3-3-301", "0 < delta <= 300"),
        ("phi4-8-0.3-0", "kappa below 0.25"),
    ],
)
def test_bad_names(name, words):
    with pytest.raises(ValueError, match=words):
        find_density(name)


GOOD = """import jax.numpy as jnp
dim, scale = 2, 3.0
def log_density(x): return -0.5 * jnp.sum(x**2)
"""


def test_a_users_file_runs_only_if_it_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    with pytest.raises(ValueError, match=r"runs only if you name it: add --config.data.name"):
        find_density(str(path))
    permit(path)
    assert find_density(str(path)).scale == 3.0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_like_this", "cannot be imported: ModuleNotFoundError"),
        ("dim = 2", "does not define log_density"),
        (GOOD.replace("2, 3.0", "0, 1.0"), "dim=0"),
        (GOOD.replace("2, 3.0", "2, 0.0"), r"scale=0.0 of density:wrong must be a finite number"),
        (GOOD.replace("2, 3.0", "2, 'a'"), r"scale='a' of density:wrong must be a finite number"),
        (GOOD.replace("jnp.sum(x**2)", "x"), r"must return one float .* not float32 \[2\]"),
        (GOOD.replace("jnp.sum(x**2)", "jnp.sum(jnp.log(x))"), "is nan at a draw"),
        (GOOD.replace("jnp.sum(x**2)", "x @ jnp.ones(3)"), "cannot take a point of 2 numbers"),
        (
            GOOD.replace("jnp.sum(x**2)", "jnp.sum(jnp.where(x > 0, jnp.sqrt(x), x**2))"),
            "the gradient of log_density of density:wrong is nan at a draw .* does not take",
        ),
        (GOOD + "log_z = 'a'", r"wrong.py: log_z='a' must be a finite number"),
        (GOOD + "log_z = float('inf')", r"wrong.py: log_z=inf must be a finite number"),
        (GOOD + "modes = [0.0, 1.0]", r"wrong.py: modes=\[0.0, 1.0\] must be a Modes"),
        (GOOD + "sample = 3", r"wrong.py: sample\(rng, 3\) fails: TypeError"),
        (GOOD + "def sample(rng): pass", r"wrong.py: sample\(rng, 3\) fails: TypeError"),
        (
            GOOD + "def sample(rng, count): return rng.standard_normal((2, count))",
            r"wrong.py: sample\(rng, 3\) must return finite floats \[3, 2\], not float64 \[2, 3\]",
        ),
        (
            GOOD + "def sample(rng, count): return [[0.0, 1.0]] * count",
            r"wrong.py: sample\(rng, 3\) must return finite floats \[3, 2\] as an array, not a l",
        ),
        (
            GOOD + "def sample(rng, count): return jnp.full((count, 2), jnp.nan)",
            r"wrong.py: sample\(rng, 3\) must return finite floats \[3, 2\], not nan",
        ),
    ],
)
def test_mistakes_in_a_users_file(code, words, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(code)
    permit(path)
    with pytest.raises(ValueError, match=words):
        find_density(str(path))


def test_what_a_users_file_knows_is_kept(tmp_path):
    path = tmp_path / "known.py"
    path.write_text(
        "import numpy as np\nfrom fewstep.densities.density import Modes\n"
        + GOOD
        + "log_z = np.log(2.0 * np.pi)\n"
        "modes = Modes(lambda x: np.zeros(len(x), int), np.ones(1))\n"
        "def sample(rng, count): return rng.standard_normal((count, dim))\n"
    )
    permit(path)
    density = find_density(str(path))
    assert type(density.log_z) is float and density.log_z == pytest.approx(1.837877)
    assert density.modes.weight == 1.0
    assert density.sample(np.random.default_rng(0), 5).shape == (5, 2)


def test_a_folder_of_the_name_of_a_density_does_not_take_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gmm9", "wells-3-1-2", "run"):
        (tmp_path / name).mkdir()
    assert not any(map(is_place, ("gmm9", "wells-3-1-2", "other@500")))
    assert all(map(is_place, ("run", "run@500", "./gmm9")))
    assert find_density("gmm9").dim == 2


def test_points_of_a_file(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("x,y\n0.1,0.2\n0.9,0.95\n")
    assert find_density(str(path)).dim == 1600
    for text in ("x,y\n.5,.5\n.25,.75\n", ".5,.5\n.25,.75\n", "\ufeff0.5,0.5\n0.25,0.75\n"):
        path.write_text(text, encoding="utf-8")
        assert find_density(str(path)).log_density(jnp.zeros(1600)) == pytest.approx(
            float(
                cox_process("x", np.array([[0.5, 0.5], [0.25, 0.75]])).log_density(jnp.zeros(1600))
            )
        )
    path.write_text("x,y\n1.5,0.2\n")
    with pytest.raises(ValueError, match=r"coordinates in \[0, 1\)"):
        find_density(str(path))
