"""How shortcut models sample: by jumps of the step sizes that they are trained for.

The average velocity of a jump is what the network predicts; `velocity` replaces it for a network
that predicts something else.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from fewstep.diffusion.guidance import Condition, Predict, check_trained_scale, guide
from fewstep.diffusion.path import align
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.models.model import Model
from fewstep.objectives.base import EndPointFn, SampleFn
from fewstep.objectives.sampling import Guidance, condition_on_scale, end_point_fn, sample_fn
from fewstep.samplers.flow_map import jump
from fewstep.samplers.grids import StepsError, time_grid


def jump_sampler(
    model: Model,
    max_steps: int,
    trained_scale: float,
    guidance_range: Sequence[float] = (),
    velocity: Callable[..., Array] | None = None,
) -> SampleFn:
    """Sampling by jumps of 1 / steps from noise to data, in a power of two of steps.

    velocity: average velocity, with the arguments of `Model.predict`, which is the default.
    """

    def check_steps(steps: int) -> None:
        if not (0 < steps <= max_steps and max_steps % steps == 0):
            raise StepsError(
                f"a shortcut model samples in a power of two of steps up to {max_steps}, not in "
                f"{steps}"
            )

    def solve(predict: Predict, eps: Array, condition: Condition, keys: Array, steps: int) -> Array:
        times = time_grid(uniform_spacing(model.path), steps)
        return jump(lambda x, t, s: predict(x, t, s, condition), model.path.prior(eps), times)

    guidance = jump_guidance(max_steps, trained_scale, guidance_range)
    return sample_fn(velocity or model.predict, solve, guidance, check_steps)


def jump_guidance(
    max_steps: int, trained_scale: float, guidance_range: Sequence[float] = ()
) -> Guidance:
    """Only sampling in max_steps applies guidance.

    Larger jumps have learned the scale of training, or take a scale of guidance_range as an input.
    """

    def guidance(predict: Predict, scale: float, steps: int) -> Predict:
        if guidance_range:
            check_trained_scale(scale, trained_scale, guidance_range)
            predict = condition_on_scale(predict, scale)
        if steps == max_steps:
            return guide(predict, scale)
        if scale != trained_scale and not guidance_range:
            raise ValueError(
                f"this shortcut model was trained with guidance scale {trained_scale:g}, which its "
                f"steps larger than 1/{max_steps} have inherited; {scale:g} is possible "
                f"at {max_steps} steps only"
            )
        return predict

    return guidance


def jumps_to_end(
    model: Model,
    max_steps: int,
    trained_scale: float,
    guidance_range: Sequence[float] = (),
    velocity: Callable[..., Array] | None = None,
) -> EndPointFn:
    """The end in as few jumps as t allows, one for each bit of t in units of 1 / max_steps.

    A jump of size d is trained at multiples of d alone. The jump of the lowest bit of t comes
    first: from 3/4 to 1/2, then to 0. t moves to the nearest multiple of 1 / max_steps.

    velocity: as for `jump_sampler`.
    """
    path = model.path
    finest = (path.t_max - path.t_min) / max_steps

    def end(predict: Predict, x_t: Array, t: Array, condition: Condition) -> Array:
        def body(carry: tuple[Array, Array], size: Array) -> tuple[tuple[Array, Array], None]:
            x, cells = carry
            taken = jnp.where(cells // size % 2 == 1, size, 0)
            t, s = (path.t_min + finest * count for count in (cells, cells - size))
            moved = x - align(finest * taken, x) * predict(x, t, s, condition)
            return (jnp.where(align(taken > 0, x), moved, x), cells - taken), None

        cells = jnp.round((t - path.t_min) / finest).astype(jnp.int32)
        sizes = 2 ** jnp.arange(max_steps.bit_length())
        return jax.lax.scan(body, (x_t, cells), sizes)[0][0]

    guidance = jump_guidance(max_steps, trained_scale, guidance_range)
    return end_point_fn(velocity or model.predict, end, guidance)
