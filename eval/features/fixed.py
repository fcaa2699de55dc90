"""Parameters of the feature networks that losses read (training/fixed_networks.py)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from fewstep.data import Dataset
from fewstep.eval.features.classifier import classifier
from fewstep.objectives.base import Objective, Params
from fewstep.objectives.distances import CLASSIFIER
from fewstep.training.sharding import replicated_sharding

# (data set, folder of kept networks) -> parameters, as NumPy arrays
READERS: dict[str, Callable[[Dataset, Path], Params]] = {
    CLASSIFIER: lambda dataset, root: classifier(dataset, root).network.params
}


def load_fixed(
    objective: Objective, dataset: Dataset | None, root: Path, mesh: Mesh
) -> dict[str, Any]:
    """The parameters of each fixed network of an objective, on every device; {} without any.

    root: the folder where they are read, or made and kept. All processes call it. Raises ValueError
    without a data set, and for a network that cannot be read or made.
    """
    if objective.fixed and dataset is None:
        raise ValueError(
            f"the loss reads the {objective.fixed[0]} of the data set, which is not here; "
            "--mode=prepare fetches it"
        )
    return {
        name: jax.device_put(READERS[name](dataset, root), replicated_sharding(mesh))
        for name in objective.fixed
    }
