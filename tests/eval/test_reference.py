import numpy as np
import pytest

from fewstep.data import Dataset, Split
from fewstep.data.spaces.pixels import pixel_space
from fewstep.eval import reference as module
from fewstep.eval.features.feature_network import extractor, pixel_features
from fewstep.eval.metrics.frechet import frechet_distance, statistics
from fewstep.eval.reference import check_reference, load_reference, reference_name, reference_sha256
from fewstep.training.sharding import make_mesh
from tests.training.runs import synthetic_split

NETWORK = pixel_features((8, 8, 1))
MEASUREMENT = {"samples": 60}


def split(count, seed):
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8), np.zeros(count, np.int32))


DATASET = Dataset("made/up: data", split(230, 1), split(120, 2), 1)


@pytest.fixture(scope="module")
def extract():
    return extractor(NETWORK, make_mesh(), 64)


def features(images):
    return images.reshape(len(images), -1) / 127.5 - 1.0


@pytest.fixture
def load(extract, tmp_path):
    def load(reference, dataset=DATASET, measurement=MEASUREMENT, root=tmp_path, **folders):
        return load_reference(reference, dataset, NETWORK, extract, measurement, root, **folders)

    return load


@pytest.mark.parametrize("reference", ["train", "test", "all"])
def test_statistics_are_those_of_the_split(load, monkeypatch, reference):
    monkeypatch.setattr(module, "CHUNK", 50)
    real = load(reference)
    images = {
        "train": DATASET.train.images,
        "test": DATASET.test.images,
        "all": np.concatenate([DATASET.train.images, DATASET.test.images]),
    }[reference]
    expected = statistics(features(images))
    assert real.statistics.count == len(images)
    np.testing.assert_allclose(real.statistics.mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(real.statistics.covariance, expected.covariance, atol=1e-6)
    rows = np.sort(real.neighbourhood.sum(axis=1))
    np.testing.assert_allclose(rows, np.sort(features(images).sum(axis=1)), atol=1e-4)
    order = np.random.default_rng(module.SEED).permutation(len(images))
    chosen, rest = (features(images[part]) for part in (order[:60], order[60:]))
    floor = frechet_distance(statistics(chosen), statistics(rest))
    assert real.floor == pytest.approx(floor, rel=1e-5)
    np.testing.assert_allclose(real.train, features(DATASET.train.images), atol=1e-6)
    np.testing.assert_allclose(real.held_out, features(DATASET.test.images), atol=1e-6)


def test_few_held_out_images_are_not_used(load):
    small = DATASET._replace(test=split(50, 3))
    real = load("train", small)
    assert real.train.shape == real.held_out.shape == (0, 64)


def test_large_sets_use_part_of_their_images(load, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_NEIGHBOURHOOD", 40)
    monkeypatch.setattr(module, "LARGEST_MEMORY", 100)
    real = load("all")
    assert real.statistics.count == 350
    assert (len(real.neighbourhood), len(real.train), len(real.held_out)) == (40, 100, 100)


def test_a_reference_is_computed_once_and_read_bit_for_bit(load, monkeypatch, tmp_path):
    first = load("train")
    (file,) = (tmp_path / module.FOLDER).iterdir()
    assert file.name.startswith("made_up_data-pixels-")
    monkeypatch.setattr(module, "compute_reference", None)
    again = load("train")
    for a, b in zip(first.statistics, again.statistics, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first[1:], again[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError):
        load("train", measurement={"samples": 61})


def test_a_reference_is_computed_again_if_a_split_changes(load, tmp_path):
    load("train")
    assert len(load("train", DATASET._replace(test=split(130, 5))).held_out) == 130
    load("train", measurement={**MEASUREMENT, "labels": "none", "agreement": "ab"})
    assert len(list((tmp_path / module.FOLDER).iterdir())) == 2


def test_a_damaged_file_is_named_and_kept(load, tmp_path):
    load("train")
    (file,) = (tmp_path / module.FOLDER).iterdir()
    damaged = file.read_bytes()[:1000]
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{file} cannot be read .*; delete it"):
        load("train")
    assert file.read_bytes() == damaged
    np.savez(file, mean=np.zeros(64))
    with pytest.raises(ValueError, match="lacks covariance, .*, floor; delete it"):
        load("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros(63)}, r"mean is float64 \[63\]"),
        ({"covariance": np.zeros(64)}, r"covariance is float64 \[64\]"),
        ({"covariance": np.full((64, 64), np.inf)}, "covariance has values"),
        ({"neighbourhood": np.zeros((5, 3), np.float32)}, r"neighbourhood is float32 \[5, 3\]"),
        ({"train": np.zeros((5, 64), np.int32)}, "train is int32"),
        ({"count": np.array("x")}, "count is <U1"),
        ({"floor": np.zeros(2)}, "floor is float64"),
    ],
)
def test_a_file_that_was_edited_is_refused(load, tmp_path, change, message):
    load("train")
    (file,) = (tmp_path / module.FOLDER).iterdir()
    with np.load(file) as content:
        arrays = dict(content) | change
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=f"{file} was changed after it was written; delete it"):
        load("train")
    del arrays["seal"]
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=f"{file}.*{message}.*; delete it"):
        load("train")


def test_a_file_of_another_measurement_is_refused(load, tmp_path):
    load("train")
    (first,) = (tmp_path / module.FOLDER).iterdir()
    load("train", measurement={"samples": 61})
    (second,) = set((tmp_path / module.FOLDER).iterdir()) - {first}
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match=r"was made from something else: key .*\. delete it"):
        load("train")


def test_a_folder_that_is_only_read_is_not_written_to(load, tmp_path):
    load("train", root=tmp_path / "given")
    own, given = tmp_path / "own", tmp_path / "given"
    load("train", root=own, read_only=given)
    assert not own.exists()
    load("train", measurement={"samples": 61}, root=own, read_only=given)
    assert len(list((own / module.FOLDER).iterdir())) == 1
    assert len(list((given / module.FOLDER).iterdir())) == 1


def test_a_file_that_some_processes_do_not_see_is_not_written_where_it_is_read(
    load, monkeypatch, tmp_path
):
    load("train", root=tmp_path / "given")
    (given,) = (tmp_path / "given" / module.FOLDER).iterdir()
    before = given.stat()
    monkeypatch.setattr(module, "true_everywhere", lambda here: False)
    load("train", root=tmp_path / "own", read_only=tmp_path / "given")
    assert given.stat() == before
    assert (tmp_path / "own" / module.FOLDER / given.name).exists()


def test_published_statistics(load, tmp_path):
    path, gaussian = tmp_path / "adm.npz", statistics(features(DATASET.test.images))
    np.savez(path, mu=gaussian.mean, sigma=gaussian.covariance)
    real = load(str(path), dataset=None)
    assert frechet_distance(real.statistics, gaussian) == pytest.approx(0.0, abs=1e-9)
    assert len(real.neighbourhood) == len(real.train) == 0 and np.isnan(real.floor)
    np.savez(path, mu=gaussian.mean, sigma=gaussian.covariance, arr_0=DATASET.test.images)
    real = load(str(path), dataset=None)
    np.testing.assert_allclose(real.neighbourhood, features(DATASET.test.images), atol=1e-6)


def test_images_of_a_file_alone_are_a_reference(load, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    path, images = tmp_path / "adm.npz", DATASET.test.images
    expected = statistics(features(images))
    for others in ({}, {"mu": np.zeros(3), "sigma": np.eye(3)}):  # of other features
        np.savez(path, arr_0=images, **others)
        real = load(str(path), dataset=None)
        assert frechet_distance(real.statistics, expected) == pytest.approx(0.0, abs=1e-6)
        assert real.statistics.count == len(images)
        np.testing.assert_allclose(real.neighbourhood, features(images), atol=1e-6)


def test_images_of_a_file_in_the_order_of_their_classes(load, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 70)
    monkeypatch.setattr(module, "LARGEST_NEIGHBOURHOOD", 40)
    path = tmp_path / "adm.npz"
    black, white = np.zeros_like(DATASET.test.images), np.full_like(DATASET.test.images, 255)
    images = np.concatenate([black, white])
    for others in ({}, {"mu": np.zeros(64), "sigma": np.eye(64)}):
        np.savez(path, arr_0=images, **others)
        near = load(str(path), dataset=None).neighbourhood
        assert len(near) == 40
        assert 10 < np.isclose(near, features(white[:1])).all(axis=1).sum() < 30


def test_a_reference_of_three_images_has_no_floor(load):
    tiny = Split(DATASET.train.images[:3], DATASET.train.labels[:3])
    real = load("train", DATASET._replace(train=tiny, test=None))
    assert real.statistics.count == 3 and np.isnan(real.floor)


def test_statistics_of_other_features_are_refused(load, tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="adm.npz has statistics of 3 dimensions"):
        load(str(tmp_path / "adm.npz"), dataset=None)


PIXELS = ("pixels", pixel_space((8, 8, 1)))


def test_a_reference_has_a_name_and_a_hash(tmp_path, monkeypatch):
    assert reference_name("all", DATASET) == "made/up: data, all images"
    assert reference_name("/some/where/adm.npz", None) == "adm.npz"
    whole = reference_sha256("train", DATASET)
    monkeypatch.setattr(module, "HASH_BYTES", 100)
    assert reference_sha256("train", DATASET) == whole
    changed = DATASET.train.images.copy()
    changed[-1, -1, -1] ^= 1
    other = DATASET._replace(train=DATASET.train._replace(images=changed))
    hashes = {
        whole,
        reference_sha256("test", DATASET),
        reference_sha256("all", DATASET),
        reference_sha256("train", other),
    }
    assert len(hashes) == 4
    (tmp_path / "a.npz").write_bytes(b"abc")
    assert reference_sha256(str(tmp_path / "a.npz"), None).startswith("ba7816bf")


def test_a_reference_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="evaluate.reference=valid is none of train, test, all"):
        check_reference("valid", DATASET, *PIXELS)
    with pytest.raises(FileNotFoundError, match=r"evaluate.reference=/no/where.npz"):
        check_reference("/no/where.npz", DATASET, *PIXELS)
    with pytest.raises(ValueError, match="has no held-out split"):
        check_reference("test", DATASET._replace(test=None), *PIXELS)
    check_reference("all", Dataset("x", synthetic_split(), None, 10), *PIXELS)
