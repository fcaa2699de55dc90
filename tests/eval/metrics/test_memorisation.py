import numpy as np
import pytest

from fewstep.eval.metrics import memorisation as module
from fewstep.eval.metrics.memorisation import memorisation


def line(values):
    return np.asarray(values, float)[:, None]


@pytest.fixture
def draw():
    rng = np.random.default_rng(0)
    return lambda count: rng.normal(size=(count, 8)) + 30


def test_equals_brute_force(draw):
    samples, train, held_out = draw(40), draw(90), draw(150)
    measured = memorisation(samples, train, held_out, quantile=0.2)
    distances = np.array([[np.linalg.norm(s - t) for t in train] for s in samples])
    others = np.array([min(np.linalg.norm(h - t) for t in train) for h in held_out])
    np.testing.assert_allclose(measured.distances, distances.min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(measured.nearest, distances.argmin(axis=1))
    assert measured.median == pytest.approx(np.median(distances.min(axis=1)))
    assert measured.held_out_median == pytest.approx(np.median(others))
    # Of 150 values, the one of rank 0.2 * 151 = 30.2, ranks counted from 1.
    low, high = np.sort(others)[29:31]
    expected = np.mean(distances.min(axis=1) < low + 0.2 * (high - low))
    assert measured.share_closer == expected > 0
    assert measured.copies == 0


def test_planted_copies_are_counted_found_and_closer(draw):
    samples, train, held_out = draw(100), draw(300), draw(400)
    planted = {3: 250, 50: 0, 99: 299, 98: 299}
    for sample, original in planted.items():
        samples[sample] = train[original]
    # A copy with noise is close, and no exact copy.
    samples[7] = train[17] + 1e-3
    measured = memorisation(samples, train, held_out, quantile=0.005)
    assert measured.copies == 4
    assert {i: measured.nearest[i] for i in planted} == planted
    assert measured.nearest[7] == 17
    np.testing.assert_array_equal(np.sort(np.argsort(measured.distances)[:5]), [3, 7, 50, 98, 99])
    assert 0.05 <= measured.share_closer <= 0.08


def test_copies_alone_have_no_distance(draw):
    train, held_out = draw(200), draw(100)
    median, held_out_median, share_closer, copies, distances, nearest = memorisation(
        train, train, held_out
    )
    assert (median, share_closer, copies) == (0.0, 1.0, 200)
    assert held_out_median > 1
    assert not distances.any()
    np.testing.assert_array_equal(nearest, np.arange(200))


@pytest.mark.some_days(3)
def test_new_draws_of_the_distribution_are_closer_with_the_probability_of_the_quantile():
    rng = np.random.default_rng(1)
    shares = [
        memorisation(
            rng.normal(size=(400, 2)),
            rng.normal(size=(50, 2)),
            rng.normal(size=(39, 2)),
            quantile=0.05,
        ).share_closer
        for _ in range(400)
    ]
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - 0.05) < 4 * error < 0.01


def test_medians_by_hand():
    measured = memorisation(line([1, 12, 25]), line([0, 10]), line([4, 6, 13]), quantile=0.25)
    assert (measured.median, measured.held_out_median) == (2.0, 4.0)
    # The 0.25 quantile of three distances is the lowest, 3: those of 1 and 2 are closer.
    assert measured.share_closer == pytest.approx(2 / 3)
    np.testing.assert_array_equal(measured.nearest, [0, 1, 1])


def test_a_flat_sample_is_near_without_a_copy(draw):
    flat = np.full((10, 8), 30.0)
    measured = memorisation(flat, draw(300), draw(300))
    assert measured.median < measured.held_out_median
    assert measured.copies == 0


def test_bytes_do_not_wrap_around():
    measured = memorisation(
        np.uint8([[1]]), np.uint8([[4]]), np.uint8([[6], [8], [9]]), quantile=0.25
    )
    assert (measured.median, measured.held_out_median) == (3.0, 4.0)


def test_rows_in_blocks_change_nothing(draw, monkeypatch):
    sets = draw(50), draw(60), draw(100)
    whole = memorisation(*sets)
    monkeypatch.setattr(module, "ROWS", 8)
    np.testing.assert_array_equal(memorisation(*sets).distances, whole.distances)


def test_errors_name_what_is_wrong(draw):
    good = draw(120)
    broken = good.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="sample features: 1 of 960"):
        memorisation(broken, good, good)
    with pytest.raises(ValueError, match="training features have 8 dimensions, held-out ones 7"):
        memorisation(good, good, good[:, :7])
    with pytest.raises(ValueError, match="98 rows; their 0.01 quantile needs at least 99"):
        memorisation(good, good, good[:98])
    assert memorisation(good, good, good[:99]).copies == 120
    with pytest.raises(ValueError, match="quantile = 1;"):
        memorisation(good, good, good, quantile=1.0)


def test_a_quantile_lies_between_its_ends(draw):
    good = draw(120)
    for quantile in (0.0, 1.0):
        with pytest.raises(ValueError, match="must be in"):
            memorisation(good, good, good, quantile=quantile)
    # The lowest of one is its 1/2 quantile.
    memorisation(good[:1], good[:1], good[1:2], quantile=0.5)
    for samples, train in ((good[:0], good), (good, good[:0])):
        with pytest.raises(ValueError, match="has 0 rows; at least 1"):
            memorisation(samples, train, good)
