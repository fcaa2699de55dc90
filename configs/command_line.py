"""Reads --config from the command line: the file, its overrides and None."""

import ast
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from traceback import extract_tb
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fewstep.configs import base, overrides
from fewstep.configs.fields import spread, unknown_field_message
from fewstep.configs.methods import METHODS, choose
from fewstep.messages import did_you_mean, nearest_name

NONE = "None"
FOLDER = Path(__file__).parent
# Parts of Python's and absl's messages -> what a value must be.
KINDS = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "True or False",
    "as a ConfigDict": "a dictionary",
}
# Raised by absl and by config files for bad input.
ERRORS = (flags.Error, ValueError, KeyError, AttributeError, TypeError, OSError)
# Raised by Python for a config file that has a mistake itself.
ERRORS += (SyntaxError, NameError, ImportError)


def config_from_flags(values: flags.FlagValues) -> ConfigDict | None:
    """Return the config of --config with its overrides applied; None without --config.

    If an override replaces a part by name, the fields of the old part are dropped (overrides.py).
    `debug` keeps the fields that are overridden. Raises ValueError for a method by --config.method.
    """
    config = values["config"].value
    if config is None:
        return None
    given = config_flags.get_override_values(values["config"])
    before = {field: values[f"config.{field}"].default for field in given}
    file = config_flags.get_config_filename(values["config"]).partition(":")[0]
    return with_consequences(config, given, before, file)


def with_consequences(
    config: ConfigDict, given: Mapping[str, Any], before: Mapping[str, Any], file: str
) -> ConfigDict:
    """Return the config with what follows from the fields that were overridden, in place.

    given, before: these fields by dotted name, with their values now and in the config file.
    """
    name = given.get("method")
    if name in METHODS and name != before["method"]:
        raise ValueError(
            f"--config.method={name} changes the name of the run, not its method; did you mean "
            f"--config={file}:{name}?"
        )
    overrides.forget_replaced(config, given, before)
    if config.get("debug") and "debug_keeps" not in given:
        config.debug_keeps = tuple(field for field in given if field != "debug")
    return config


def packaged_config(name: str) -> str:
    """Return FILE[:METHOD] with the file that comes with Fewstep, if none of that name is here.

    Its name is configs/FILE.py, from any folder.
    """
    file, colon, method = name.partition(":")
    own = FOLDER / PurePath(file).name
    is_ours = PurePath(file).parent == PurePath(FOLDER.name) and is_python(own)
    return f"{own}{colon}{method}" if is_ours and not Path(file).exists() else name


def given_fields() -> tuple[str, ...]:
    """Return the dotted names of the fields that the command line sets."""
    return tuple(sorted(config_flags.get_override_values(flags.FLAGS["config"])))


def config_of_method(method: str) -> ConfigDict:
    """Return the config of another method in the file of --config, with the same overrides.

    Raises ValueError if the file lacks the method, or if the method lacks an overridden field.
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
        raise ValueError(f"{method}: {unknown}" if unknown else explain_value(error)) from error
    return config_from_flags(values)


def config_without_overrides(path: str) -> ConfigDict:
    """Return the config FILE[:METHOD] without overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=sys.argv[:1])
    values([sys.argv[0], f"--config={path}"])
    return values["config"].value


def spread_groups(argv: Sequence[str]) -> list[str]:
    """Return the arguments, with one for each field in place of a dictionary for a group of them.

    So the fields that it lacks keep their values.
    """
    arguments: list[str] = []
    for argument in argv:
        if argument.startswith("{") and re.fullmatch(r"--?config\.[^=]+", (arguments or [""])[-1]):
            argument = f"{arguments.pop()}={argument}"
        given = re.fullmatch(r"(--?config\.)([^=]+)=(\{.*\})", argument, re.DOTALL)
        value = read_literal(given[3]) if given else None
        if isinstance(value, dict):
            found = spread({given[2]: value})
            arguments += [f"{given[1]}{name}={each}" for name, each in found.items()]
        else:
            arguments.append(argument)
    return arguments


def read_literal(text: str) -> Any:
    """Return the value that a text writes in Python; the text if it writes none."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError):  # TypeError for {{name}} of a template
        return text


def split_fields(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the other arguments, and those of --config.FIELD with their values."""
    others: list[str] = []
    fields: list[str] = []
    arguments = [*argv]
    while arguments:
        argument = arguments.pop(0)
        own = re.match(r"--?(no)?config\.", argument)
        (fields if own else others).append(argument)
        if own and "=" not in argument and arguments and not arguments[0].startswith("-"):
            fields.append(arguments.pop(0))
    return others, fields


def read_fields(argv: Sequence[str]) -> dict[str, Any]:
    """Return the values of --config.FIELD by dotted name, without the file of --config.

    Knows the fields of every objective, since it does not know the method. Raises ValueError.
    """
    arguments = split_fields(argv)[1]
    if not arguments:
        return {}
    command, values = [sys.argv[0], *arguments], flags.FlagValues()
    config = base.config()
    for method in METHODS:
        for field, value in choose(base.config(), method).objective.items(True):
            if field not in config.objective:
                config.objective[field] = value
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
        values(command)
    except ERRORS as error:
        unknown = unknown_field_message(config, arguments)
        raise ValueError(unknown or explain_value(error)) from error
    return config_flags.get_override_values(values["config"])


def missing_file_message(config: str) -> str:
    """Return the error message for --config=FILE[:METHOD] whose file is none of Python."""
    if not config:
        return f"--config is empty; name a config, as in --config=configs/digits.py. {list_files()}"
    file, colon, method = config.partition(":")
    known = {path.stem: f"configs/{path.name}" for path in FOLDER.glob("*.py") if has_config(path)}
    split = re.fullmatch(r"(.+\.py)[/,;@](\w+)", file)  # another sign in place of the colon
    nearest = known.get(nearest_name(PurePath(file).stem, known), "") + colon + method
    if split and Path(split[1]).is_file():
        nearest = f"{split[1]}:{split[2]}"
    meant = did_you_mean("" if nearest == colon + method else nearest, "--config={}") or "."
    wrong = "is not a Python file" if Path(file).is_file() else "does not exist"
    return f"--config={config}: the file {file} {wrong}{meant} {list_files()}"


def list_files() -> str:
    """Return a sentence that lists the config files."""
    names = sorted(f"configs/{path.name}" for path in FOLDER.glob("*.py") if has_config(path))
    return f"The configs are {', '.join(names)}"


def is_python(path: Path) -> bool:
    """Whether a path is a file of Python."""
    return path.suffix == ".py" and path.is_file()


def explain_file_error(file: str, error: Exception) -> str:
    """Return the message of an error that a config file raises, with the line; "" for another."""
    if isinstance(error, SyntaxError):
        return f"{error.filename} line {error.lineno}: {error.msg}"
    if isinstance(error, ValueError | OSError | flags.Error):
        return ""
    lines = [f for f in extract_tb(error.__traceback__) if file and Path(f.filename) == Path(file)]
    return f"{file} line {lines[-1].lineno}: {type(error).__name__}: {error}" if lines else ""


def has_config(path: Path) -> bool:
    """Whether --config can read a file."""
    return bool(re.search(r"^def\s+get_config\(", path.read_text(), re.MULTILINE))


def explain_value(error: Exception) -> str:
    """Return the message of an error of absl; the common ones take the form of our own messages.

    For example "--config.steps=many must be a whole number".
    """
    if "has no attribute 'get_config'" in str(error):
        return f"--config: the file does not define get_config. {list_files()}"
    missing = re.fullmatch(r"Missing value for flag (--\S+)", str(error))
    if missing:
        return f"{missing[1]} has no value; write {missing[1]}=VALUE"
    found = re.fullmatch(r"flag (--[^=]+=.*?): (.*)", str(error), re.DOTALL)
    kinds = [kind for text, kind in KINDS.items() if found and text in found[2]]
    if "Traceback" in str(error):  # that of a config file; its last line has the error
        return str(error).strip().splitlines()[-1].partition(": ")[2]
    return f"{found[1]} must be {kinds[0]}" if kinds else str(error)


def explain_unknown_field(config: str, argv: list[str], others: Collection[str] = ()) -> str:
    """Return an error message for the first unknown field in argv; "" if all are known.

    others: names of flags, which somebody may have meant.
    """
    if not config:
        return ""
    try:
        return unknown_field_message(config_without_overrides(config), argv, others)
    except ERRORS:
        return ""


class OptionalParser(flags.ArgumentParser):
    """A flag parser that also reads `None` as None."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self.parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        """Return the value, or None for `None`. Raises ValueError."""
        return None if argument == NONE else self.parser.parse(argument)

    def flag_type(self) -> str:
        """The type of values other than None."""
        return self.parser.flag_type()


def accept_none() -> None:
    """Make `None` on the command line mean None; check_fields decides which fields may be None.

    The parsers of ml_collections would read it as text or fail.
    """
    parsers = {
        int: flags.IntegerParser(),
        float: flags.FloatParser(),
        bool: flags.BooleanParser(),
        str: flags.ArgumentParser(),
    }
    for kind, parser in parsers.items():
        config_flags.register_flag_parser_for_type(kind, OptionalParser(parser))
