"""Parameters of the feature networks that losses read (training/fixed_networks.py)."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from fewstep.data import Dataset
from fewstep.eval.features.classifier import classifier
from fewstep.models.lpips import BACKBONES, convolutions
from fewstep.objectives.base import Objective, Params
from fewstep.objectives.distances import CLASSIFIER, LPIPS
from fewstep.training.fixed_networks import split_name
from fewstep.training.sharding import replicated_sharding
from fewstep.weights.layouts.lpips import read_lpips

LPIPS_WEIGHTS = "FEWSTEP_LPIPS"


def read_perceptual(dataset: Dataset | None, root: Path, source: str, network: str) -> Params:
    """The parameters of a network of LPIPS. source: its files, "" for those of $FEWSTEP_LPIPS."""
    files = source or os.environ.get(LPIPS_WEIGHTS, "")
    if not files:
        raise FileNotFoundError(
            f"the distance lpips needs weights; name their files, with commas between them, by "
            f"--config.objective.distance.weights=FILE,FILE or ${LPIPS_WEIGHTS}"
        )
    paths = [Path(file.strip()).expanduser() for file in files.split(",")]
    return read_lpips(paths, convolutions(network))


# (data set, folder of kept networks, where weights are) -> parameters, as NumPy arrays
READERS: dict[str, Callable[[Dataset, Path, str], Params]] = {
    CLASSIFIER: lambda dataset, root, source: classifier(dataset, root).network.params,
    **{f"{LPIPS}{name}": partial(read_perceptual, network=name) for name in BACKBONES},
}


def load_fixed(
    objective: Objective, dataset: Dataset | None, root: Path, mesh: Mesh
) -> dict[str, Any]:
    """The parameters of each fixed network of an objective, on every device; {} without any.

    root: the folder where they are read, or made and kept. All processes call it. Raises ValueError
    without a data set, and for a network that cannot be read or made.
    """
    if CLASSIFIER in objective.fixed and dataset is None:
        raise ValueError(
            f"the loss reads the {CLASSIFIER} of the data set, which is not here; "
            "--mode=prepare fetches it"
        )
    return {
        name: jax.device_put(READERS[kind](dataset, root, source), replicated_sharding(mesh))
        for name in objective.fixed
        for kind, source in [split_name(name)]
    }
