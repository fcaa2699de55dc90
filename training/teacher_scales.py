"""Teachers that take the guidance scale as an input: at which scales, and how students read them.

A student whose network has this input too gives the teacher the scale of each row. For any other
student the teacher is one network without the input, at the student's objective.guidance_scale.
"""

from functools import partial

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fewstep.models.conditioning import fix_guidance
from fewstep.objectives.base import Params
from fewstep.training.experiment import Experiment
from fewstep.training.sharding import tree_shardings


def accepted_scales(config: ConfigDict) -> tuple[float, ...]:
    """(low, high) of the guidance scales that a run's network takes as an input; () without one."""
    reads = config.model.get("guidance_input")
    return tuple(config.objective.get("guidance_range", ())) if reads else ()


def check_scales(config: ConfigDict, teacher: ConfigDict, experiment: Experiment) -> None:
    """Raises ValueError if a student asks for guidance that its teacher does not take as an input.

    Does nothing for a teacher without this input.
    """
    scales, named = accepted_scales(teacher), f"teacher={config.teacher}"
    if tuple(config.teacher_scales) != scales:
        raise ValueError(
            f"{named} has teacher_scales={scales}, not {tuple(config.teacher_scales)}; leave "
            "teacher_scales to the teacher"
        )
    asked = (experiment.objective.guidance_scale, *config.objective.get("guidance_range", ()))
    outside = [scale for scale in asked if scales and not scales[0] <= scale <= scales[1]]
    if outside:
        raise ValueError(
            f"{named} takes guidance scales from {scales[0]:g} to {scales[1]:g}, not "
            f"{outside[0]:g}; set objective.guidance_scale, or objective.guidance_range if the "
            "method has it, inside"
        )


def at_one_scale(params: Params, config: ConfigDict, experiment: Experiment, mesh: Mesh) -> Params:
    """The teacher's parameters for a student without the input of the scale; else as they are."""
    if not config.teacher_scales or experiment.model.network.guidance_input:
        return params
    fix = partial(fix_guidance, scale=experiment.objective.guidance_scale)
    shardings = tree_shardings(jax.eval_shape(fix, params), mesh)
    return jax.jit(fix, out_shardings=shardings)(params)
