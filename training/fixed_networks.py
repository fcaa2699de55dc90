"""Networks that losses read and nothing trains, other than teachers: their shapes, by name.

A distance names the one that it reads (objectives/distances.py). eval/features/fixed.py gets their
parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from fewstep.models.convnet import convnet
from fewstep.models.lpips import BACKBONES, lpips_init
from fewstep.objectives.base import Params
from fewstep.objectives.distances import CLASSIFIER, LPIPS
from fewstep.training.experiment import Experiment
from fewstep.training.sharding import replicated_sharding


def classifier_init(experiment: Experiment) -> Callable[[Any], Params]:
    """The init of the data set's classifier. Raises ValueError for data that it does not take."""
    try:
        if experiment.space.example.shape != experiment.space.shape:
            raise ValueError(f"it does not take {experiment.space.name}")
        return convnet(experiment.space.shape, experiment.num_classes).init
    except ValueError as error:
        raise ValueError(
            f"the distance `features` reads the classifier of the data: {error}; use pseudo_huber"
        ) from error


def perceptual_init(experiment: Experiment, network: str) -> Callable[[Any], Params]:
    """The init of a network of LPIPS. Raises ValueError for examples that it does not take."""
    try:
        if experiment.space.example.shape != experiment.space.shape:
            raise ValueError(f"it does not take {experiment.space.name}")
        return lpips_init(network, experiment.space.shape)
    except ValueError as error:
        raise ValueError(f"the distance `lpips` reads images: {error}; use pseudo_huber") from error


FIXED: dict[str, Callable[[Experiment], Callable[[Any], Params]]] = {
    CLASSIFIER: classifier_init,
    **{f"{LPIPS}{name}": partial(perceptual_init, network=name) for name in BACKBONES},
}


def split_name(name: str) -> tuple[str, str]:
    """(kind, source) of a fixed network: its entry in FIXED, and where its weights are, or ""."""
    kind, _, source = name.partition(":")
    return kind, source


def fixed_shapes(experiment: Experiment) -> dict[str, Any]:
    """The shapes of the parameters of each fixed network. Raises ValueError."""
    return {
        name: jax.eval_shape(FIXED[split_name(name)[0]](experiment), jax.random.key(0))
        for name in experiment.objective.fixed
    }


def abstract_fixed(experiment: Experiment, mesh: Mesh) -> dict[str, Any]:
    """The same shapes for a mesh, all of whose devices have all parameters. Raises ValueError."""
    everywhere = replicated_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        fixed_shapes(experiment),
    )
