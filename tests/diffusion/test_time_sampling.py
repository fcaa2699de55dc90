import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fewstep.diffusion import time_sampling as ts
from fewstep.diffusion.path import PATHS, linear, ve

KEY = jax.random.key(0)
LINEAR = linear()
COUNT = 20_000


@pytest.mark.parametrize(
    ("sampler", "distribution"),
    [
        (ts.uniform_times(LINEAR), stats.uniform()),
        (ts.uniform_times(ve(0.2, 3.0)), stats.uniform(0.2, 2.8)),
        (ts.log_normal_times(ve(1e-6, 1e6), -1.2, 1.2), stats.lognorm(1.2, scale=np.exp(-1.2))),
    ],
)
def test_samplers_follow_their_distribution(sampler, distribution):
    assert stats.kstest(np.asarray(sampler(KEY, COUNT)), distribution.cdf).statistic < 0.015


@pytest.mark.parametrize("path", [LINEAR, ve(0.2, 3.0)], ids=lambda path: path.name)
def test_logit_normal_follows_its_distribution_between_the_ends_of_the_path(path):
    t = np.asarray(ts.logit_normal_times(path, -0.4, 1.3)(KEY, COUNT), np.float64)
    fraction = (t - path.t_min) / (path.t_max - path.t_min)
    logit = np.log(fraction / (1 - fraction))
    assert stats.kstest(logit, stats.norm(-0.4, 1.3).cdf).statistic < 0.015


def test_uniform_is_stratified_and_each_row_is_uniform():
    t = np.asarray(
        jax.vmap(lambda key: ts.uniform_times(LINEAR)(key, 8))(jax.random.split(KEY, 4000))
    )
    np.testing.assert_array_equal(
        np.sort((t * 8).astype(int), axis=1), np.tile(np.arange(8), (4000, 1))
    )
    assert stats.kstest(t[:, 0], stats.uniform().cdf).statistic < 0.03


@pytest.mark.parametrize("sampler", ts.TIME_SAMPLERS)
@pytest.mark.parametrize("name", PATHS)
def test_times_fill_the_path_and_stay_on_it(name, sampler):
    path = PATHS[name]()
    t = np.asarray(ts.TIME_SAMPLERS[sampler](path)(KEY, COUNT))
    assert path.t_min <= t.min() and t.max() <= np.float32(path.t_max)
    if sampler == "uniform":
        spread = path.t_max - path.t_min
        assert t.min() - path.t_min < 1e-3 * spread and path.t_max - t.max() < 1e-3 * spread


@pytest.mark.parametrize("name", PATHS)
def test_log_normal_draws_the_same_noise_levels_on_every_path(name):
    path = PATHS[name]()
    rho = np.asarray(path.rho(ts.log_normal_times(path)(KEY, COUNT)), np.float64)
    assert np.median(rho) == pytest.approx(np.exp(-1.2), rel=0.03)


@pytest.mark.parametrize(
    ("path", "mean", "std"),
    [(ve(0.2, 1.0), -1.2, 1.2), (ve(), -1.1, 2.0), (PATHS["vp_ddpm"](), 2.0, 2.0)],
    ids=["narrow", "ve", "vp_ddpm"],
)
def test_log_normal_is_a_truncated_normal_distribution(path, mean, std):
    low, high = np.log(np.asarray(path.rho(jnp.array([path.t_min, path.t_max])), np.float64))
    distribution = stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    t = ts.log_normal_times(path, mean, std)(KEY, COUNT)
    log_rho = np.log(np.asarray(path.rho(t), np.float64))
    assert stats.kstest(log_rho, distribution.cdf).statistic < 0.015
    # No mass at the ends, as clipping would leave.
    assert ((t == path.t_min) | (t == np.float32(path.t_max))).mean() < 1e-3


@pytest.mark.parametrize(("count", "levels"), [(32, 7), (16, 7), (14, 7), (7, 7), (9, 3)])
def test_dyadic_levels_cycle_evenly(count, levels):
    rows = np.bincount(ts.dyadic_levels(count, levels), minlength=levels)
    assert rows.sum() == count
    assert rows.max() - rows.min() <= 1
    assert (np.diff(rows) <= 0).all()  # the rest goes to the coarse levels


@pytest.mark.parametrize(("count", "levels"), [(32, 7), (16, 7), (14, 7), (7, 7), (9, 3)])
def test_rows_left_over_go_to_the_largest_step(count, levels):
    rows = np.bincount(ts.ROW_LEVELS["largest"](count, levels), minlength=levels)
    assert rows.sum() == count
    assert (rows[1:] == count // levels).all()


@pytest.mark.parametrize("row_levels", ts.ROW_LEVELS.values(), ids=ts.ROW_LEVELS)
def test_too_few_rows_for_the_levels(row_levels):
    with pytest.raises(ValueError, match="6 rows are too few for 7 levels"):
        row_levels(6, 7)


def test_dyadic_steps_lie_on_the_grid_of_their_size():
    levels = ts.dyadic_levels(7000, 7)
    steps = ts.dyadic_steps(KEY, levels)
    cells = np.asarray(steps.t / steps.size)
    np.testing.assert_array_equal(cells, np.round(cells))
    np.testing.assert_array_equal(steps.size, 2.0**-levels)
    for level in range(7):
        starts = np.unique(cells[levels == level])
        np.testing.assert_array_equal(starts, np.arange(1, 2**level + 1))
    assert jnp.min(steps.t - steps.size) == 0.0


@pytest.mark.parametrize("path", [linear(), ve()], ids=lambda path: path.name)
def test_equal_karras_is_uniform_in_the_root_of_the_noise_level(path):
    t = ts.karras_times(path, power=5.0, lowest=0.2, highest=0.8)(KEY, COUNT)
    root = np.asarray(path.rho(t), np.float64) ** 0.2
    low, high = 0.002**0.2, 80.0**0.2
    fraction = (root - low) / (high - low)
    assert stats.kstest(fraction, stats.uniform(0.2, 0.6).cdf).statistic < 0.015
    with pytest.raises(ValueError, match="0 <= lowest < highest <= 1"):
        ts.karras_times(path, lowest=0.9, highest=0.8)


@pytest.mark.parametrize("sampler", [ts.logit_normal_times, ts.log_normal_times])
def test_a_deviation_is_positive(sampler):
    for std in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"time_sampler.std={std} must be positive"):
            sampler(LINEAR, std=std)
    t = np.asarray(sampler(LINEAR, 0.0, 1e-3)(KEY, 100))
    np.testing.assert_allclose(t, 0.5, atol=2e-3)  # t = 1/2 in both: sigma / alpha is 1


def test_log_normal_times_stay_on_a_path_whose_inverse_rounds_past_its_ends():
    path = ve(0.2, 0.3)
    for factor in (0.9, 1.1):
        rounding = path._replace(time_at=lambda rho, factor=factor: factor * rho)
        t = np.asarray(ts.log_normal_times(rounding)(KEY, COUNT))
        assert (t.min(), t.max()) >= (np.float32(0.2), np.float32(0.2))
        assert t.max() <= np.float32(0.3)
        assert t.min() == np.float32(0.2) if factor < 1 else t.max() == np.float32(0.3)


def test_the_part_of_a_karras_spacing_has_two_ends():
    for lowest, highest in ((0.0, 1.0), (0.0, 1e-3), (0.5, 0.6)):
        ts.karras_times(LINEAR, lowest=lowest, highest=highest)
    for lowest, highest in ((0.5, 0.5), (-1e-3, 1.0), (0.0, 1.001)):
        with pytest.raises(ValueError, match="0 <= lowest < highest <= 1"):
            ts.karras_times(LINEAR, lowest=lowest, highest=highest)


def test_defaults_are_the_papers():
    path = ve()
    for default, explicit in (
        (ts.logit_normal_times(path), ts.logit_normal_times(path, 0.0, 1.0)),
        (ts.log_normal_times(path), ts.log_normal_times(path, -1.2, 1.2)),
        (ts.karras_times(path), ts.karras_times(path, 7.0, 0.0, 1.0)),
    ):
        np.testing.assert_array_equal(default(KEY, 100), explicit(KEY, 100))
