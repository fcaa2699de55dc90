"""Optimizers and learning-rate schedules, all from optax."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import tree_map_with_path

from fewstep.models.song_unet import FREQUENCIES
from fewstep.training.spikes import skip_spikes
from fewstep.training.trees import keystr, leaves_by_path, put_leaves

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1)),
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, max(steps, 1)),
}

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.adamw,
    "adam": optax.adam,
    "radam": optax.radam,
}

COUNT = "count"  # of the updates in an optimizer's moments
# Names of the parts of an optimizer with heads: all but the heads, and the prefix of each head.
BODY, HEAD = "network", "head_"
# Matches paths of parameters that have no gradient and stay as they are.
FIXED = rf"(^|/){FREQUENCIES}$"


class Continuation(NamedTuple):
    """From update `start` on, the learning rate is that of a run of `updates` updates.

    schedule: a key of CONTINUED. scale: share of the learning rate.
    """

    start: int
    updates: int
    schedule: str
    scale: float = 1.0


class Rate(NamedTuple):
    """The fields of a learning rate; `starts` is the first update of each stage."""

    learning_rate: float
    schedule: str
    warmup_steps: int
    starts: Sequence[int] = (0,)

    def of_run(self, updates: int) -> optax.Schedule:
        """The rate of a run of `updates` updates; every stage starts it anew. Raises ValueError."""
        bounds = [0, *(start for start in self.starts[1:] if start < updates), updates]
        lengths = [late - early for early, late in pairwise(bounds)]
        if min(lengths) <= self.warmup_steps and self.warmup_steps > 0:
            limit = "run's updates" if len(lengths) == 1 else "updates of its shortest stage"
            raise ValueError(
                f"optimizer.warmup_steps={self.warmup_steps} must be below {min(lengths)}, the "
                f"{limit}"
            )
        fields = self.learning_rate, self.schedule, self.warmup_steps
        rates = [stage_rate(*fields, length) for length in lengths]
        return rates[0] if len(rates) == 1 else optax.join_schedules(rates, bounds[1:-1])


# What the rate does from update `start` on in a run that is continued: (rate, continuation) ->
# a schedule that counts from the beginning of the run.
def extend(rate: Rate, continued: Continuation) -> optax.Schedule:
    """As if the run had had its new length from the beginning."""
    return rate.of_run(continued.updates)


def hold(rate: Rate, continued: Continuation) -> optax.Schedule:
    """A constant share of the learning rate."""
    return optax.constant_schedule(continued.scale * rate.learning_rate)


def rewarm(rate: Rate, continued: Continuation) -> optax.Schedule:
    """The warm-up and the schedule once more, over the updates that are left."""
    again = rate._replace(learning_rate=continued.scale * rate.learning_rate, starts=(0,))
    schedule = again.of_run(continued.updates - continued.start)
    return lambda count: schedule(count - continued.start)


CONTINUED: dict[str, Callable[[Rate, Continuation], optax.Schedule]] = {
    function.__name__: function for function in (extend, hold, rewarm)
}


class Optimizer(NamedTuple):
    """A gradient transformation and its schedule; both count the updates of one player.

    spike_factor: as in `build_optimizer`; 0 if the transformation skips no spikes. spike_cap: most
    skipped updates of a stage.
    """

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule
    spike_factor: float = 0.0
    spike_cap: int = 0


def build_optimizer(
    *,
    name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    updates: int,
    starts: Sequence[int] = (0,),
    spike_factor: float = 0.0,
    spike_window: int = 128,
    spike_cap: int = 10,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    continued: Sequence[Continuation] = (),
) -> Optimizer:
    """The optimizer of one player, for a run of `updates` updates.

    The learning rate rises linearly from 0 over `warmup_steps` and then follows the schedule;
    cosine and linear end at 0. Every stage starts the rate anew.

    starts: first update of each stage, [0, ...]. clip_norm: largest global gradient norm; 0 never
    clips. weight_decay: decoupled, on all parameters but FIXED ones; adamw only.
    spike_factor: skips an update whose loss or gradient norm lies more than this many standard
    deviations above the mean of the last `spike_window` (training/spikes.py); 0 never skips.
    spike_cap: a run ends after more skipped updates than this in a stage.
    heads: by the name of a head, the fields above that differ for its parameters. Each head, and
    the rest of the network, is then clipped by its own norm; spikes are still detected for all
    parameters together.
    continued: what the rate does in a run that was continued with other lengths than `updates`.

    Raises ValueError for fields that do not fit together.
    """
    if spike_factor < 0.0 or spike_window < 2 or spike_cap < 0:
        raise ValueError(
            "optimizer needs spike_factor >= 0, spike_window >= 2 and spike_cap >= 0, not "
            f"{spike_factor:g}, {spike_window} and {spike_cap}"
        )
    fields = {
        "name": name,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "b1": b1,
        "b2": b2,
        "eps": eps,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "updates": updates,
        "starts": starts,
        "continued": continued,
    }
    transform, rate = transform_and_rate(**fields)
    if heads:
        transforms = {
            HEAD + head: transform_and_rate(**fields | own)[0] for head, own in heads.items()
        }
        transforms[BODY] = transform
        transform = optax.partition(transforms, partial(part_names, heads=heads))
    transform = hold_fixed(transform)
    if spike_factor:
        transform = skip_spikes(transform, spike_factor, spike_window)
    return Optimizer(transform, rate, spike_factor, spike_cap)


def part_names(params: Mapping[str, Any], heads: Iterable[str]) -> dict[str, str]:
    """The part, a head or BODY, that each entry of a network's parameters belongs to."""
    return {name: HEAD + name if name in heads else BODY for name in params}


def hold_fixed(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` with zero updates of FIXED parameters, which weight decay would shrink.

    A mask of optax would change the structure of the state, and so that of checkpoints.
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        gradient: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        updates, state = inner.update(gradient, state, params, **extra)
        return tree_map_with_path(zero_if_fixed, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def zero_if_fixed(path: tuple, leaf: Array) -> Array:
    """Zeros for a FIXED parameter, else the leaf."""
    return jnp.zeros_like(leaf) if re.search(FIXED, keystr(path)) else leaf


def transform_and_rate(
    name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    updates: int,
    starts: Sequence[int],
    continued: Sequence[Continuation],
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation and the learning rate of `build_optimizer`, without skipped spikes."""
    if weight_decay and name != "adamw":
        raise ValueError(
            f"optimizer.weight_decay is decoupled decay, which {name} does not have; "
            "use optimizer.name=adamw or weight_decay=0"
        )
    fields = Rate(learning_rate, schedule, warmup_steps, starts)
    rate = fields.of_run(updates)
    for part in continued if schedule != "constant" else ():
        rate = switch_rate(rate, CONTINUED[part.schedule](fields, part), part.start)
    decoupled = {"weight_decay": weight_decay} if name == "adamw" else {}
    transform = OPTIMIZERS[name](rate, b1=b1, b2=b2, eps=eps, **decoupled)
    if clip_norm:
        transform = optax.chain(optax.clip_by_global_norm(clip_norm), transform)
    return transform, rate


def switch_rate(early: optax.Schedule, late: optax.Schedule, start: int) -> optax.Schedule:
    """`early` before update `start`, `late` from then on."""
    return lambda count: jnp.where(count < start, early(count), late(count))


def stage_rate(
    learning_rate: float, schedule: str, warmup_steps: int, updates: int
) -> optax.Schedule:
    """The learning rate of a stage of `updates` updates, counted from 0 at its start."""
    decay = SCHEDULES[schedule](learning_rate, updates - warmup_steps)
    if not warmup_steps:
        return decay
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([rise, decay], [warmup_steps])


def is_adam(state: Any) -> bool:
    """Whether a node of an optimizer's state has moments."""
    return isinstance(state, optax.ScaleByAdamState)


def moments_of(state: Any) -> dict[str, Any]:
    """The moments in an optimizer's state by path of the parameter, and their count."""
    found: dict[str, Any] = {"mu": {}, "nu": {}}
    for node in filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam)):
        found = {name: found[name] | leaves_by_path(getattr(node, name)) for name in ("mu", "nu")}
        found[COUNT] = node.count
    return found


def with_moments(state: Any, moments: Mapping[str, Any] | None) -> Any:
    """An optimizer's state with these moments and their count; unchanged for None.

    moments: as of `moments_of`, of some or all parameters.
    """
    if moments is None:
        return state

    def place(node: Any) -> Any:
        if not is_adam(node):
            return node
        mu, nu = (put_leaves(getattr(node, name), moments[name]) for name in ("mu", "nu"))
        return node._replace(count=moments[COUNT], mu=mu, nu=nu)

    return jax.tree.map(place, state, is_leaf=is_adam)


def restart_optimizer(
    transform: optax.GradientTransformation, params: optax.Params, updates: Array
) -> Any:
    """A new state of a transformation that keeps only the count of its schedule.

    updates: updates of the run so far.
    """
    is_schedule = lambda state: isinstance(state, optax.ScaleByScheduleState)
    place = lambda state: state._replace(count=updates) if is_schedule(state) else state
    return jax.tree.map(place, transform.init(params), is_leaf=is_schedule)
