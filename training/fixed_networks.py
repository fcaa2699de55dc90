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
from fewstep.objectives.distances import CLASSIFIER, CODEC, LPIPS, OF_LATENTS
from fewstep.training.experiment import Experiment
from fewstep.training.sharding import replicated_sharding


def compared_shape(experiment: Experiment) -> tuple[int, ...]:
    """The shape of the images that a distance compares: examples, or those that latents decode to.

    Raises ValueError for latents that are not decoded.
    """
    space = experiment.space
    if space.example.shape != space.shape and CODEC not in experiment.objective.fixed:
        raise ValueError(
            f"it does not take {space.name}; set its field decoded=True to compare the images that "
            "they decode to"
        )
    return space.example.shape


def classifier_init(experiment: Experiment) -> Callable[[Any], Params]:
    """The init of the data set's classifier. Raises ValueError for data that it does not take."""
    try:
        return convnet(compared_shape(experiment), experiment.num_classes).init
    except ValueError as error:
        raise ValueError(
            f"the distance `features` reads the classifier of the data: {error}, or use "
            "pseudo_huber"
        ) from error


def perceptual_init(
    experiment: Experiment, network: str, of_latents: bool = False
) -> Callable[[Any], Params]:
    """The init of a network of LPIPS. Raises ValueError for examples that it does not take.

    of_latents: whether it compares latents as they are.
    """
    try:
        shape = experiment.space.shape if of_latents else compared_shape(experiment)
        return lpips_init(network, shape)
    except ValueError as error:
        remedy = ", set its field decoded=True" if of_latents else ""
        raise ValueError(
            f"the distance `lpips` reads images: {error}{remedy}, or use pseudo_huber"
        ) from error


def decoder_init(experiment: Experiment) -> Callable[[Any], Params]:
    """The init of what decodes the latents of the run."""
    return lambda key: {"decoder": experiment.codec.init(key)["decoder"]}


FIXED: dict[str, Callable[[Experiment], Callable[[Any], Params]]] = {
    CLASSIFIER: classifier_init,
    CODEC: decoder_init,
    **{f"{LPIPS}{name}": partial(perceptual_init, network=name) for name in BACKBONES},
    **{
        f"{OF_LATENTS}{LPIPS}{name}": partial(perceptual_init, network=name, of_latents=True)
        for name in BACKBONES
    },
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
