"""Types and ranges of config fields, checked before anything is read or computed.

These hold for any choice of parts, and every number must be finite in float32. A part that a config
names checks itself what else it needs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fewstep.data.labels import SHARES
from fewstep.data.latent_files.files import POSTERIORS
from fewstep.objectives import OBJECTIVES
from fewstep.parts import group_names

# What the learning rate may do if `steps` changes after a schedule was set by it.
REFUSE = "refuse"
CONTINUED = (REFUSE, "extend", "hold", "rewarm")
LARGEST_INT32, LARGEST_SEED = 2**31 - 1, 2**32 - 1
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class Range(NamedTuple):
    """The values that a field may have.

    fits: whether a value has the right type. holds: whether a value of that type is in range.
    words: both, for an error message.
    """

    fits: Callable[[Any], bool]
    holds: Callable[[Any], bool]
    words: str


def whole_range(least: int, most: int = LARGEST_INT32) -> Range:
    """Whole numbers from `least` to `most`, both included."""
    words = f"a whole number from {least} to {most}"
    return Range(is_whole, lambda value: least <= value <= most, words)


def number_range(low: float, high: float = LARGEST_FLOAT32, *, above: bool = False) -> Range:
    """Numbers below `high` and at least `low`; above: greater than `low`."""
    return Range(
        is_int_or_float,
        lambda value: (low < value if above else low <= value) and value < high,
        f"a number, {f'above {low:g}' if above else f'{low:g} or more'}, and "
        f"{'finite' if high == LARGEST_FLOAT32 else f'below {high:g}'}",
    )


def sequence_of(allowed: Range) -> Range:
    """Sequences of values of a range; empty ones too."""
    return Range(
        lambda values: isinstance(values, list | tuple) and all(map(allowed.fits, values)),
        lambda values: all(map(allowed.holds, values)),
        f"a sequence, each {allowed.words}",
    )


def one_or_several(allowed: Range) -> Range:
    """A value of a range, or a sequence of one or more of them."""
    several = sequence_of(allowed)

    def fits(value: Any) -> bool:
        return allowed.fits(value) or (several.fits(value) and len(value) > 0)

    def holds(value: Any) -> bool:
        return (allowed if allowed.fits(value) else several).holds(value)

    return Range(fits, holds, f"{allowed.words}, or a sequence of such")


def optional(allowed: Range) -> Range:
    """Values of a range, or None."""
    return Range(
        lambda value: value is None or allowed.fits(value),
        lambda value: value is None or allowed.holds(value),
        f"{allowed.words}, or None",
    )


def one_of(*choices: str) -> Range:
    """One of these strings."""
    words = " or ".join(map(repr, choices))
    return Range(lambda value: isinstance(value, str), lambda value: value in choices, words)


def is_whole(value: Any) -> bool:
    """Whether a value is an int; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_int_or_float(value: Any) -> bool:
    """Whether a value is an int or a float, finite or not; a bool is neither."""
    return is_whole(value) or isinstance(value, float)


def is_finite(value: Any) -> bool:
    """Whether all numbers in a value are finite in float32."""
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not is_int_or_float(value) or abs(value) < LARGEST_FLOAT32


def accept_any(value: Any) -> bool:
    """True for every value."""
    return True


FINITE = Range(is_int_or_float, lambda value: abs(value) < LARGEST_FLOAT32, "a finite number")
TEXT = Range(lambda value: isinstance(value, str), accept_any, "a text")
SWITCH = Range(lambda value: isinstance(value, bool), accept_any, "True or False")
PART = Range(lambda value: isinstance(value, Mapping), accept_any, "a group of fields")
# Devices of a mesh axis: a number, or -1 for all that remain.
DEVICES = Range(is_whole, lambda value: value == -1 or value > 0, "-1 or a whole number above 0")

OPTIMIZER = {
    "name": TEXT,
    "learning_rate": number_range(0.0),
    "schedule": TEXT,
    "warmup_steps": whole_range(0),
    "b1": number_range(0.0, 1.0),
    "b2": number_range(0.0, 1.0),
    "eps": number_range(0.0, above=True),
    "weight_decay": number_range(0.0),
    "clip_norm": number_range(0.0),
    "spike_factor": number_range(0.0),
    "spike_window": whole_range(2),
    "spike_cap": whole_range(0),
}
# Fields of any network; None leaves a field to the network's default.
NETWORK = {
    "size": TEXT,
    "patch_size": whole_range(1),
    "width": whole_range(1),
    "depth": whole_range(1),
    "variant": TEXT,
    "multipliers": sequence_of(whole_range(1)),
    "attention_sides": sequence_of(whole_range(1)),
    "second_time": TEXT,
    "guidance_input": SWITCH,
    "guidance_interval": SWITCH,
    "trajectory": whole_range(1),
    "score_input": SWITCH,
    "score_precision": number_range(0.0),
    "coordinate_width": whole_range(0),
    "odd": SWITCH,
    "loss_weight": SWITCH,
    "time_scale": number_range(0.0, above=True),
    "codec": TEXT,
    "adaln_zero": SWITCH,
    "dropout": number_range(0.0, 1.0),
    "dtype": TEXT,
    "attention": TEXT,
    "remat": SWITCH,
    "scan": SWITCH,
}
# Fields of configs/base.py by dotted name. OBJECTIVE_FIELDS has those of the objective; players and
# heads in player_optimizers have the fields of OPTIMIZER.
FIELDS = {
    "method": TEXT,
    "seed": whole_range(0, LARGEST_SEED),
    "steps": optional(whole_range(1)),
    "batch_size": optional(whole_range(1)),
    "micro_batches": optional(whole_range(1)),
    "steps_per_dispatch": optional(whole_range(1)),
    "compilation_cache": TEXT,
    "debug": SWITCH,
    "debug_keeps": sequence_of(TEXT),
    "teacher": TEXT,
    "teacher_network": TEXT,
    "start_from_teacher": SWITCH,
    "teacher_scales": sequence_of(FINITE),
    "pairs.count": whole_range(1),
    "pairs.steps": whole_range(1),
    "data.name": TEXT,
    "data.dir": TEXT,
    "data.local_dir": TEXT,
    "data.image_size": whole_range(0),
    "data.channels": whole_range(0),
    "data.decoding": whole_range(0),
    "data.background": TEXT,
    "data.unreadable": whole_range(0),
    "data.posterior": one_of("", *POSTERIORS),
    "data.num_classes": whole_range(-1),
    "data.label_shares": one_of(*SHARES),
    "data.flip": SWITCH,
    "data.on_device": optional(SWITCH),
    "codec.name": TEXT,
    "codec.weights": TEXT,
    "codec.scale": sequence_of(number_range(0.0, above=True)),
    "codec.shift": sequence_of(FINITE),
    "codec.fingerprint": TEXT,
    "model.name": TEXT,
    **{f"model.{name}": optional(allowed) for name, allowed in NETWORK.items()},
    "path.name": TEXT,
    "path.sigma_data": optional(number_range(0.0, above=True)),
    "path.sigma_min": optional(number_range(0.0)),
    "path.sigma_max": optional(number_range(0.0, above=True)),
    "path.beta_min": optional(number_range(0.0)),
    "path.beta_max": optional(number_range(0.0, above=True)),
    "prediction.kind": TEXT,
    "prediction.sigma_data": optional(number_range(0.0, above=True)),
    **{f"optimizer.{name}": allowed for name, allowed in OPTIMIZER.items()},
    "optimizer.learning_rate": optional(OPTIMIZER["learning_rate"]),
    "continued.schedule": one_of(*CONTINUED),
    "continued.scale": optional(number_range(0.0, above=True)),
    "ema.decays": sequence_of(number_range(0.0, 1.0)),
    "ema.warmup": SWITCH,
    "ema.power_stds": sequence_of(number_range(0.0, above=True)),
    "ema.sample_with": TEXT,
    "mesh.data": DEVICES,
    "mesh.fsdp": DEVICES,
    "mesh.fsdp_across_slices": SWITCH,
    "checkpoint.every": whole_range(0),
    "checkpoint.keep": whole_range(0),
    "checkpoint.keep_hours": number_range(0.0),
    "checkpoint.keep_best": TEXT,
    "checkpoint.keep_steps": sequence_of(whole_range(0)),
    "watchdog.seconds": number_range(0.0, above=True),
    "watchdog.factor": number_range(0.0),
    "watchdog.exit_after": number_range(0.0),
    "watchdog.disk_speed": number_range(0.0),
    "log.every": whole_range(0),
    "log.to": sequence_of(TEXT),
    "evaluate.every": whole_range(0),
    "evaluate.steps": sequence_of(whole_range(1)),
    "evaluate.features": TEXT,
    "evaluate.weights": TEXT,
    "evaluate.reference": TEXT,
    "evaluate.agreement": SWITCH,
    "evaluate.rows": sequence_of(TEXT),
    "evaluate.num_samples": whole_range(1),
    "evaluate.final_samples": whole_range(0),
    "evaluate.batch_size": optional(whole_range(1)),
    "evaluate.guidance_scale": optional(one_or_several(FINITE)),
}
PROBABILITY = Range(is_int_or_float, lambda value: 0.0 <= value <= 1.0, "a number from 0 to 1")
RATE = number_range(0.0, 1.0)
# Logarithms of noise levels that float32 holds.
LOGARITHM = number_range(-80.0, 80.0)
# Fields of configs/objectives.py by the last part of their dotted names; by the whole name after
# "objective." where a part gives that last part another meaning.
OBJECTIVE_FIELDS = {
    "name": TEXT,
    **dict.fromkeys(
        (
            *("variance", "weighting", "teacher_solver", "leftover_rows", "ends_at", "velocity"),
            *("variable", "network", "weights", "path_loss"),
        ),
        TEXT,
    ),
    "order": whole_range(1),
    **dict.fromkeys(
        ("target_warmup", "adaptive_weight", "normalize", "joint", "reads_score", "decoded"), SWITCH
    ),
    "mean": LOGARITHM,
    "std": number_range(0.0, 80.0, above=True),
    "power": number_range(0.0, above=True),
    "pixels": number_range(0.0),
    "lowest": RATE,
    "highest": PROBABILITY,
    "max_steps": whole_range(1),
    "step_counts": sequence_of(whole_range(1)),
    **dict.fromkeys(("solver_steps", "least_steps", "times"), whole_range(1)),
    "gap": number_range(0.0, 1.0, above=True),
    "average_residual": number_range(0.0, 1.0, above=True),
    "gamma": PROBABILITY,
    **dict.fromkeys(("denoising_weight", "boundary_weight", "bootstrap_weight"), number_range(0.0)),
    "bootstrap_fraction": PROBABILITY,
    **dict.fromkeys(("target_decay", "initial_decay"), RATE),
    "label_dropout": PROBABILITY,
    "head_width": whole_range(1),
    "kl_weight": number_range(0.0),
    **dict.fromkeys(("interval_fraction", "live_fraction"), PROBABILITY),
    "rollout_steps": whole_range(2),
    "mixing": number_range(0.0, 1.0),
    "weight_power": number_range(0.0),
    "weight_offset": number_range(0.0, above=True),
    "guidance_scale": FINITE,
    "guidance_range": sequence_of(FINITE),
    "guidance_interval": sequence_of(PROBABILITY),
    **dict.fromkeys(("path_steps", "groups", "substeps"), whole_range(1)),
    **dict.fromkeys(("first", "last", "points", "skip", "stages"), whole_range(1)),
    "total_steps": whole_range(1),
    "fake_score_updates": whole_range(1),
    "guided_channels": whole_range(1),
    "sample_times": sequence_of(number_range(0.0)),
    "tangent_warmup": whole_range(0),
    "tangent_scale": number_range(0.0, above=True),
    "sigma_init": number_range(0.0, above=True),
    "alpha": FINITE,
    **dict.fromkeys(("c", "q", "k", "b", "low_noise", "regression_weight"), number_range(0.0)),
    **dict.fromkeys(("churn", "churn_min", "churn_max", "noise"), number_range(0.0)),
}
REQUIRED = ("name", "label_dropout", "guidance_range")
OBJECTIVE, PLAYERS = "objective", "player_optimizers"
HEADS = "heads"  # field of a player: by head, a group of optimizer fields
# Dotted names of the groups of fields that functions of objectives declare.
OBJECTIVE_PARTS = {
    name for method in OBJECTIVES.values() for name in group_names(method, OBJECTIVE)
}
# Names of all top-level groups of fields.
PARTS = {name.partition(".")[0] for name in FIELDS if "." in name} | {OBJECTIVE, PLAYERS}


def check_field_values(config: ConfigDict) -> None:
    """Raises ValueError that names a field of the wrong type, out of range, or not finite.

    Does not check for missing or unknown fields; the code that reads them does.
    """
    fields = config.to_dict()
    check_field_types(fields)
    for name, value in iterate_fields(fields):
        allowed = field_range(name)
        if allowed is not None and not allowed.holds(value):
            raise ValueError(f"{name}={value!r} must be {allowed.words}")
        if not is_finite(value):
            raise ValueError(f"{name}={value!r} must be finite")


def check_field_types(fields: Mapping[str, Any]) -> None:
    """Raises ValueError that names a field whose value has the wrong type."""
    for name, value in iterate_fields(fields):
        allowed = field_range(name)
        if allowed is not None and not allowed.fits(value):
            raise ValueError(f"{name}={value!r} must be {allowed.words}")


def field_range(name: str) -> Range | None:
    """The range of a field or group, by its dotted name; None if only its part knows it."""
    group, _, rest = name.partition(".")
    if group == OBJECTIVE and rest:
        last = rest.rpartition(".")[2]
        if name in OBJECTIVE_PARTS:
            return PART
        known = OBJECTIVE_FIELDS.get(rest, OBJECTIVE_FIELDS.get(last))
        # None is the default of the function that takes it.
        return known if known is None or last in REQUIRED else optional(known)
    if group == PLAYERS and rest:
        field = rest.partition(".")[2]
        if field == HEADS or field.startswith(f"{HEADS}."):
            field = ".".join(field.split(".")[2:])
        return OPTIMIZER.get(field) if field else PART
    return PART if name in PARTS else FIELDS.get(name)


def iterate_fields(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of all fields, also of a value where a group should be."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and field_range(prefix + name) in (None, PART):
            yield from iterate_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
