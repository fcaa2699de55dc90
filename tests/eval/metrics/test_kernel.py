import numpy as np
import pytest

from fewstep.eval.metrics import kernel
from fewstep.eval.metrics.kernel import kernel_distance


def double_loop(x, y):
    """The definition, one pair at a time."""

    def mean(values):
        return sum(values) / len(values)

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    within = [
        mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
        for s in (x, y)
    ]
    return sum(within) - 2 * mean([k(a, b) for a in x for b in y])


def jackknife(x, y):
    """The delete-one variance of the definition, recomputed without each point."""
    without_x = [double_loop(np.delete(x, i, axis=0), y) for i in range(len(x))]
    without_y = [double_loop(x, np.delete(y, i, axis=0)) for i in range(len(y))]
    return sum(
        (len(s) - 1) / len(s) * np.sum((s - np.mean(s)) ** 2) for s in (without_x, without_y)
    )


def gaussian_mmd(mean_a, std_a, mean_b, std_b):
    """MMD^2 in one dimension: (x y + 1)^3 = sum of binomial(3, p) x^p y^p."""

    def moments(m, s):
        return np.array([1, m, m**2 + s**2, m**3 + 3 * m * s**2])

    return np.sum([1, 3, 3, 1] * (moments(mean_a, std_a) - moments(mean_b, std_b)) ** 2)


def draws(number, seed, make, **options):
    rng = np.random.default_rng(seed)
    return np.array([kernel_distance(*make(rng), **options) for _ in range(number)]).T


def mean_and_error(values):
    return values.mean(), values.std() / np.sqrt(len(values))


def test_equals_the_definition_and_its_jackknife_in_one_piece():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(9, 3)), 0.5 * rng.normal(size=(7, 3)) + 1
    value, standard_error = kernel_distance(real, generated)
    assert value == pytest.approx(double_loop(real, generated), rel=1e-10)
    assert standard_error == pytest.approx(np.sqrt(jackknife(real, generated)), rel=1e-8)


def test_rows_in_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    sets = rng.normal(size=(50, 4)), rng.normal(size=(37, 4))
    whole = kernel_distance(*sets)
    monkeypatch.setattr(kernel, "ROWS", 8)
    assert kernel_distance(*sets) == pytest.approx(whole, rel=1e-10)


def test_pieces_are_disjoint_and_hold_every_point(monkeypatch):
    seen = []
    monkeypatch.setattr(
        kernel, "mmd_and_variance", lambda x, y: seen.append((x, y)) or (float(len(seen)), 4.0)
    )
    real, generated = np.arange(47.0)[:, None], np.arange(33.0)[:, None]
    measured = kernel_distance(real, generated, block=10)
    # Three pieces of values 1, 2, 3 and variances 4: sqrt(12) / 3.
    assert measured == pytest.approx((2.0, np.sqrt(12) / 3))
    for side, expected in enumerate((real, generated)):
        pieces = [pair[side] for pair in seen]
        assert min(map(len, pieces)) >= 10
        together = np.concatenate(pieces)
        np.testing.assert_array_equal(np.sort(together, axis=0), expected)
        # Shuffled, so that rows sorted by class are not pieces of one class each.
        assert np.any(together != expected)


@pytest.mark.parametrize("block", [1000, 6])
def test_zero_on_average_for_equal_distributions(block):
    values, _ = draws(
        1000,
        2,
        lambda rng: (rng.normal(size=(12, 3)) + 1, rng.normal(size=(20, 3)) + 1),
        block=block,
    )
    mean, error = mean_and_error(values)
    assert abs(mean) < 4 * error < 1
    # The diagonal alone would add about (2 + 1)^3 / 12.
    assert 0.3 < np.mean(values < 0) < 0.8


@pytest.mark.parametrize("block", [1000, 7])
def test_gaussians_in_one_dimension(block):
    values, _ = draws(
        1000,
        3,
        lambda rng: (rng.normal(size=(15, 1)), 1.2 * rng.normal(size=(25, 1)) + 0.5),
        block=block,
    )
    mean, error = mean_and_error(values)
    expected = gaussian_mmd(0, 1, 0.5, 1.2)
    assert abs(mean - expected) < 4 * error < expected


@pytest.mark.parametrize("block", [1000, 20])
def test_standard_error_is_the_spread_over_draws_of_different_distributions(block):
    values, errors = draws(
        500, 4, lambda rng: (rng.normal(size=(100, 4)), rng.normal(size=(70, 4)) + 0.7), block=block
    )
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.12)


@pytest.mark.parametrize("block", [1000, 20])
def test_standard_error_is_up_to_root_two_too_large_for_equal_distributions(block):
    values, errors = draws(
        500, 5, lambda rng: (rng.normal(size=(100, 4)), rng.normal(size=(70, 4))), block=block
    )
    assert 1.1 < np.sqrt(np.mean(errors**2)) / values.std() < 1.6


def test_the_same_every_time_and_another_for_another_seed():
    rng = np.random.default_rng(6)
    sets = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    assert kernel_distance(*sets, block=10) == kernel_distance(*sets, block=10)
    assert kernel_distance(*sets, block=10) != kernel_distance(*sets, block=10, seed=1)


def test_errors_name_what_is_wrong():
    good = np.random.default_rng(7).normal(size=(10, 3))
    bad = good.copy()
    bad[0, 0] = np.nan
    with pytest.raises(ValueError, match="generated features: 1 of 30"):
        kernel_distance(good, bad)
    with pytest.raises(ValueError, match="real features has 2 rows; at least 3"):
        kernel_distance(good[:2], good)
    with pytest.raises(ValueError, match="3 dimensions, generated ones 2"):
        kernel_distance(good, good[:, :2])
    with pytest.raises(ValueError, match="block = 2"):
        kernel_distance(good, good, block=2)


def test_three_points_are_enough_on_either_side_and_in_a_block():
    rng = np.random.default_rng(8)
    few, more = rng.normal(size=(3, 2)), rng.normal(size=(9, 2))
    for real, generated in ((few, more), (more, few), (few, few)):
        value, error = kernel_distance(real, generated)
        assert value == pytest.approx(double_loop(real, generated), rel=1e-10)
        assert error == pytest.approx(np.sqrt(jackknife(real, generated)), rel=1e-8)
    assert np.isfinite(kernel_distance(more, more, block=3)).all()
    for real, generated in ((few[:2], more), (more, few[:2])):
        with pytest.raises(ValueError, match="has 2 rows; at least 3"):
            kernel_distance(real, generated)


def test_default_blocks_are_of_a_thousand_points():
    rng = np.random.default_rng(9)
    sets = rng.normal(size=(2000, 1)), rng.normal(size=(2100, 1))
    assert kernel_distance(*sets) == kernel_distance(*sets, block=1000, seed=0)
    assert kernel_distance(*sets) != kernel_distance(*sets, block=1001)
