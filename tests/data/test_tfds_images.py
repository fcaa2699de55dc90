import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fewstep import data
from fewstep.data.tfds_images import write_tfds

ROOT = Path(__file__).parents[2]
LABEL = tfds.features.ClassLabel(num_classes=3)


def image(*shape):
    return tfds.features.Image(shape=shape)


def records(images, labels=None, name="image"):
    labelled = [{} for _ in images] if labels is None else [{"label": int(y)} for y in labels]
    return [{name: Image.fromarray(x), **y} for x, y in zip(images, labelled, strict=True)]


def by_brightness(split):
    """Images and labels in an order of their own: TFDS shuffles what it writes."""
    order = np.argsort(split.images.reshape(len(split.images), -1).sum(1), kind="stable")
    return split.images[order], split.labels[order]


def test_images_and_labels_of_both_splits(tmp_path, write_tfds_files, draw_images):
    train, test = draw_images(7, 6, 6, 3), draw_images(2, 6, 6, 3, seed=1)
    features = {"image": image(6, 6, 3), "label": LABEL, "id": tfds.features.Text()}
    write_tfds_files(
        tmp_path,
        features,
        {
            "train": [{**r, "id": "x"} for r in records(train, np.arange(7) % 3)],
            "test": [{**r, "id": "x"} for r in records(test, [2, 0])],
        },
    )
    for name in ("tiny", "tfds:tiny"):
        loaded = data.load_selection(data.Selection(name, data_dir=str(tmp_path)))
        assert (loaded.num_classes, loaded.image_shape) == (3, (6, 6, 3))
        for split, pixels, labels in [
            (loaded.train, train, np.arange(7) % 3),
            (loaded.test, test, np.array([2, 0])),
        ]:
            order = np.argsort(pixels.reshape(len(pixels), -1).sum(1), kind="stable")
            found, found_labels = by_brightness(split)
            np.testing.assert_array_equal(found, pixels[order])
            np.testing.assert_array_equal(found_labels, labels[order])


def test_transparent_images_are_composited_unless_a_run_began_before(tmp_path, write_tfds_files):
    clear = np.dstack([np.full((4, 4, 3), 9), np.zeros((4, 4))]).astype(np.uint8)
    write_tfds_files(tmp_path, {"image": image(4, 4, 4)}, {"train": records([clear])})
    arguments = {"data_dir": str(tmp_path)}
    assert (data.load_selection(data.Selection("tiny", **arguments)).train.images == 255).all()
    assert (
        data.load_selection(data.Selection("tiny", background="black", **arguments)).train.images
        == 0
    ).all()
    assert (
        data.load_selection(data.Selection("tiny", decoding=1, **arguments)).train.images == 9
    ).all()


def test_opaque_images_lie_in_one_place_by_all_rules(tmp_path, write_tfds_files, draw_images):
    write_tfds_files(
        tmp_path, {"image": image(4, 4, 3)}, {"train": records(draw_images(2, 4, 4, 3))}
    )
    files = [
        data.load_selection(
            data.Selection("tiny", data_dir=str(tmp_path), **rules)
        ).train.images.filename
        for rules in ({}, {"decoding": 1}, {"background": "red"})
    ]
    assert len(set(files)) == 1


def test_images_of_several_sizes_need_image_size(tmp_path, write_tfds_files):
    grey = [np.full((h, w), 90, np.uint8) for h, w in ((8, 16), (12, 9))]
    write_tfds_files(
        tmp_path, {"photo": image(None, None, 1)}, {"train": records(grey, None, "photo")}
    )
    with pytest.raises(ValueError, match="image_size is required for tiny"):
        data.load_selection(data.Selection("tiny", data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="image_size is required for tiny"):
        data.prepare_dataset(data.Selection("tiny", data_dir=str(tmp_path)))
    asked = {"data_dir": str(tmp_path), "image_size": 4, "channels": 3}
    folder = data.prepare_dataset(data.Selection("tiny", **asked))
    loaded = data.load_selection(data.Selection("tiny", **asked))
    assert loaded.train.images.filename == folder / "train_images.npy"
    assert loaded.num_classes == 0 and loaded.test is None
    np.testing.assert_array_equal(loaded.train.images, np.full((2, 4, 4, 3), 90))
    np.testing.assert_array_equal(loaded.train.labels, [data.NULL_LABEL] * 2)


def test_validation_is_held_out_before_test(tmp_path, write_tfds_files, draw_images):
    splits = {name: records(draw_images(n, 4, 4)) for n, name in enumerate(("test", "train"), 1)}
    splits["validation"] = records(draw_images(3, 4, 4))
    write_tfds_files(tmp_path, {"image": image(4, 4, 1)}, splits)
    loaded = data.load_selection(data.Selection("tiny", data_dir=str(tmp_path)))
    assert (len(loaded.train.labels), len(loaded.test.labels)) == (2, 3)


@pytest.mark.parametrize(
    ("features", "splits", "message"),
    [
        ({"text": tfds.features.Text()}, {"train": [{"text": "a"}]}, "0 image features"),
        (
            {"left": image(4, 4, 1), "right": image(4, 4, 1)},
            {"train": [{k: Image.new("L", (4, 4)) for k in ("left", "right")}]},
            r"2 image features \(left, right\)",
        ),
        (
            {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16)},
            {"train": [{"image": Image.new("I;16", (4, 4))}]},
            "images of tiny are uint16",
        ),
        (
            {"image": image(4, 4, 1), "kind": LABEL, "maker": LABEL},
            {"train": [{"image": Image.new("L", (4, 4)), "kind": 0, "maker": 1}]},
            r"several class labels \(kind, maker\)",
        ),
        (
            {"image": image(4, 4, 1)},
            {"whole": [{"image": Image.new("L", (4, 4))}]},
            "no split `train`, only whole",
        ),
    ],
)
def test_what_cannot_be_used_is_an_error(tmp_path, write_tfds_files, features, splits, message):
    write_tfds_files(tmp_path, features, splits)
    with pytest.raises(ValueError, match=message):
        data.load_selection(data.Selection("tiny", data_dir=str(tmp_path)))


def write_named(write_tfds_files, root, draw_images):
    """A data set with named classes, and its folder."""
    features = {"image": image(4, 4, 3), "label": tfds.features.ClassLabel(names=["ant", "bee"])}
    splits = {"train": records(draw_images(40, 4, 4, 3), np.arange(40) % 2)}
    write_tfds_files(root, features, splits)
    return next(root.glob("tiny/*"))


def test_classes_have_their_names(tmp_path, write_tfds_files, draw_images):
    write_named(write_tfds_files, tmp_path, draw_images)
    loaded = data.load_selection(data.Selection("tiny", data_dir=str(tmp_path)))
    assert loaded.classes == ("ant", "bee")
    assert loaded.identity["splits"]["train"]["count"] == 40


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[: len(b) // 2], "of tiny train cannot be read"),
        (lambda b: b"", "of tiny train cannot be read"),
        (lambda b: b[: len(b) // 2].ljust(len(b), b"\0"), "of tiny train cannot be read"),
        (None, "array_record-00000-of-00001 is missing"),
    ],
)
def test_a_damaged_source_is_named_with_a_remedy_that_works(
    tmp_path, write_tfds_files, draw_images, damage, message
):
    folder = write_named(write_tfds_files, tmp_path, draw_images)
    (file,) = folder.glob("*train*")
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    for function in (data.load_selection, data.prepare_dataset):
        with pytest.raises(ValueError, match=f"{message}.*delete {folder} and run .*=prepare"):
            function(data.Selection("tiny", data_dir=str(tmp_path)))
    shutil.rmtree(folder)
    write_named(write_tfds_files, tmp_path, draw_images)
    assert (
        len(data.load_selection(data.Selection("tiny", data_dir=str(tmp_path))).train.labels) == 40
    )


def test_a_source_that_names_other_classes_is_an_error(tmp_path, write_tfds_files, draw_images):
    folder = write_named(write_tfds_files, tmp_path, draw_images)
    (folder / "label.labels.txt").write_text("ant")
    with pytest.raises(ValueError, match="has names of 1 of its 2 classes; delete .* and run"):
        data.load_selection(data.Selection("tiny", data_dir=str(tmp_path)))


def test_what_a_killed_preparation_left_is_named(tmp_path, monkeypatch, capsys):
    leftover = tmp_path / "cifar10" / "incomplete.ABC_3.0.2"
    leftover.mkdir(parents=True)
    builder = tfds.core.GeneratorBasedBuilder
    monkeypatch.setattr(builder, "download_and_prepare", lambda *_, **__: None)
    write_tfds("cifar10", tmp_path, 0, 0)
    assert f"{leftover} is left of a preparation that was killed" in capsys.readouterr().err
    assert leftover.is_dir()


def test_another_file_format_is_an_error(tmp_path, write_tfds_files):
    splits = {"train": records([np.zeros((4, 4), np.uint8)])}
    write_tfds_files(tmp_path, {"image": image(4, 4, 1)}, splits)
    info = next(tmp_path.glob("tiny/*/dataset_info.json"))
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="cannot open tiny .* as array_record"):
        data.load_selection(data.Selection("tiny", data_dir=str(tmp_path)))


def test_a_set_that_is_not_prepared_names_the_remedy(tmp_path):
    remedy = "run main.py --mode=prepare with the same --config first"
    with pytest.raises(FileNotFoundError, match=remedy):
        data.load_selection(data.Selection("cifar10", data_dir=str(tmp_path)))


def stop_preparing(monkeypatch, error):
    def download_and_prepare(self, download_config):
        try:
            raise error
        except type(error) as cause:  # TFDS adds context in the same way
            raise RuntimeError("Failed to encode example:\n{'image': ...}") from cause

    builder = tfds.core.GeneratorBasedBuilder
    monkeypatch.setattr(builder, "download_and_prepare", download_and_prepare)


def test_preparing_with_tensorflow_says_how(tmp_path, monkeypatch):
    stop_preparing(monkeypatch, ModuleNotFoundError("No module named 'tensorflow'"))
    with pytest.raises(
        ValueError, match="pip install tensorflow-cpu.*training does not need TensorFlow"
    ):
        data.prepare_dataset(data.Selection("cifar10", data_dir=str(tmp_path)))


def test_a_missing_image_size_is_noticed_before_the_download(tmp_path, monkeypatch):
    stop_preparing(monkeypatch, AssertionError("downloaded"))
    with pytest.raises(ValueError, match="image_size is required for celeb_a"):
        data.prepare_dataset(data.Selection("celeb_a", data_dir=str(tmp_path)))


def test_another_failure_of_preparing_is_one_line(tmp_path, monkeypatch):
    stop_preparing(monkeypatch, OSError("no route to host"))
    with pytest.raises(
        ValueError, match=r"could not prepare cifar10 .*: Failed to encode example$"
    ):
        data.prepare_dataset(data.Selection("cifar10", data_dir=str(tmp_path)))


def test_reading_never_imports_tensorflow(tmp_path, write_tfds_files, draw_images):
    features = {"image": image(4, 4, 3), "label": LABEL}
    write_tfds_files(tmp_path, features, {"train": records(draw_images(3, 4, 4, 3), [0, 1, 2])})
    program = (
        "import sys, data\n"
        f"split = data.load_selection(data.Selection('tiny', data_dir={str(tmp_path)!r})).train\n"
        "batch = next(data.image_batches(split, batch_size=3, seed=0))\n"
        "print(sorted(batch['label'].tolist()), 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 1, 2] False", done.stderr
