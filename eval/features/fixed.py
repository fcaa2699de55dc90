"""Parameters of the feature networks that losses read (training/fixed_networks.py)."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.data import Dataset, data_root
from fewstep.eval.features.classifier import classifier
from fewstep.models.lpips import BACKBONES, convolutions
from fewstep.objectives.base import Objective, Params
from fewstep.objectives.distances import CLASSIFIER, CODEC, LPIPS, OF_LATENTS
from fewstep.training.codec_weights import load_codec
from fewstep.training.fixed_networks import split_name
from fewstep.training.sharding import replicated_sharding
from fewstep.training.storage.identity import as_dict, flatten_fields
from fewstep.weights.layouts.lpips import read_lpips

LPIPS_WEIGHTS = "FEWSTEP_LPIPS"


def read_perceptual(
    config: ConfigDict, dataset: Dataset | None, source: str, network: str
) -> Params:
    """The parameters of a network of LPIPS. source: its files, "" for those of $FEWSTEP_LPIPS."""
    files = source or os.environ.get(LPIPS_WEIGHTS, "")
    if not files:
        fields = flatten_fields(as_dict(config.objective))
        part = next(name.rpartition(".")[0] for name, value in fields.items() if value == "lpips")
        raise FileNotFoundError(
            f"the distance lpips needs weights; name their files, with commas between them, by "
            f"--config.objective.{part}.weights=FILE,FILE or ${LPIPS_WEIGHTS}"
        )
    paths = [Path(file.strip()).expanduser() for file in files.split(",")]
    return read_lpips(paths, convolutions(network))


def read_classifier(config: ConfigDict, dataset: Dataset, source: str) -> Params:
    """The parameters of the data set's classifier, which is made and kept in data.dir."""
    return classifier(dataset, data_root(config.data.dir)).network.params


def read_decoder(config: ConfigDict, dataset: Dataset | None, source: str) -> Params:
    """The parameters that decode the run's latents."""
    images = dataset.train.images if dataset is not None and dataset.has_pictures else None
    return {"decoder": load_codec(config, images).params["decoder"]}


# (config, data set, where weights are) -> parameters, as NumPy arrays
READERS: dict[str, Callable[[ConfigDict, Dataset, str], Params]] = {
    CLASSIFIER: read_classifier,
    CODEC: read_decoder,
    **{
        f"{prefix}{LPIPS}{name}": partial(read_perceptual, network=name)
        for name in BACKBONES
        for prefix in ("", OF_LATENTS)
    },
}


def load_fixed(
    config: ConfigDict, objective: Objective, dataset: Dataset | None, mesh: Mesh
) -> dict[str, Any]:
    """The parameters of each fixed network of an objective, on every device; {} without any.

    All processes call it. Raises ValueError without a data set, and for a network that cannot be
    read or made.
    """
    if CLASSIFIER in objective.fixed and dataset is None:
        raise ValueError(
            f"the loss reads the {CLASSIFIER} of the data set, which is not here; "
            "--mode=prepare fetches it"
        )
    return {
        name: jax.device_put(READERS[kind](config, dataset, source), replicated_sharding(mesh))
        for name in objective.fixed
        for kind, source in [split_name(name)]
    }
