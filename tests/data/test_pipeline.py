from itertools import islice

import numpy as np
import pytest

from fewstep.data import (
    Pairs,
    Split,
    batch_indices,
    image_batches,
    label_batches,
    pair_batches,
    pipeline,
    to_float,
)
from fewstep.data.order import ORDERS


@pytest.fixture
def split(draw_images):
    """23 images with distinct labels, 0 to 22."""
    return Split(draw_images(23, 4, 4, 3), np.arange(23, dtype=np.int32))


@pytest.fixture(params=ORDERS)
def order(request):
    return request.param


@pytest.fixture
def take(order):
    def take(split, count, **arguments):
        arguments = {"batch_size": 4, "seed": 3, "order": order} | arguments
        return list(islice(image_batches(split, **arguments), count))

    return take


def labels(taken):
    return np.concatenate([batch["label"] for batch in taken])


def mirrored(split, batch):
    """Which rows of a batch are mirrored; every row must be its image, mirrored or not."""
    x = to_float(split.images[batch["label"]])
    straight = (batch["x"] == x).all((1, 2, 3))
    flipped = (batch["x"] == x[:, :, ::-1]).all((1, 2, 3))
    assert (straight ^ flipped).all()
    return flipped


def test_a_batch_is_images_with_their_labels(take, split):
    (batch,) = take(split, 1)
    assert (batch["x"].dtype, batch["label"].dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(batch["x"], to_float(split.images[batch["label"]]))


def test_every_epoch_has_every_image_once_in_another_order(take, split):
    order = labels(take(split, 23)).reshape(4, 23)  # 23 batches of 4 are 4 epochs of 23
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(23), (4, 1)))
    assert len({tuple(epoch) for epoch in order}) == 4
    assert not (order[0] == np.arange(23)).all()


def test_the_seed_decides_the_order(take, split):
    np.testing.assert_array_equal(labels(take(split, 6)), labels(take(split, 6)))
    assert not (labels(take(split, 6)) == labels(take(split, 6, seed=4))).all()


@pytest.mark.parametrize("start_step", [0, 3, 5, 6, 17])  # an epoch ends within step 5
def test_starting_late_equals_skipping(take, split, start_step):
    whole = take(split, start_step + 3, flip=True)[start_step:]
    for late, on_time in zip(take(split, 3, flip=True, start_step=start_step), whole, strict=True):
        np.testing.assert_array_equal(late["x"], on_time["x"])
        np.testing.assert_array_equal(late["label"], on_time["label"])


def test_the_images_of_a_step_by_number(take, order, split):
    for step, batch in enumerate(take(split, 7, flip=True)):
        indices = batch_indices(23, batch_size=4, seed=3, step=step, order=order)
        np.testing.assert_array_equal(indices, batch["label"])


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_the_batch_of_one(take, split, process_count):
    local = 4 // process_count
    parts = [
        take(split, 8, flip=True, start_step=2, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for step, batch in enumerate(take(split, 8, flip=True, start_step=2)):
        for i, part in enumerate(parts):
            assert len(part[step]["label"]) == 4 // process_count
            np.testing.assert_array_equal(
                part[step]["label"], batch["label"][i * local : (i + 1) * local]
            )
            np.testing.assert_array_equal(part[step]["x"], batch["x"][i * local : (i + 1) * local])


def test_flips_are_fair_coins_and_leave_the_order_alone(take, split):
    taken = take(split, 250, flip=True)
    np.testing.assert_array_equal(labels(taken), labels(take(split, 250)))
    coins = np.concatenate([mirrored(split, batch) for batch in taken])
    assert abs(coins.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(coins))
    first_image = coins[labels(taken) == 0]  # each epoch draws anew
    assert 0 < first_image.mean() < 1


def test_no_flip_unless_asked(take, split):
    assert not any(mirrored(split, batch).any() for batch in take(split, 12))


def test_a_batch_may_be_larger_than_the_data(take, split):
    (batch,) = take(split, 1, batch_size=50)
    counts = np.bincount(batch["label"], minlength=23)
    assert counts.sum() == 50 and counts.min() >= 2  # two epochs and four of the third


def test_one_image_is_enough(take, split):
    one = Split(split.images[:1], split.labels[:1])
    np.testing.assert_array_equal(labels(take(one, 3)), np.zeros(12))


def test_images_are_gathered_from_a_memory_map(take, split, tmp_path):
    np.save(tmp_path / "images.npy", split.images)
    mapped = split._replace(images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    for ours, theirs in zip(take(mapped, 7), take(split, 7), strict=True):
        np.testing.assert_array_equal(ours["x"], theirs["x"])


def test_a_process_reads_its_own_rows_alone(split, monkeypatch):
    read = []
    monkeypatch.setattr(
        pipeline, "ordered_rows", lambda *_: lambda *rows: read.append(rows) or rows
    )
    share = {"batch_size": 64, "seed": 0, "start_step": 5, "process_count": 16}
    monkeypatch.setattr(pipeline, "_read_ahead", lambda load, start: load(start))
    for index in (0, 3):
        pipeline._gather_batches(lambda *rows: rows, 23, process_index=index, **share)
    assert read == [(5 * 64, 5 * 64 + 4), (5 * 64 + 12, 5 * 64 + 16)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 3}, "data in order 3, which this version does not have .*1, 2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 5, "process_count": 2}, "batch_size=5 .* 2 processes; use 4"),
        ({"process_index": 1}, "process_index=1"),
        ({"seed": -1}, "seed=-1"),
        ({"start_step": -1}, "start_step=-1"),
    ],
)
def test_arguments_out_of_range_are_errors(split, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_batches(split, **{"batch_size": 4, "seed": 0} | arguments)


def test_a_split_needs_as_many_images_as_labels(split):
    with pytest.raises(ValueError, match="23 and 22"):
        image_batches(split._replace(labels=split.labels[1:]), batch_size=4, seed=0)
    with pytest.raises(ValueError, match="0 and 0"):
        image_batches(Split(split.images[:0], split.labels[:0]), batch_size=4, seed=0)


def test_label_batches_depend_on_seed_and_step_alone():
    def draw(**fields):
        return list(islice(label_batches((1,) * 5, batch_size=200, seed=1, **fields), 3))

    whole = [batch["label"] for batch in draw()]
    assert whole[0].dtype == np.int32 and (whole[0] != whole[1]).any()
    assert (np.bincount(np.concatenate(whole), minlength=5) > 80).all()
    np.testing.assert_array_equal(draw(start_step=2)[0]["label"], whole[2])
    halves = [draw(process_index=i, process_count=2)[1]["label"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole[1])
    np.testing.assert_array_equal(
        next(label_batches((), batch_size=3, seed=1))["label"], [-1, -1, -1]
    )


def test_pair_batches_keep_pairs_together_and_resume(order):
    eps = np.arange(23, dtype=np.float32).reshape(23, 1, 1, 1)
    pairs = Pairs(eps, 2.0 * eps, np.arange(23, dtype=np.int32))
    share = {"batch_size": 8, "seed": 1, "order": order}
    draw = lambda **fields: list(islice(pair_batches(pairs, **share, **fields), 6))
    whole = draw()
    for batch in whole:
        np.testing.assert_array_equal(batch["eps"].ravel(), batch["label"])
        np.testing.assert_array_equal(batch["x_0"], 2.0 * batch["eps"])
    seen = np.concatenate([batch["label"] for batch in whole])
    assert sorted(seen[:23]) == list(range(23)) and (seen[:23] != np.arange(23)).any()
    np.testing.assert_array_equal(draw(start_step=4)[0]["label"], whole[4]["label"])
    halves = [draw(process_index=i, process_count=2)[1]["label"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole[1]["label"])


@pytest.mark.parametrize(
    ("allowed", "refused", "message"),
    [
        ({"batch_size": 1}, {"batch_size": 0}, "batch_size=0 .* use 1"),
        ({"seed": 2**32 - 1}, {"seed": 2**32}, "seed=4294967296"),
        ({"start_step": 0}, {"start_step": -1}, "start_step=-1"),
        (
            {"process_index": 3, "process_count": 4},
            {"process_index": 4, "process_count": 4},
            "process_index=4 is not in",
        ),
        ({"process_count": 4}, {"process_count": 3}, "batch_size=4 .* use 3"),
    ],
)
def test_arguments_have_edges(split, allowed, refused, message):
    next(image_batches(split, **{"batch_size": 4, "seed": 0} | allowed))
    with pytest.raises(ValueError, match=message):
        image_batches(split, **{"batch_size": 4, "seed": 0} | refused)


def test_labels_and_pairs_of_another_seed_come_in_another_order():
    images = np.zeros((23, 1, 1, 1), np.float32)
    pairs = Pairs(images, images, np.arange(23, dtype=np.int32))
    for made in (
        lambda **how: label_batches((1,) * 5, **how),
        lambda **how: pair_batches(pairs, **how),
    ):
        drawn = {
            tuple(next(made(batch_size=20, seed=seed, start_step=step))["label"])
            for seed in (0, 1, 2)
            for step in (0, 1, 2)
        }
        assert len(drawn) == 9
