"""How fields of a config are given on the command line: None, and names that do not exist."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fewstep.messages import CUTOFF, guess, likeness, nearest

NONE = "None"
EVERYWHERE = ("name", "kind")  # these say nothing without their group
# What people call fields of ours.
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
    "log_every": "log.every",
    "eval_every": "evaluate.every",
    "n_classes": "num_classes",
    "precision": "dtype",
}


class OrNone(flags.ArgumentParser):
    """What a parser reads, and None for `None`."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self.parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        """The value. Raises ValueError."""
        return None if argument == NONE else self.parser.parse(argument)

    def flag_type(self) -> str:
        """Of the values that are not None."""
        return self.parser.flag_type()


def take_none() -> None:
    """Let `None` on the command line be None in fields of one value; the config checks which may.

    Of ml_collections alone, whose parsers take a text for it or fail.
    """
    parsers = {
        int: flags.IntegerParser(),
        float: flags.FloatParser(),
        bool: flags.BooleanParser(),
        str: flags.ArgumentParser(),
    }
    for kind, parser in parsers.items():
        config_flags.register_flag_parser_for_type(kind, OrNone(parser))


def unknown_field(config: ConfigDict, arguments: Sequence[str]) -> str:
    """The message for the first --config.FIELD that a config does not have; "" if it has all.

    Also for the first that is a group of fields, with a value for one.
    """
    names = [*leaves(config.to_dict())]
    groups = {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}
    for argument in arguments:
        given = re.match(r"--?(?:no)?config\.([^=]+)(?:=([^{]))?", argument)
        if given and given[1] not in {*names, *groups, "player_optimizers"}:
            found = nearest_field(given[1], names)
            return f"--config.{given[1]} is no field{guess(found, '--config.{}')}"
        if given and given[1] in groups and given[2]:
            inside = [name for name in names if name.startswith(f"{given[1]}.")]
            first = next((name for name in inside if name == f"{given[1]}.name"), inside[0])
            return f"--config.{given[1]} is a group of fields; set one, such as --config.{first}"
    return ""


def nearest_field(asked: str, names: Sequence[str]) -> str:
    """The dotted name that was perhaps meant; "" if none is near.

    The last part is compared first, by other names of it too; then the group, to choose between
    several of one last part.
    """
    group, _, last = asked.rpartition(".")
    meant = OTHER_NAMES.get(last.lower(), last)
    if meant in names and meant != last:
        return meant
    here = [name for name in names if name.rpartition(".")[0] == group]
    for among in (here, names) if last not in OTHER_NAMES else (names,):
        found = nearest(meant, {name.rpartition(".")[2] for name in among})
        alike = [name for name in among if name.rpartition(".")[2] == found]
        if found in EVERYWHERE:
            part = group.rpartition(".")[2]
            alike = [n for n in alike if likeness(n.split(".")[-2:][0], part) >= CUTOFF]
        if alike:
            return max(alike, key=lambda name: nearness(name.rpartition(".")[0], group))
    return ""


def nearness(group: str, asked: str) -> tuple[float, int]:
    """How near a group is to the one that was asked for; of strangers the outermost is nearest."""
    alike = likeness(group, asked)
    return (alike if alike >= CUTOFF else 0.0, -len(group.split(".")) if group else 0)


def leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of fields that are no groups."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name
