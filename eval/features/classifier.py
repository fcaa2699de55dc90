"""A small classifier of a data set, trained on its training split.

Distances use its penultimate activations where Inception's features say nothing, on images of 8 or
28 pixels. Label agreement and the Inception score use its logits. For digits and Fashion-MNIST the
parameters come with Fewstep, so that all machines measure with the same network. For other data
they are trained at first use and kept, so every later evaluation uses the same network:

    ROOT/classifiers/NAME-KEY.npz     the parameters, and how many held-out images they get right

KEY is a hash of everything that the parameters depend on, except the machine's rounding.

Traps of the protocol:
- Compare two distances on these features only if both name the same `weights`: where none come with
  Fewstep, two machines train two networks.
- The classifier sees what tells classes apart and nothing else.
- It errs on real images too: read label agreement beside `accuracy`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fewstep.data.arrays.dataset import NULL_LABEL, Dataset, Split
from fewstep.data.arrays.pixels import check_images
from fewstep.eval.features.feature_network import (
    HALF_RANGE,
    FeatureNetwork,
    FeatureOutputs,
    extractor,
)
from fewstep.eval.features.parameters import Params, named_arrays, params_digest, tree_from_arrays
from fewstep.models.convnet import Convnet, convnet
from fewstep.progress import note, progress_bar
from fewstep.training.sharding import AXES
from fewstep.training.storage.seal import (
    find_kept_file,
    read_sealed,
    warn_if_unwritable,
    write_sealed,
)

Array = jax.Array

FOLDER = "classifiers"
SHIPPED = Path(__file__).parent / FOLDER  # trained by this module on one CPU core
VERSION = 1  # part of the key; raise it when the network or its training changes
# Least held-out accuracy. The classifier reaches 0.98 and 0.91: the floors leave room for other
# machines, not for damaged data or wrong labels.
FLOORS = {"digits": 0.95, "fashion_mnist": 0.88}
HELD_OUT_SHARE = 10  # without a test split, one training image in so many is held out
RIGHT = "right"  # key in the file of the number of held-out images classified correctly
REMEDY = "use evaluate.features=pixels and evaluate.agreement=False"
AGAIN = "delete it to train the classifier again"


class Recipe(NamedTuple):
    """How a classifier is trained; a part of the key.

    epochs: passes over the training split; more if that makes fewer than least_updates updates.
    warmup: share of the updates in which the learning rate rises; it then falls to 0 by a cosine.
    shift: augmentation moves images by up to 1 / shift of their side, along both axes.
    """

    epochs: int = 7
    least_updates: int = 400
    batch_size: int = 128
    learning_rate: float = 4e-3
    warmup: float = 0.1
    weight_decay: float = 1e-2
    shift: int = 16
    seed: int = 0


RECIPE = Recipe()


class Classifier(NamedTuple):
    """The feature network "classifier" and its accuracy in [0, 1] on held-out images."""

    network: FeatureNetwork
    accuracy: float


class TrainedParams(NamedTuple):
    """Parameters (NumPy arrays) and the number of held-out images that they classify correctly."""

    params: Params
    right: np.int32


class Task(NamedTuple):
    """Data of a classifier: it learns `rows` of `train` and is judged on `held_out`."""

    name: str
    train: Split
    rows: np.ndarray
    held_out: Split
    num_classes: int


def classifier(dataset: Dataset, root: Path, read_only: Path | None = None) -> Classifier:
    """The classifier of a data set: ours, or read from root or read_only, or trained into root.

    All processes call it. Each trains or reads on its own device, then takes the parameters of
    process 0. Raises ValueError for data without labels, images that are not square or not of 8 to
    64 pixels, a damaged file, or an accuracy below the floor.
    """
    task, model = classification_task(dataset), untrained_model(dataset)
    path = find_classifier(task, root, read_only)
    trained = read_classifier(path, model, len(task.held_out.labels)) if path.exists() else None
    if trained is None:
        trained = train_classifier(task, model)
        if jax.process_index() == 0:
            with warn_if_unwritable(path):
                write_classifier(path, trained)
    if jax.process_count() > 1:
        trained = jax.device_get(multihost_utils.broadcast_one_to_all(trained))
    accuracy = int(trained.right) / len(task.held_out.labels)
    check_accuracy(task, accuracy)
    return Classifier(trained_network(model, trained.params), accuracy)


def classification_task(dataset: Dataset) -> Task:
    """The classifier's data; held_out is the test split, or a fixed tenth of the training split.

    A test split without labels counts as none. Raises ValueError if training images lack labels.
    """
    name, train, test, num_classes = (
        dataset.name,
        dataset.train,
        dataset.test,
        dataset.num_classes,
    )
    if num_classes < 2 or not has_labels(train):
        raise ValueError(f"{name} has images without labels, or only one class; {REMEDY}")
    if test is not None and has_labels(test):
        return Task(name, train, np.arange(len(train.labels)), test, num_classes)
    order = np.random.default_rng(RECIPE.seed).permutation(len(train.labels))
    count = max(len(order) // HELD_OUT_SHARE, 1)
    judges, rows = np.sort(order[:count]), np.sort(order[count:])
    held_out = Split(train.images[judges], train.labels[judges])
    return Task(name, train, rows, held_out, num_classes)


def has_labels(split: Split) -> bool:
    return bool(np.all(split.labels != NULL_LABEL))


def untrained_model(dataset: Dataset) -> Convnet:
    """The untrained network. Raises ValueError if it does not accept images of this shape."""
    try:
        return convnet(dataset.image_shape, dataset.num_classes)
    except ValueError as error:
        raise ValueError(f"{dataset.name}: {error}; {REMEDY}") from error


def trained_network(model: Convnet, params: Params) -> FeatureNetwork:
    """The feature network of a trained model."""

    def apply(params: Params, images: Array) -> FeatureOutputs:
        check_images(images)
        return FeatureOutputs(*model.apply(params, scale_images(images)))

    return FeatureNetwork(
        "classifier", params, apply, model.dimension, params_digest(params), "x / 127.5 - 1"
    )


def scale_images(images: Array) -> Array:
    return images / jnp.float32(HALF_RANGE) - 1.0


def train_classifier(task: Task, model: Convnet) -> TrainedParams:
    """Train by the recipe, and print the accuracy.

    Deterministic on one CPU; accelerators may add in another order.
    """
    batch_size = min(RECIPE.batch_size, len(task.rows))
    per_epoch = len(task.rows) // batch_size
    epochs = max(RECIPE.epochs, -(-RECIPE.least_updates // per_epoch))
    total, name = epochs * per_epoch, f"classifier of {task.name}"
    silent = jax.process_index() > 0
    state, update = start_training(model, total)
    shown = progress_bar(
        training_batches(task, batch_size, epochs), desc=name, total=total, silent=silent
    )
    for batch in shown:
        state = update(state, *batch)
    params = jax.device_get(state.params)
    right = count_correct(trained_network(model, params), task.held_out)
    count = len(task.held_out.labels)
    if not silent:
        line = f"{name}: {right / count:.3f} of {count} held-out images right"
        note(line)
    return TrainedParams(params, right)


class State(NamedTuple):
    """State of the training after `step` updates."""

    params: Params
    optimizer: optax.OptState
    step: Array


def start_training(model: Convnet, total: int) -> tuple[State, Callable[..., State]]:
    """The initial state, and the update: (state, images, labels) -> next state.

    total: number of updates.
    """
    warmup = int(RECIPE.warmup * total)
    rate = optax.warmup_cosine_decay_schedule(0.0, RECIPE.learning_rate, warmup, total)
    transform = optax.adamw(rate, weight_decay=RECIPE.weight_decay)
    key_init, key_train = jax.random.split(jax.random.key(RECIPE.seed))

    def loss(params: Params, images: Array, labels: Array, key: Array) -> Array:
        key_shift, key_dropout = jax.random.split(key)
        x = shift_images(scale_images(images), key_shift)
        _, logits = model.apply(params, x, train=True, rng=key_dropout)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, images: Array, labels: Array) -> State:
        key = jax.random.fold_in(key_train, state.step)
        gradient = jax.grad(loss)(state.params, images, labels, key)
        change, optimizer = transform.update(gradient, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, change), optimizer, state.step + 1)

    params = jax.jit(model.init)(key_init)
    return State(params, transform.init(params), jnp.int32(0)), update


def shift_images(x: Array, key: Array) -> Array:
    """Move each image [B, S, S, C] by a few random pixels along both axes, repeating its border."""
    reach = max(x.shape[1] // RECIPE.shift, 1)
    wide = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (len(x), 2), 0, 2 * reach + 1)

    def crop(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), x.shape[1:])

    return jax.vmap(crop)(wide, corners)


def training_batches(task: Task, size: int, epochs: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of images and labels, in a new order every epoch, without its last partial batch."""
    for epoch in range(epochs):
        order = np.random.default_rng([RECIPE.seed, epoch]).permutation(task.rows)
        for first in range(0, len(order) - size + 1, size):
            rows = np.sort(order[first : first + size])  # memory-mapped files are read forwards
            yield task.train.images[rows], np.asarray(task.train.labels[rows], np.int32)


def count_correct(network: FeatureNetwork, split: Split) -> np.int32:
    """Number of images whose largest logit is their label, computed on one device."""
    mesh = Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1), AXES)
    _, logits = extractor(network, mesh, RECIPE.batch_size)(split.images)
    return np.int32(np.sum(logits.argmax(axis=1) == split.labels))


def check_accuracy(task: Task, accuracy: float) -> None:
    """Raises ValueError if the accuracy is below the floor of the data set.

    The floor of an unknown data set is halfway between 1 and the share of its largest class. Below
    it, the features lose more of the label's information than they keep.
    """
    bare = task.name.removeprefix("tfds:").split(":")[0]
    chance = np.bincount(task.held_out.labels).max() / len(task.held_out.labels)
    floor = FLOORS.get(bare, (1 + chance) / 2)
    if accuracy < floor:
        raise ValueError(
            f"the classifier of {task.name} is right on {accuracy:.3f} of the held-out images, "
            f"and {floor:.3f} is the least to measure with; {REMEDY}, or check the labels"
        )


def find_classifier(task: Task, root: Path, read_only: Path | None) -> Path:
    """The file of a classifier: the one that comes with Fewstep, else the one kept, if any."""
    path = classifier_path(task, root)
    shipped = SHIPPED / path.name
    return shipped if shipped.exists() else find_kept_file(path, root, read_only)


def classifier_path(task: Task, root: Path) -> Path:
    """The classifier's file: root / "classifiers" / NAME-KEY.npz."""
    content = [VERSION, RECIPE, task.train.images.shape, task.num_classes]
    for array in (task.rows, *task.train, *task.held_out):
        content.append(hashlib.sha256(np.ascontiguousarray(array)).hexdigest())
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9]+", "_", task.name).strip("_")[-60:]
    return root / FOLDER / f"{readable}-{key}.npz"


def seal_source(path: Path) -> dict[str, str]:
    """The source of a classifier's file, for its seal: the key in its name."""
    return {"key": path.stem.rpartition("-")[2]}


def write_classifier(path: Path, trained: TrainedParams) -> None:
    """Write a classifier to its file."""
    write_sealed(path, seal_source(path), **{**named_arrays(trained.params), RIGHT: trained.right})


def read_classifier(path: Path, model: Convnet, held_out: int) -> TrainedParams:
    """The classifier in a file. Raises ValueError if it is damaged or does not fit `model`.

    held_out: number of images that it was judged on.
    """
    arrays = read_sealed(path, seal_source(path), AGAIN)
    try:
        params = tree_from_arrays(arrays, jax.eval_shape(model.init, jax.random.key(0)))
        right = arrays[RIGHT].item()
        if type(right) is not int or not 0 <= right <= held_out:
            raise ValueError(f"{right} of {held_out} images right")
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise ValueError("it has values that are not finite")
        return TrainedParams(params, np.int32(right))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no classifier of this data ({error}); {AGAIN}") from error
