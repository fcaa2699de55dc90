"""Feature networks by name: NETWORKS says how each is made and what it needs; `none` is for none.

`classifier` is trained on the data at first use; weights of `inception` and `dinov2` are files that
a user downloads, named by evaluate.weights or an environment variable. None stands in for another:
what is missing is an error.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jax import Array

from fewstep.data import Dataset
from fewstep.eval.features import dinov2, inception
from fewstep.eval.features.classifier import classifier
from fewstep.eval.features.dinov2_weights import PAPER_WIDTH, SIZES, dinov2_params
from fewstep.eval.features.feature_network import FeatureNetwork, FeatureOutputs, pixels
from fewstep.eval.features.inception_weights import WEIGHTS_NAME, WEIGHTS_SHA256, inception_params
from fewstep.models.convnet import DIMENSION
from fewstep.models.network import check_choice
from fewstep.weights.tensors import file_sha256

NONE = "none"


class Given(NamedTuple):
    """What a feature network may be made of.

    dataset, root, read_only: what one is trained on, where it is kept, and where it may be instead.
    weights: the file of an entry that has weights, else None.
    """

    dataset: Dataset | None
    image_shape: tuple[int, ...]
    root: Path
    read_only: Path | None
    weights: Path | None


class Weights(NamedTuple):
    """A file that a user downloads: which one, and the environment variable with its path."""

    published: str
    variable: str


class Entry(NamedTuple):
    """How a feature network is made.

    dimension: of its features, given the shape of an image; None where its weights decide.
    weights: the file that it needs; None for none.
    """

    make: Callable[[Given], FeatureNetwork]
    dimension: Callable[[tuple[int, ...]], int] | None
    weights: Weights | None = None


NETWORKS = {
    "classifier": Entry(
        lambda given: classifier(given.dataset, given.root, given.read_only).network,
        lambda image_shape: DIMENSION,
    ),
    "pixels": Entry(lambda given: pixels(given.image_shape), math.prod),
    "inception": Entry(
        lambda given: inception_network(given.weights),
        lambda image_shape: inception.FEATURES,
        Weights(WEIGHTS_NAME, "FEWSTEP_INCEPTION"),
    ),
    "dinov2": Entry(
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
    image_shape: tuple[int, ...],
    root: Path,
    read_only: Path | None = None,
) -> FeatureNetwork:
    """The network of that name, which is not `none`.

    weights: path of its weights; "" is the environment variable. dataset, root, read_only: what
    `classifier` is trained on, where it is kept, and where it may be instead.

    Raises ValueError for a name that does not exist, weights that are not named or not read, or a
    classifier that cannot be trained; FileNotFoundError for a file that is not there.
    """
    check_feature_network(name, weights)
    path = weights_path(name, weights) if NETWORKS[name].weights else None
    return NETWORKS[name].make(Given(dataset, image_shape, root, read_only, path))


def check_feature_network(name: str, weights: str) -> None:
    """Raises ValueError or FileNotFoundError, before anything is read, for what is not there."""
    check_choice("evaluate.features", name, (*NETWORKS, NONE))
    if name != NONE and NETWORKS[name].weights:
        weights_path(name, weights)
    elif weights:
        raise ValueError(f"evaluate.weights is not used by evaluate.features={name}; unset it")


def weights_path(name: str, weights: str) -> Path:
    """The file with the weights of a network that has some. Raises ValueError if none is named."""
    published, variable = NETWORKS[name].weights
    path = weights or os.environ.get(variable, "")
    if not path:
        others = " or ".join(other for other, entry in NETWORKS.items() if not entry.weights)
        raise ValueError(
            f"evaluate.features={name} needs weights: get {published}, and name the file by "
            f"evaluate.weights or ${variable}. Without it samples can be measured with "
            f"evaluate.features={others}, or only shown, with {NONE}"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {path}, named by "
            f"{'evaluate.weights' if weights else '$' + variable}. It should be {published}"
        )
    return Path(path)


def inception_network(path: Path) -> FeatureNetwork:
    """eval/features/inception.py on a file of weights; logits are those of the Inception score."""

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
    """eval/features/dinov2.py on a file of weights."""
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
