"""The fields of a config by dotted name, and the field that a wrong name most likely meant."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from fewstep.configs import base
from fewstep.messages import CUTOFF, did_you_mean, likeness, nearest_name

FREE = "player_optimizers"  # a group whose fields are those that somebody gives
PLAYERS = f"{FREE}."
EVERYWHERE = ("name", "kind")  # fields of many groups; the group decides which is meant
# Names in other codebases -> our names.
OTHER_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "grad_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "warmup": "warmup_steps",
    "momentum": "b1",
    "beta1": "b1",
    "beta2": "b2",
    "epsilon": "eps",
    "max_steps": "steps",
    "num_steps": "steps",
    "total_steps": "steps",
    "iterations": "steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "resolution": "image_size",
    "dataset": "data.name",
    "horizontal_flip": "flip",
    "ema_decay": "decays",
    "grad_accum": "micro_batches",
    "gradient_accumulation_steps": "micro_batches",
    "save_every": "checkpoint.every",
    "keep_last": "checkpoint.keep",
    "max_to_keep": "checkpoint.keep",
    "log_every": "log.every",
    "eval_every": "evaluate.every",
    "n_classes": "num_classes",
    "precision": "dtype",
}


def unknown_field_message(
    config: ConfigDict, arguments: Sequence[str], others: Collection[str] = ()
) -> str:
    """Return an error message for the first --config.FIELD that the config lacks; "" if none.

    A value for a group of fields is an error too. others: names of flags.
    """
    names = [*field_names(config.to_dict())]
    groups = {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}
    for argument in arguments:
        given = re.match(r"--?(?:no)?config\.([^=]*)(?:=([^{]))?", argument)
        if given and given[1] not in {*names, *groups, FREE}:
            return f"--config.{given[1]} is not a field{meant_field(given[1], names, others)}"
        if given and given[1] in groups and given[2]:
            inside = [name for name in names if name.startswith(f"{given[1]}.")]
            first = next((name for name in inside if name == f"{given[1]}.name"), inside[0])
            return f"--config.{given[1]} is a group of fields; set one, such as --config.{first}"
    return ""


def meant_field(asked: str, names: Sequence[str], others: Collection[str]) -> str:
    """Return what was meant by a field that does not exist, as the end of a message; "" if unknown.

    The optimizer fields of players can be given only all at once if the config has none.
    """
    group, _, last = asked.rpartition(".")
    if asked in others:
        return did_you_mean(asked, "--{}")
    if group.startswith(PLAYERS) and not any(name.startswith(PLAYERS) for name in names):
        player, field = group.removeprefix(PLAYERS), OTHER_NAMES.get(last.lower(), last)
        whole = f"--config.{FREE}=\"{{'{player}': {{'{field}': VALUE}}}}\""
        return f"; give all fields of a player at once, as in {whole}"
    return did_you_mean(nearest_field(asked, names), "--config.{}")


def known_field(name: str) -> str:
    """Return the field of configs/base.py with a name, here or in other codebases; "" without one.

    It is the outermost of several.
    """
    meant, fields = OTHER_NAMES.get(name.lower(), name.lower()), base.config().to_dict()
    if meant in EVERYWHERE or isinstance(fields.get(meant), Mapping):
        return ""
    alike = [f for f in field_names(fields) if meant in (f, f.rpartition(".")[2])]
    return min(alike, key=lambda field: field.count("."), default="")


def nearest_field(asked: str, names: Sequence[str]) -> str:
    """Return the dotted name of the most similar field; "" if none is similar.

    Compares the last part first, also by names that other codebases use. If several fields share
    it, their groups decide.
    """
    group, _, last = asked.rpartition(".")
    meant = OTHER_NAMES.get(last.lower(), last)
    if meant in names and meant != last:
        return meant
    here = [name for name in names if name.rpartition(".")[0] == group]
    for among in (here, names) if last not in OTHER_NAMES else (names,):
        found = nearest_name(meant, {name.rpartition(".")[2] for name in among})
        alike = [name for name in among if name.rpartition(".")[2] == found]
        if found in EVERYWHERE:
            part = group.rpartition(".")[2]
            alike = [n for n in alike if likeness(part, n.split(".")[-2:][0]) >= CUTOFF]
        if alike:
            return max(alike, key=lambda name: nearness(name.rpartition(".")[0], group))
    return ""


def nearness(group: str, asked: str) -> tuple[float, int]:
    """Return a sort key: similarity to the requested group; outer groups win if none is similar."""
    alike = likeness(asked, group)
    return (alike if alike >= CUTOFF else 0.0, -len(group.split(".")) if group else 0)


def field_names(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted names of all fields that are not groups."""
    return (name for name, _ in flattened(fields))


def flattened(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of all fields that are not groups."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def spread(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by dotted name, with the fields of a group in place of a mapping of them.

    Mappings below FREE stay.
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        whole = not isinstance(value, Mapping) or name.partition(".")[0] == FREE
        found |= {name: value} if whole else spread({f"{name}.{k}": v for k, v in value.items()})
    return found
