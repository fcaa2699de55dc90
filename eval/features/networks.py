"""Feature networks by name. NETWORKS says how each is made and what it needs; `none` means none.

`classifier` is trained on the data at first use. The user downloads the weights of `inception` and
`dinov2` and names the file by evaluate.weights or an environment variable. A missing file is an
error: no network replaces another.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax import Array

from fewstep.data import Dataset
from fewstep.data.spaces.space import Space
from fewstep.eval.features import dinov2, inception
from fewstep.eval.features.classifier import classifier
from fewstep.eval.features.dinov2_weights import PAPER_WIDTH, SIZES, dinov2_params
from fewstep.eval.features.feature_network import (
    FeatureNetwork,
    FeatureOutputs,
    pixel_features,
    point_features,
)
from fewstep.eval.features.inception_weights import WEIGHTS_NAME, WEIGHTS_SHA256, inception_params
from fewstep.models.convnet import DIMENSION
from fewstep.models.network import check_choice
from fewstep.weights.tensors import file_sha256

NONE = "none"


class NetworkInputs(NamedTuple):
    """Everything that a feature network may be made from.

    shape: of a finished sample. dataset: to train `classifier` on. root: folder where it is kept.
    read_only: another folder to look for it. weights: path of downloaded weights; None if the
    network has none.
    """

    dataset: Dataset | None
    shape: tuple[int, ...]
    root: Path
    read_only: Path | None
    weights: Path | None


class Weights(NamedTuple):
    """A file to download: its published name, and the environment variable with its path."""

    published: str
    variable: str


class NetworkEntry(NamedTuple):
    """How a feature network is made.

    dimension: (shape of a finished sample) -> that of the features; None if the weights decide.
    weights: the file that it needs, or None.
    """

    make: Callable[[NetworkInputs], FeatureNetwork]
    dimension: Callable[[tuple[int, ...]], int] | None
    weights: Weights | None = None


NETWORKS = {
    "classifier": NetworkEntry(
        lambda given: classifier(given.dataset, given.root, given.read_only).network,
        lambda shape: DIMENSION,
    ),
    "pixels": NetworkEntry(lambda given: pixel_features(given.shape), math.prod),
    "points": NetworkEntry(lambda given: point_features(given.shape), math.prod),
    "inception": NetworkEntry(
        lambda given: inception_network(given.weights),
        lambda shape: inception.FEATURES,
        Weights(WEIGHTS_NAME, "FEWSTEP_INCEPTION"),
    ),
    "dinov2": NetworkEntry(
        lambda given: dinov2_network(given.weights),
        None,
        Weights(SIZES[PAPER_WIDTH].name, "FEWSTEP_DINOV2"),
    ),
}


def feature_network(
    name: str,
    weights: str,
    *,
    dataset: Dataset | None,
    shape: tuple[int, ...],
    root: Path,
    read_only: Path | None = None,
) -> FeatureNetwork:
    """The feature network `name`, which is not `none`.

    weights: path of its weights; "" reads the environment variable. dataset: to train `classifier`
    on. root: folder where it is kept. read_only: another folder to look for it.

    Raises ValueError for an unknown name, weights that are not given or cannot be read, or a
    classifier that cannot be trained; FileNotFoundError if the file does not exist.
    """
    check_feature_network(name, weights)
    path = weights_path(name, weights) if NETWORKS[name].weights else None
    return NETWORKS[name].make(NetworkInputs(dataset, shape, root, read_only, path))


def check_takes_samples(name: str, space: Space) -> None:
    """Raises ValueError for a feature network that cannot take the samples of a space."""
    check_choice("evaluate.features", name, (*NETWORKS, NONE))
    if name not in (*space.features, NONE):
        raise ValueError(
            f"evaluate.features={name} cannot take {space.name}; use "
            f"{', '.join([*space.features, NONE])}"
        )


def check_feature_network(name: str, weights: str) -> None:
    """Raises ValueError or FileNotFoundError for an unknown name or missing weights."""
    check_choice("evaluate.features", name, (*NETWORKS, NONE))
    if name != NONE and NETWORKS[name].weights:
        weights_path(name, weights)
    elif weights:
        raise ValueError(f"evaluate.features={name} does not use evaluate.weights; leave it empty")


def weights_path(name: str, weights: str) -> Path:
    """The file with a network's weights.

    Raises ValueError if none is given, FileNotFoundError if it does not exist.
    """
    published, variable = NETWORKS[name].weights
    path = weights or os.environ.get(variable, "")
    if not path:
        without = {other for other, entry in NETWORKS.items() if not entry.weights}
        others = " or ".join(sorted(without - {"points"}))  # networks with weights read images
        raise ValueError(
            f"evaluate.features={name} needs weights: get {published}, and give its path as "
            f"evaluate.weights or ${variable}. Without it use evaluate.features={others}, or "
            f"{NONE} to only show samples"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {path}, named by "
            f"{'evaluate.weights' if weights else '$' + variable}. It should be {published}"
        )
    return Path(path)


def inception_network(path: Path) -> FeatureNetwork:
    """eval/features/inception.py with weights from a file. Its logits are the Inception score's."""

    def apply(params: inception.Params, images: Array) -> FeatureOutputs:
        outputs = inception.apply(params, images)
        return FeatureOutputs(outputs.features, outputs.logits_unbiased)

    digest = file_sha256(path)
    return FeatureNetwork(
        "inception",
        inception_params(path),
        apply,
        inception.FEATURES,
        digest,
        f"{inception.SIDE} x {inception.SIDE} by TensorFlow 1's bilinear rule, (x - 128) / 128",
        published=digest == WEIGHTS_SHA256,
    )


def dinov2_network(path: Path) -> FeatureNetwork:
    """eval/features/dinov2.py with weights from a file."""
    params, digest = dinov2_params(path), file_sha256(path)
    width = params.token.size

    def apply(params: dinov2.Params, images: Array) -> FeatureOutputs:
        return FeatureOutputs(dinov2.apply(params, images))

    return FeatureNetwork(
        "dinov2",
        params,
        apply,
        width,
        digest,
        f"{dinov2.SIDE} x {dinov2.SIDE} by Pillow's bicubic rule, ImageNet's mean and deviation",
        published=digest == SIZES[width].sha256,
    )
