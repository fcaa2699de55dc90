"""Optimizers and learning-rate schedules, all optax's."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from fewstep.training.spikes import skip_spikes

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


class Optimizer(NamedTuple):
    """A gradient transformation and its schedule, both counting the updates of one player.

    spike_factor: of the transformation if it skips spikes, else 0; spike_cap: how many at most.
    """

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule
    spike_factor: float = 0.0
    spike_cap: int = 0


def optimizer(
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
    spike_factor: float = 0.0,
    spike_window: int = 128,
    spike_cap: int = 10,
) -> Optimizer:
    """The optimizer of one player, for a run of `updates` updates.

    The rate rises linearly from 0 over `warmup_steps`, then follows the schedule, which for cosine
    and linear ends at 0. clip_norm: largest global gradient norm, 0 for no clipping. weight_decay:
    decoupled, on all parameters; adamw only. spike_factor: how many standard deviations above the
    last `spike_window` a loss or a gradient's norm may lie (training/spikes.py), 0 for any number;
    a run ends after more than spike_cap such updates.
    """
    if weight_decay and name != "adamw":
        raise ValueError(
            f"optimizer.weight_decay is decoupled decay, which {name} does not have; "
            "use optimizer.name=adamw or weight_decay=0"
        )
    if updates <= warmup_steps and warmup_steps > 0:
        raise ValueError(
            f"optimizer.warmup_steps ({warmup_steps}) must be below the run's {updates} updates"
        )
    if spike_factor < 0.0 or spike_window < 2 or spike_cap < 0:
        raise ValueError(
            "optimizer needs spike_factor >= 0, spike_window >= 2 and spike_cap >= 0, not "
            f"{spike_factor:g}, {spike_window} and {spike_cap}"
        )
    decay = SCHEDULES[schedule](learning_rate, updates - warmup_steps)
    rate = decay
    if warmup_steps:
        rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([rise, decay], [warmup_steps])
    decoupled = {"weight_decay": weight_decay} if name == "adamw" else {}
    transform = OPTIMIZERS[name](rate, b1=b1, b2=b2, eps=eps, **decoupled)
    if clip_norm:
        transform = optax.chain(optax.clip_by_global_norm(clip_norm), transform)
    if spike_factor:
        transform = skip_spikes(transform, spike_factor, spike_window)
    return Optimizer(transform, rate, spike_factor, spike_cap)
