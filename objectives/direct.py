"""Direct distillation (Luhman & Luhman 2021): regression of one step to the teacher's sampler.

    L = E d( G_theta(eps), sampler(eps) ),    G_theta(eps) = D_theta(sigma eps, t_max)

sampler(eps) is the teacher's sample from the noise eps, in `pairs.steps` steps of its own solver. G
is the data that the network predicts from pure noise, in one evaluation. The target is a function
of eps, so for any distance the minimum of the loss is zero, and the student makes the teacher's
samples, never better ones. Only squared L2 is the KL divergence of their paper, between normal
distributions of unit variance around the two samples. The pairs are data: they are made once,
before the first step (training/pairs.py), so no gradient reaches a teacher.

Pairs of a reflow run (reflow.py) make this the distillation of rectified flows (Liu et al. 2023)
and the second stage of InstaFlow (Liu et al. 2024): the method `reflow_distill`. Both papers end it
with LPIPS (`objective.distance.name=lpips`, with its published files); the default is squared L2.

Where the paper, its code and this file differ: the paper has about a million pairs of CIFAR-10, of
100 steps of DDIM (`pairs.count`, `pairs.steps`). Labels condition both sides here, and the teacher
may be guided (form A); the paper has neither.
"""

from collections.abc import Mapping
from typing import Annotated

import jax
from jax import Array

from fewstep.models.model import LEAST_ALPHA_ONE_STEP, Model, check_decoding
from fewstep.objectives.base import Batch, Key, Metrics, Objective, Params, Player
from fewstep.objectives.distances import DISTANCES, Distance, squared_l2
from fewstep.objectives.distribution_matching import one_step_sampler
from fewstep.objectives.generators import generator_at
from fewstep.objectives.needs import needs
from fewstep.parts import Part


@needs()
def direct(
    model: Model,
    *,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    guidance_scale: float = 1.0,
) -> Objective:
    """The objective of direct distillation; learns from pairs of a teacher.

    distance: d, squared L2 by default.
    guidance_scale: guidance of the teacher's samples, form A.

    Raises ValueError for a prediction that says too little about the data at pure noise.
    """
    check_decoding(model, LEAST_ALPHA_ONE_STEP)
    generator, distance = generator_at(model, model.path.t_max), distance or squared_l2()

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        (key_dropout,) = jax.random.split(key, 1)
        pairs = batch["pairs"]
        condition = {"label": pairs["label"]}
        x_g = generator.generate(params, pairs["eps"], condition, train=True, rng=key_dropout)
        return distance.given(networks)(x_g, pairs["x_0"]), {}

    return Objective(
        players={"network": Player(model.network, loss)},
        followers={},
        sample=one_step_sampler(generator, guidance_scale),
        guidance_scale=guidance_scale,
        fixed=distance.networks,
        needs_teacher=True,
        reads=("pairs",),
    )
