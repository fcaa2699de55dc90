import chex
import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from fewstep.data.arrays.dataset import NULL_LABEL, Dataset, Split
from fewstep.data.digits import digits
from fewstep.eval.features import classifier as module
from fewstep.eval.features.classifier import Recipe, classifier

SHORT = Recipe(epochs=1, least_updates=2, batch_size=16)


OURS = module.SHIPPED


@pytest.fixture(scope="module", autouse=True)
def none_shipped(tmp_path_factory):
    """No classifier comes with Fewstep, so that digits are trained on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHIPPED", tmp_path_factory.mktemp("none"))
        yield


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def trained(data, root):
    return classifier(data, root)


@pytest.fixture(scope="module")
def outputs(data, trained):
    return jax.jit(trained.network.apply)(trained.network.params, data.train.images)


@pytest.fixture
def short(monkeypatch):
    """Train for two updates, without a floor."""
    monkeypatch.setattr(module, "RECIPE", SHORT)
    monkeypatch.setattr(module, "FLOORS", {"digits": 0.0, "noise": 0.0})


def noise(count=40, shape=(8, 8, 1), classes=2, test=True):
    rng = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n, dtype=np.int32) % classes
        return Split(rng.integers(0, 256, (n, *shape), np.uint8), labels)

    return Dataset("noise", split(count), split(10) if test else None, classes)


def files(root):
    return sorted((root / "classifiers").glob("*.npz"))


def no_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train_classifier", refuse)


def test_digits_are_recognised(data, trained):
    assert trained.accuracy >= 0.97
    outputs = trained.network.apply(trained.network.params, data.test.images)
    right = np.asarray(outputs.logits).argmax(axis=1) == data.test.labels
    assert trained.accuracy == np.mean(right)


def test_features_are_finite_and_vary_in_every_unit_and_direction(data, trained, outputs):
    features = np.asarray(outputs.features, np.float64)
    assert features.shape == (len(data.train.images), trained.network.dimension)
    assert outputs.features.dtype == outputs.logits.dtype == np.float32
    assert np.isfinite(features).all()
    spreads = features.std(axis=0)
    assert spreads.min() > 0.1 * spreads.max()
    spectrum = np.linalg.eigvalsh(np.cov(features.T))
    assert spectrum[0] > 1e-4 * spectrum[-1]


def test_features_of_an_image_do_not_depend_on_the_batch(data, trained, outputs):
    few = trained.network.apply(trained.network.params, data.train.images[5:8])
    np.testing.assert_allclose(few.features, outputs.features[5:8], atol=1e-5)
    np.testing.assert_allclose(few.logits, outputs.logits[5:8], atol=1e-5)


def test_the_second_call_reads_the_same_bits(data, root, trained, monkeypatch, capsys):
    no_training(monkeypatch)
    again = classifier(data, root)
    assert again.accuracy == trained.accuracy
    assert again.network.weights == trained.network.weights
    chex.assert_trees_all_equal(again.network.params, trained.network.params)
    assert "classifier of" not in capsys.readouterr().err


def test_digits_are_measured_with_our_classifier_on_every_machine(
    data, root, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "SHIPPED", OURS)
    no_training(monkeypatch)
    ours = classifier(data, root)  # which has one that was trained here
    assert ours.network.weights == (
        "792a5c9c617a8c8eabc9f513ba123900cedcd8ddb5e4548c7d3c00da040df2d0"
    )
    assert ours.accuracy >= 0.97
    assert classifier(data, tmp_path).network.weights == ours.network.weights
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "held_out", "least"),
    [("digits", (8, 8, 1), 360, 0.97), ("tfds_fashion_mnist", (28, 28, 1), 10_000, 0.9)],
)
def test_our_classifiers_are_whole(name, shape, held_out, least):
    (path,) = OURS.glob(f"{name}-*.npz")
    ours = module.read_classifier(path, module.convnet(shape, 10), held_out)
    assert ours.right >= least * held_out


def test_our_classifier_of_digits_is_one_that_the_recipe_trains(data, trained, monkeypatch):
    monkeypatch.setattr(module, "SHIPPED", OURS)
    ours = classifier(data, OURS).network
    images = data.test.images
    here, there = (n.apply(n.params, images) for n in (trained.network, ours))
    alike = np.mean(here.logits.argmax(axis=1) == there.logits.argmax(axis=1))
    assert alike > 0.95


def test_a_damaged_file_is_named_and_kept(data, root, trained, tmp_path, monkeypatch):
    no_training(monkeypatch)
    (whole,) = files(root)
    path = tmp_path / "classifiers" / whole.name
    path.parent.mkdir()
    content = whole.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    for damaged in (content[:-100], bytes(flipped), b""):
        path.write_bytes(damaged)
        pattern = f"{path} (cannot be read|is no classifier) .*delete it"
        with pytest.raises(ValueError, match=pattern):
            classifier(data, tmp_path)
        assert path.read_bytes() == damaged


def test_a_file_of_another_network_is_refused(data, root, trained, tmp_path):
    (whole,) = files(root)
    path = tmp_path / "classifiers" / whole.name
    path.parent.mkdir()
    with np.load(whole) as file:
        arrays = dict(file)
    seal = arrays["seal"]
    bias = arrays["logits/bias"]
    changes = {
        "logits/bias is float32": {"logits/bias": np.zeros(11, np.float32)},
        "logits/bias is float64": {"logits/bias": np.zeros(10)},
        "not finite": {"logits/bias": np.full_like(bias, np.nan)},
        "of 360 images right": {"right": np.int32(361)},
        "1.0 of 360 images right": {"right": np.float32(1)},
    }
    for message, change in changes.items():
        np.savez(path, **arrays | change)  # with the seal that it had
        with pytest.raises(ValueError, match="was changed after it was written; delete it"):
            classifier(data, tmp_path)
        del arrays["seal"]
        np.savez(path, **arrays | change)
        arrays["seal"] = seal
        with pytest.raises(ValueError, match=f"{message}.* delete it"):
            classifier(data, tmp_path)


def test_a_classifier_of_other_data_is_refused(data, root, trained, tmp_path, monkeypatch):
    no_training(monkeypatch)
    (whole,) = files(root)
    other = data._replace(train=data.train._replace(labels=data.train.labels[::-1]))
    path = module.classifier_path(module.classification_task(other), tmp_path)
    path.parent.mkdir()
    path.write_bytes(whole.read_bytes())
    with pytest.raises(ValueError, match=r"was made from something else: key .*\. delete it"):
        classifier(other, tmp_path)


def test_a_classifier_without_a_seal_is_read_with_a_warning(data, root, trained, tmp_path, capsys):
    (whole,) = files(root)
    path = tmp_path / "classifiers" / whole.name
    path.parent.mkdir()
    with np.load(whole) as file:
        np.savez(path, **{name: file[name] for name in file.files if name != "seal"})
    assert classifier(data, tmp_path).network.weights == trained.network.weights
    assert "has a file without a seal" in capsys.readouterr().err


def test_a_folder_that_is_only_read_gives_its_classifier(data, root, trained, tmp_path):
    given = classifier(data, tmp_path / "own", read_only=root)
    assert given.network.weights == trained.network.weights
    assert not (tmp_path / "own").exists()


def test_a_kept_classifier_below_the_floor_is_refused(data, root, trained, monkeypatch):
    monkeypatch.setattr(module, "FLOORS", {"digits": 0.999})
    with pytest.raises(ValueError, match=r"digits is right on 0\.9.*0\.999.*features=pixels"):
        classifier(data, root)


def test_labels_that_say_nothing_are_refused_and_the_file_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RECIPE", SHORT)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"noise is right on .*0\.750 is the least"):
            classifier(noise(), tmp_path)
        no_training(monkeypatch)
    assert len(files(tmp_path)) == 1


def test_the_floor_is_halfway_from_the_commonest_class(monkeypatch):
    data = noise(test=True)
    data.test.labels[:] = [0] * 8 + [1] * 2
    task = module.classification_task(data)
    module.check_accuracy(task, 0.9)
    with pytest.raises(ValueError, match=r"0\.900 is the least"):
        module.check_accuracy(task, 0.89)


@pytest.mark.parametrize("name", ["fashion_mnist", "tfds:fashion_mnist", "fashion_mnist:3.0.1"])
def test_the_floor_of_fashion_mnist_under_all_its_names(name):
    task = module.classification_task(noise()._replace(name=name))
    module.check_accuracy(task, 0.88)
    with pytest.raises(ValueError, match=r"0\.880 is the least"):
        module.check_accuracy(task, 0.87)


def test_unlabelled_data_are_refused(data, tmp_path):
    one_missing = data.train.labels.copy()
    one_missing[7] = NULL_LABEL
    for unlabelled in (
        data._replace(num_classes=0),
        data._replace(train=data.train._replace(labels=one_missing)),
    ):
        with pytest.raises(ValueError, match=r"digits .*without labels.*evaluate\.features=pixels"):
            classifier(unlabelled, tmp_path)


def test_images_of_another_size_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"noise: images of 6 pixels.*evaluate\.features=pixels"):
        classifier(noise(shape=(6, 6, 1)), tmp_path)


def test_two_fresh_roots_make_the_same_weights(data, tmp_path, short, capsys):
    first, second = (classifier(data, tmp_path / name) for name in "ab")
    assert first.network.weights == second.network.weights and len(first.network.weights) == 64
    assert first.accuracy == second.accuracy
    said = f"classifier of digits: {first.accuracy:.3f} of 360 held-out images right"
    assert capsys.readouterr().err.count(said) == 2


def test_the_weights_name_the_parameters(data, tmp_path, short, monkeypatch):
    first = classifier(data, tmp_path)
    monkeypatch.setattr(module, "RECIPE", SHORT._replace(seed=1))
    second = classifier(data, tmp_path)
    assert first.network.weights != second.network.weights
    assert len(files(tmp_path)) == 2


def test_the_file_depends_on_everything(data, tmp_path, monkeypatch):
    image, label = data.train.images.copy(), data.train.labels.copy()
    image[3, 4, 4], label[3] = image[3, 4, 4] ^ 1, (label[3] + 1) % 10
    variants = [
        data,
        data._replace(train=data.train._replace(images=image)),
        data._replace(train=data.train._replace(labels=label)),
        data._replace(num_classes=11),
        data._replace(test=None),
    ]

    def paths():
        return {module.classifier_path(module.classification_task(v), tmp_path) for v in variants}

    known = paths()
    monkeypatch.setattr(module, "RECIPE", SHORT)
    known |= paths()
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert len(known | paths()) == 3 * len(variants)


def test_other_processes_take_the_parameters_of_the_first_and_write_nothing(
    tmp_path, short, monkeypatch, capsys
):
    data = noise()
    task, model = module.classification_task(data), module.untrained_model(data)
    params = jax.tree.map(np.zeros_like, module.train_classifier(task, model).params)
    capsys.readouterr()
    sent = module.TrainedParams(params, np.int32(3))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda tree: sent)
    second = classifier(data, tmp_path)
    assert second.accuracy == 0.3
    assert second.network.weights == module.params_digest(params)
    assert not files(tmp_path) and not capsys.readouterr().err


@pytest.mark.parametrize("test", [None, "unlabelled"])
def test_without_labelled_test_images_a_tenth_is_held_out(test, tmp_path, short):
    data = noise(test=bool(test))
    if test:
        data.test.labels[:] = NULL_LABEL
    task = module.classification_task(data)
    assert len(task.rows) == 36 and len(task.held_out.labels) == 4
    together = np.concatenate([data.train.images[task.rows], task.held_out.images])
    assert {i.tobytes() for i in together} == {i.tobytes() for i in data.train.images}
    assert classifier(data, tmp_path).accuracy in {0.0, 0.25, 0.5, 0.75, 1.0}


def test_fewer_images_than_a_batch_and_three_channels(tmp_path, short):
    network = classifier(noise(count=10, shape=(9, 9, 3)), tmp_path).network
    images = np.zeros((2, 9, 9, 3), np.uint8)
    assert network.apply(network.params, images).logits.shape == (2, 2)
    with pytest.raises(ValueError, match="must be uint8"):
        network.apply(network.params, images.astype(np.float32))


def test_images_move_by_at_most_the_reach_and_stay_whole():
    image = np.zeros((8, 8, 1), np.float32)
    image[4, 4] = 1.0
    moved = np.asarray(module.shift_images(np.stack([image] * 200), jax.random.key(0)))
    assert (moved.sum(axis=(1, 2, 3)) == 1.0).all()
    places = {tuple(place) for place in np.argwhere(moved)[:, 1:3]}
    assert places == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}


def test_an_epoch_takes_every_row_once():
    task = module.classification_task(noise(count=40))
    images = [
        image.tobytes() for batch, _ in module.training_batches(task, 8, 1) for image in batch
    ]
    assert sorted(images) == sorted(image.tobytes() for image in task.train.images)
