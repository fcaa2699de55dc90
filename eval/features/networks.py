"""Feature networks by name: `pixels`, `classifier`, `inception`, `dinov2`; `none` is for none.

`classifier` is trained on the data at first use; weights of the last two are files that a user
downloads, named by evaluate.weights or an environment variable. None stands in for another: what
is missing is an error.
"""

import os
from pathlib import Path

from jax import Array

from fewstep.data import Dataset
from fewstep.eval.features import dinov2, inception
from fewstep.eval.features.classifier import classifier
from fewstep.eval.features.dinov2_weights import PAPER_WIDTH, SIZES, dinov2_params
from fewstep.eval.features.feature_network import FeatureNetwork, FeatureOutputs, pixels
from fewstep.eval.features.inception_weights import WEIGHTS_NAME, WEIGHTS_SHA256, inception_params
from fewstep.models.network import check_choice
from fewstep.weights.tensors import sha256

# Network -> environment variable with the path of its weights.
VARIABLES = {"inception": "FEWSTEP_INCEPTION", "dinov2": "FEWSTEP_DINOV2"}
NETWORKS = ("classifier", "pixels", "inception", "dinov2", "none")
PUBLISHED = {"inception": WEIGHTS_NAME, "dinov2": SIZES[PAPER_WIDTH].name}


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
    match name:
        case "pixels":
            return pixels(image_shape)
        case "classifier":
            return classifier(dataset, root, read_only).network
        case "inception":
            return inception_network(weights_path(name, weights))
        case _:
            return dinov2_network(weights_path(name, weights))


def check_feature_network(name: str, weights: str) -> None:
    """Raises ValueError or FileNotFoundError, before anything is read, for what is not there."""
    check_choice("evaluate.features", name, NETWORKS)
    if name in VARIABLES:
        weights_path(name, weights)
    elif weights:
        raise ValueError(f"evaluate.weights is not used by evaluate.features={name}; unset it")


def weights_path(name: str, weights: str) -> Path:
    """The file with the weights of a network. Raises ValueError if none is named."""
    path = weights or os.environ.get(VARIABLES[name], "")
    if not path:
        raise ValueError(
            f"evaluate.features={name} needs weights: get {PUBLISHED[name]}, and name the file by "
            f"evaluate.weights or ${VARIABLES[name]}. Without it samples can be measured with "
            "evaluate.features=classifier or pixels, or only shown, with none"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {path}, named by "
            f"{'evaluate.weights' if weights else '$' + VARIABLES[name]}. It should be "
            f"{PUBLISHED[name]}"
        )
    return Path(path)


def inception_network(path: Path) -> FeatureNetwork:
    """eval/features/inception.py on a file of weights; logits are those of the Inception score."""

    def apply(params: inception.Params, images: Array) -> FeatureOutputs:
        outputs = inception.apply(params, images)
        return FeatureOutputs(outputs.features, outputs.logits_unbiased)

    digest = sha256(path)
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
    params, digest = dinov2_params(path), sha256(path)
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
