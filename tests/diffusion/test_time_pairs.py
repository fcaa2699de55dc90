import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import erf

from fewstep.diffusion import time_pairs as tp
from fewstep.diffusion.path import PATHS, linear, ve
from fewstep.diffusion.spacing import SPACINGS, karras_spacing, uniform_spacing
from fewstep.diffusion.time_sampling import log_normal_times, uniform_times

KEY = jax.random.key(0)
COUNT = 50_000
STEP = jnp.int32(0)


@pytest.mark.parametrize(("first", "last", "total"), [(2, 150, 97), (2, 5, 40), (7, 20, 64)])
def test_square_root_curriculum_is_the_paper_s(first, last, total):
    k = np.arange(total + 1, dtype=np.float64)
    root = np.sqrt(k / total * ((last + 1) ** 2 - first**2) + first**2)
    # The root is whole at both ends; rounding keeps float64 from missing that.
    expected = np.ceil(np.round(root - 1.0, 9)) + 1
    given = jax.vmap(tp.square_root(first, last, total_steps=total))(jnp.arange(total + 1))
    np.testing.assert_array_equal(given, expected)
    assert (given[0], given[-1]) == (first, last + 1)


def test_doubling_curriculum_has_eight_equal_stages():
    # Song & Dhariwal 2023: K = 400,000 from s_0 = 10 to s_1 = 1280.
    points = jax.jit(tp.doubling(total_steps=400_000))
    for stage, expected in enumerate((11, 21, 41, 81, 161, 321, 641, 1281)):
        assert [int(points(50_000 * stage + k)) for k in (0, 49_999)] == [expected, expected]
    assert int(points(400_000)) == int(points(10_000_000)) == 1281


def test_doubling_stops_at_the_last_number_of_cells():
    # log2(floor(70 / 10)) + 1 = 3.807 stages: K' = floor(1000 / 3.807) = 262.
    points = jax.vmap(tp.doubling(10, 70, total_steps=1000))
    given = points(jnp.array([0, 261, 262, 523, 524, 785, 786, 1000]))
    np.testing.assert_array_equal(given, [11, 11, 21, 21, 41, 41, 71, 71])


def test_constant_curriculum():
    assert int(tp.constant(18)(jnp.int32(12_345))) == 18


@pytest.mark.parametrize(
    ("draw", "skip"), [(None, 1), (log_normal_times, 3)], ids=["equal", "log_normal"]
)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PATHS)
def test_grid_pairs_are_points_of_the_grid(name, spacing, skip, draw):
    path = PATHS[name]()
    chosen = SPACINGS[spacing](path)
    # Under jit: the grid is known from the step alone.
    sample = tp.grid_pairs(
        chosen, tp.square_root(2, 20, total_steps=100), draw and draw(path), skip
    )
    t, s = jax.jit(sample, static_argnums=1)(KEY, 2000, jnp.int32(25))
    points = int(tp.square_root(2, 20, total_steps=100)(25))
    grid = np.asarray(chosen.time(jnp.arange(points) / (points - 1)))
    upper, lower = (np.abs(np.asarray(a)[:, None] - grid).argmin(1) for a in (t, s))
    np.testing.assert_allclose(t, grid[upper], rtol=1e-5)
    np.testing.assert_allclose(s, grid[lower], rtol=1e-5)
    np.testing.assert_array_equal(lower, np.maximum(upper - skip, 0))
    if draw is None:
        assert set(upper) == set(range(1, points))
        assert (t.max(), s.min()) == (np.float32(path.t_max), np.float32(path.t_min))


def cell_counts(spacing, points, draw):
    """How many of COUNT pairs fall into each of the points - 1 cells."""
    t, _ = tp.grid_pairs(spacing, tp.constant(points), draw)(KEY, COUNT, STEP)
    cell = np.round(np.asarray(spacing.fraction(t)) * (points - 1)).astype(int) - 1
    return np.bincount(cell, minlength=points - 1)


@pytest.mark.parametrize("name", ["linear", "ve"])
def test_every_cell_is_equally_likely_without_a_draw(name):
    counts = cell_counts(karras_spacing(PATHS[name]()), 18, None)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("points", [11, 41])
@pytest.mark.parametrize("name", PATHS)
def test_cells_follow_the_discretised_log_normal_distribution(name, points):
    # Song & Dhariwal 2023, section 3.5: P(i) is the difference of erf over the cell, normalised.
    path, mean, std = PATHS[name](), -1.1, 2.0
    spacing = karras_spacing(path)
    edges = np.asarray(path.rho(spacing.time(jnp.arange(points) / (points - 1))), np.float64)
    with np.errstate(divide="ignore"):
        mass = np.diff(erf((np.log(edges) - mean) / (np.sqrt(2.0) * std)))
    counts = cell_counts(spacing, points, log_normal_times(path, mean, std))
    assert stats.chisquare(counts, COUNT * mass / mass.sum()).pvalue > 1e-3


def ratio_by_hand(rho, stage, q, k, b):
    """Geng et al. 2024, in NumPy: t (1 - q^-(stage + 1) (1 + k sigmoid(-b t))) over t, from 0."""
    shrink = 1.0 - (1.0 + k / (1.0 + np.exp(b * rho))) / q ** (stage + 1)
    return np.where(shrink > 0.0, shrink, 0.0)


@pytest.mark.parametrize(("q", "k", "b"), [(2.0, 8.0, 1.0), (256.0, 8.0, 1.0), (1.5, 3.0, 0.4)])
def test_shrinking_ratio_is_the_paper_s(q, k, b):
    rho = np.geomspace(0.002, 80.0, 40)
    for stage in range(5):
        given = tp.shrinking_ratio(jnp.asarray(rho, jnp.float32), stage, q, k, b)
        np.testing.assert_allclose(given, ratio_by_hand(rho, stage, q, k, b), rtol=1e-5, atol=1e-6)


def test_stage_zero_is_denoising_up_to_log_seven():
    below, above = jnp.linspace(0.0, np.log(7.0) - 1e-4, 50), jnp.linspace(np.log(7.0) + 1e-4, 80.0)
    assert (tp.shrinking_ratio(below, 0) == 0.0).all()
    assert (tp.shrinking_ratio(above, 0) > 0.0).all()


def test_shrinking_ratio_rises_with_the_stage_to_one():
    rho = jnp.geomspace(1e-4, 80.0, 60)
    ratios = np.stack([tp.shrinking_ratio(rho, stage) for stage in range(16)])
    assert (np.diff(ratios, axis=0) >= 0.0).all()
    assert (ratios[1] == 0.0).any() and (ratios[2:] > 0.0).all()
    assert (ratios[15] > 0.9999).all() and (ratios < 1.0).all()


@pytest.mark.parametrize("name", PATHS)
def test_shrinking_pairs_are_ordered_and_on_the_path(name):
    path = PATHS[name]()
    draw = log_normal_times(path, -1.1, 2.0)
    sample = jax.jit(tp.shrinking_pairs(path, draw, total_steps=80), static_argnums=1)
    for step in (0, 40, 79):
        t, s = sample(KEY, 5000, jnp.int32(step))
        np.testing.assert_allclose(t, draw(KEY, 5000), rtol=1e-4)
        assert (s >= np.float32(path.t_min)).all()
        assert ((s < t) | (t == np.float32(path.t_min))).all()


def test_shrinking_stages_change_at_their_steps():
    path, rho = ve(), jnp.array([0.1, 1.0, 5.0, 60.0])
    sample = tp.shrinking_pairs(path, lambda key, count: rho, total_steps=80, stages=8)
    for step, stage in ((0, 0), (9, 0), (10, 1), (39, 3), (40, 4), (79, 7), (80, 7), (4000, 7)):
        _, s = sample(KEY, 4, jnp.int32(step))
        expected = np.maximum(
            np.asarray(rho) * ratio_by_hand(np.asarray(rho), stage, 2, 8, 1), 0.002
        )
        np.testing.assert_allclose(s, expected, rtol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_shrinking_pairs_have_the_same_noise_levels_on_every_path(name):
    path, rho = PATHS[name](), jnp.array([0.05, 0.5, 2.0, 9.0, 70.0])
    sample = tp.shrinking_pairs(path, lambda key, count: path.time_at(rho), total_steps=8)
    _, s = sample(KEY, 5, jnp.int32(4))
    expected = np.asarray(rho) * ratio_by_hand(np.asarray(rho), 4, 2.0, 8.0, 1.0)
    np.testing.assert_allclose(path.rho(s), expected, rtol=1e-4)


@pytest.mark.parametrize("name", PATHS)
def test_a_shrinking_pair_of_pure_noise_has_two_times(name):
    path = PATHS[name]()
    ends = jnp.array([path.t_max, path.t_min], jnp.float32)
    sample = tp.shrinking_pairs(path, lambda key, count: ends, total_steps=8)
    t, s = sample(KEY, 2, jnp.int32(7))
    assert float(path.rho(s[0])) == pytest.approx(80.0 * (1.0 - 1.0 / 256.0), rel=1e-3)
    assert t[1] == s[1] == ends[1]
    gap = np.asarray(tp.noise_gap(path, t, s))
    assert (gap > 0.0).all() and np.isfinite(gap).all()


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("time", [uniform_times, log_normal_times])
def test_noise_gap_is_positive_and_finite_at_every_pair(name, time):
    path = PATHS[name]()
    grids = (tp.grid_pairs(make(path), tp.constant(1281)) for make in SPACINGS.values())
    shrinking = tp.shrinking_pairs(path, time(path), total_steps=8)
    for sample in (*grids, shrinking):
        gap = np.asarray(tp.noise_gap(path, *sample(KEY, COUNT, jnp.int32(7))))
        assert (gap > 0.0).all() and (gap <= 80.0).all()


def test_noise_gap():
    t, s = jnp.array([80.0, 3.0, 0.01]), jnp.array([71.0, 2.5, 0.002])
    np.testing.assert_allclose(tp.noise_gap(ve(), t, s), t - s, rtol=1e-5)
    # On the linear path rho = t / (1 - t); beyond 80 the relative gap counts: 80 (1 - 100 / 200).
    path, rho = linear(), jnp.array([[3.0, 200.0, jnp.inf], [1.0, 100.0, 20.0]])
    given = tp.noise_gap(path, *path.time_at(rho))
    np.testing.assert_allclose(given, [2.0, 40.0, 80.0], rtol=1e-4)
    # It joins on at 80 without a jump.
    around = path.time_at(jnp.array([[79.99, 80.01], [70.0, 70.0]]))
    np.testing.assert_allclose(tp.noise_gap(path, *around), 10.0, rtol=5e-3)


def test_fields_out_of_range():
    path = linear()
    draw = log_normal_times(path)
    with pytest.raises(ValueError, match="curriculum.points=1"):
        tp.constant(1)
    with pytest.raises(ValueError, match="curriculum.first=1"):
        tp.square_root(1, 10, total_steps=10)
    for first, last in ((0, 10), (5, 4)):
        for curriculum in (tp.square_root, tp.doubling):
            with pytest.raises(ValueError, match="1 <= first <= last"):
                curriculum(first, last, total_steps=10)
    with pytest.raises(ValueError, match="objective.skip=0"):
        tp.grid_pairs(uniform_spacing(path), tp.constant(4), skip=0)
    for fields in ({"stages": 0}, {"q": 1.0}, {"k": -1.0}, {"b": 0.0}):
        with pytest.raises(ValueError, match="stages >= 1, q > 1, k >= 0 and b > 0"):
            tp.shrinking_pairs(path, draw, total_steps=10, **fields)
    with pytest.raises(ValueError, match="take fewer stages"):
        tp.shrinking_pairs(path, draw, total_steps=10, q=256.0, stages=3)
    tp.shrinking_pairs(path, draw, total_steps=10, q=256.0, stages=2)


def test_the_edges_of_what_is_allowed():
    path = linear()
    draw = log_normal_times(path)
    for points, allowed in ((1, False), (2, True), (20_000, True), (20_001, False)):
        if allowed:
            assert int(tp.constant(points)(0)) == points
        else:
            with pytest.raises(ValueError, match=f"curriculum.points={points}: a grid has 2 to"):
                tp.constant(points)
    for curriculum in (tp.square_root, tp.doubling):
        assert int(curriculum(5, 5, total_steps=10)(10)) == 6
        curriculum(2, 19_999, total_steps=10)
        with pytest.raises(ValueError, match="curriculum.last=20000 must be 19999 or less"):
            curriculum(2, 20_000, total_steps=10)
    assert int(tp.doubling(1, 2, total_steps=10)(0)) == 2
    tp.grid_pairs(uniform_spacing(path), tp.constant(4), skip=3)
    with pytest.raises(ValueError, match="objective.skip=4 must be 1 to 3"):
        tp.grid_pairs(uniform_spacing(path), tp.constant(4), skip=4)
    for fields in ({"stages": 1}, {"q": 1.01}, {"k": 0.0}, {"b": 0.01}):
        tp.shrinking_pairs(path, draw, total_steps=10, **fields)
    tp.shrinking_pairs(path, draw, total_steps=10, stages=16)  # 2^16
    with pytest.raises(ValueError, match="take fewer stages"):
        tp.shrinking_pairs(path, draw, total_steps=10, stages=17)


@pytest.mark.parametrize("name", PATHS)
def test_the_closest_pairs_have_two_times_above_the_data_end(name):
    path, stages = PATHS[name](), int(np.log2(tp.MOST_SHRINKING))
    rho = jnp.concatenate([jnp.geomspace(1e-3, 80.0, 50_000), jnp.linspace(60.0, 100.0, 50_000)])
    times = jnp.clip(path.time_at(rho), path.t_min, path.t_max)
    pairs = tp.shrinking_pairs(path, lambda key, count: times, total_steps=8, stages=stages)
    t, s = jax.jit(pairs, static_argnums=1)(KEY, len(rho), jnp.int32(7))
    assert ((s < t) | (t == path.t_min)).all() and (t > path.t_min).mean() > 0.9


def test_a_run_shorter_than_its_curriculum_has_stages_of_one_step():
    points = jax.vmap(tp.doubling(10, 80, total_steps=1))(jnp.arange(5))
    np.testing.assert_array_equal(points, [11, 21, 41, 81, 81])


def test_a_pair_whose_times_round_to_one_has_the_smallest_gap():
    t = jnp.array([1.0, 0.5])
    np.testing.assert_allclose(tp.noise_gap(ve(), t, t), 1e-8)


def test_defaults_are_the_papers():
    steps = jnp.arange(0, 1001, 50)
    for default, explicit in (
        (tp.constant(), tp.constant(18)),
        (tp.square_root(total_steps=1000), tp.square_root(2, 150, total_steps=1000)),
        (tp.doubling(total_steps=1000), tp.doubling(10, 1280, total_steps=1000)),
    ):
        np.testing.assert_array_equal(jax.vmap(default)(steps), jax.vmap(explicit)(steps))
    path = ve()
    pairs = tp.shrinking_pairs(path, log_normal_times(path), total_steps=80)
    ours = {"stages": 8, "q": 2.0, "k": 8.0, "b": 1.0}
    explicit = tp.shrinking_pairs(path, log_normal_times(path), total_steps=80, **ours)
    for step in (0, 35, 79):
        np.testing.assert_array_equal(pairs(KEY, 50, step)[1], explicit(KEY, 50, step)[1])
    equal = tp.grid_pairs(uniform_spacing(path), tp.constant(9))
    np.testing.assert_array_equal(
        equal(KEY, 50, STEP),
        tp.grid_pairs(uniform_spacing(path), tp.constant(9), None, 1)(KEY, 50, STEP),
    )
