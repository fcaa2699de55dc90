"""Reads --config from the command line: the file, overrides, None, and unknown fields."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fewstep.configs import overrides
from fewstep.messages import CUTOFF, did_you_mean, likeness, nearest_name

NONE = "None"
EVERYWHERE = ("name", "kind")  # ambiguous without their group
# Names that other codebases use, and ours.
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


# Raised by absl and by config files for bad input.
ERRORS = (flags.Error, ValueError, KeyError, AttributeError, TypeError, OSError)


def config_from_flags(values: flags.FlagValues) -> ConfigDict | None:
    """The config of --config with its overrides applied.

    A part that is overridden by name keeps none of the file's fields (overrides.py).
    """
    config = values["config"].value
    if config is None:
        return None
    given = config_flags.get_override_values(values["config"])
    overrides.forget_replaced(
        config, given, {field: values[f"config.{field}"].default for field in given}
    )
    return config


def config_of_method(method: str) -> ConfigDict:
    """The config of another method in --config's file, with the same overrides.

    Raises ValueError if the file does not have the method, or the method not an overridden field.
    """
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    given = config_flags.get_override_values(flags.FLAGS["config"])
    overridden = [f"--config.{field}={value}" for field, value in given.items()]
    try:
        values([sys.argv[0], f"--config={file}:{method}", *overridden])
    except (flags.Error, KeyError, AttributeError) as error:
        unknown = explain_unknown_field(f"{file}:{method}", overridden)
        raise ValueError(f"{method}: {unknown}" if unknown else str(error)) from error
    return config_from_flags(values)


def config_without_overrides(path: str) -> ConfigDict:
    """FILE[:METHOD] without overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=sys.argv[:1])
    values([sys.argv[0], f"--config={path}"])
    return values["config"].value


def explain_unknown_field(config: str, argv: list[str]) -> str:
    """An error message for the first unknown field in argv; "" if all fields are known."""
    try:
        return unknown_field_message(config_without_overrides(config), argv) if config else ""
    except ERRORS:
        return ""


class OptionalParser(flags.ArgumentParser):
    """A flag parser that also reads `None` as None."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self.parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        """The value. Raises ValueError."""
        return None if argument == NONE else self.parser.parse(argument)

    def flag_type(self) -> str:
        """The type of values other than None."""
        return self.parser.flag_type()


def accept_none() -> None:
    """Read `None` on the command line as None; the config checks which fields may be None.

    The parsers of ml_collections read it as text or fail.
    """
    parsers = {
        int: flags.IntegerParser(),
        float: flags.FloatParser(),
        bool: flags.BooleanParser(),
        str: flags.ArgumentParser(),
    }
    for kind, parser in parsers.items():
        config_flags.register_flag_parser_for_type(kind, OptionalParser(parser))


def unknown_field_message(config: ConfigDict, arguments: Sequence[str]) -> str:
    """An error message for the first --config.FIELD that the config lacks; "" if it has all.

    A value for a group of fields is an error too.
    """
    names = [*field_names(config.to_dict())]
    groups = {name[:i] for name in names for i, letter in enumerate(name) if letter == "."}
    for argument in arguments:
        given = re.match(r"--?(?:no)?config\.([^=]+)(?:=([^{]))?", argument)
        if given and given[1] not in {*names, *groups, "player_optimizers"}:
            found = nearest_field(given[1], names)
            return f"--config.{given[1]} is no field{did_you_mean(found, '--config.{}')}"
        if given and given[1] in groups and given[2]:
            inside = [name for name in names if name.startswith(f"{given[1]}.")]
            first = next((name for name in inside if name == f"{given[1]}.name"), inside[0])
            return f"--config.{given[1]} is a group of fields; set one, such as --config.{first}"
    return ""


def nearest_field(asked: str, names: Sequence[str]) -> str:
    """The dotted name that was probably meant; "" if none is near.

    Compares the last part first, including names of other codebases. If several fields share it,
    their groups decide.
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
            alike = [n for n in alike if likeness(n.split(".")[-2:][0], part) >= CUTOFF]
        if alike:
            return max(alike, key=lambda name: nearness(name.rpartition(".")[0], group))
    return ""


def nearness(group: str, asked: str) -> tuple[float, int]:
    """How near a group is to the one asked for; if none is near, outer groups come first."""
    alike = likeness(group, asked)
    return (alike if alike >= CUTOFF else 0.0, -len(group.split(".")) if group else 0)


def field_names(fields: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields that are not groups."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name
