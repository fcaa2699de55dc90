import numpy as np
import pytest

from fewstep.eval.metrics.inception_score import inception_score


def one_hot(labels, classes):
    """Logits whose softmax is 1 at the label to the last bit."""
    return np.where(np.arange(classes) == np.asarray(labels)[:, None], 1000.0, 0.0)


def original(p):
    """The mean over images of KL, one image and one class at a time."""
    marginal = [sum(row[c] for row in p) / len(p) for c in range(len(p[0]))]
    divergences = [
        sum(q * (np.log(q) - np.log(m)) for q, m in zip(row, marginal, strict=True)) for row in p
    ]
    return np.exp(sum(divergences) / len(p))


def test_the_same_answer_for_all_images_is_1():
    assert inception_score(np.zeros((50, 7))) == pytest.approx((1.0, 0.0))
    assert inception_score(np.tile([3.0, -1.0, 0.5], (50, 1))) == pytest.approx((1.0, 0.0))


@pytest.mark.parametrize("classes", [2, 10])
def test_certain_and_even_answers_are_the_number_of_classes(classes):
    logits = one_hot(np.arange(20 * classes) % classes, classes)
    assert inception_score(logits, splits=1) == pytest.approx((classes, 0.0), rel=1e-12)


def test_certain_and_uneven_answers_are_the_exponential_of_their_entropy():
    logits = one_hot([0, 0, 0, 1], 5)
    expected = (3 / 4) ** (-3 / 4) * (1 / 4) ** (-1 / 4)
    assert inception_score(logits, splits=1).mean == pytest.approx(expected, rel=1e-12)


def test_equals_the_definition_in_each_split():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(43, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    parts = np.array_split(np.random.default_rng(0).permutation(43), 4)
    scores = [original(p[part]) for part in parts]
    measured = inception_score(logits, splits=4)
    assert measured == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    assert measured.std > 0.01


def test_ten_splits_unless_told_otherwise():
    logits = np.random.default_rng(1).normal(size=(60, 4))
    assert inception_score(logits) == inception_score(logits, splits=10)
    assert inception_score(logits) != inception_score(logits, splits=9)


def test_a_shift_of_the_logits_of_an_image_changes_nothing():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(40, 6))
    shifted = logits + 1e4 * rng.normal(size=(40, 1))
    assert inception_score(shifted) == pytest.approx(inception_score(logits), rel=1e-9)


def test_float32_logits_are_measured_in_float64():
    logits = np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32)
    assert inception_score(logits) == inception_score(logits.astype(np.float64))


def test_rows_sorted_by_class_score_as_high_as_rows_in_turn():
    labels = np.arange(2000) % 10
    in_turn = inception_score(one_hot(labels, 10))
    by_class = inception_score(one_hot(np.sort(labels), 10))
    assert in_turn.mean == pytest.approx(by_class.mean, rel=0.02)
    assert by_class.mean > 9.5


def test_errors_name_what_is_wrong():
    logits = np.zeros((10, 3))
    broken = logits.copy()
    broken[0, 0] = np.inf
    with pytest.raises(ValueError, match="logits: 1 of 30"):
        inception_score(broken)
    with pytest.raises(ValueError, match="logits has 9 rows; at least 10"):
        inception_score(logits[:9])
    with pytest.raises(ValueError, match="splits = 0"):
        inception_score(logits, splits=0)


def test_one_split_and_as_many_as_rows_are_allowed():
    logits = np.random.default_rng(0).normal(size=(10, 3))
    assert inception_score(logits, splits=1).std == 0.0
    assert inception_score(logits, splits=10).mean == pytest.approx(1.0)  # a row alone scores 1
    assert inception_score(logits) == inception_score(logits, splits=10, seed=0)
    with pytest.raises(ValueError, match="logits has 10 rows; at least 11"):
        inception_score(logits, splits=11)
