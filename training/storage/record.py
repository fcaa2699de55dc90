"""Reads config.json of a run's folder, with one kind of error for whatever is wrong in it."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fewstep.training.storage.fields import check_field_types

DEEPEST = 20  # levels of nesting that are read; a config has four
REMEDY = "restore the file, or delete it: the config is in the run's checkpoints too"


def read_config_file(path: Path) -> ConfigDict:
    """The config in a file. Raises ValueError that names the file, what is wrong and what to do."""
    try:
        return parse_config(json.loads(path.read_bytes().decode()))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be a config; {REMEDY}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); {REMEDY}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {REMEDY}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # the last, ConfigDict's
        raise ValueError(f"{path} holds no config of a run: {error.args[0]}; {REMEDY}") from error


def parse_config(content: Any) -> ConfigDict:
    """The config in plain JSON values. Raises an error that says what they are instead."""
    if not isinstance(content, dict):
        raise ValueError(f"it is {describe_value(content)}, not an object of fields")
    if nesting_depth(content) > DEEPEST:
        raise RecursionError
    check_field_types(content)
    return ConfigDict(content)


def nesting_depth(content: Any) -> int:
    """How deep lists and objects are nested."""
    inner = content.values() if isinstance(content, dict) else content
    return 1 + max(map(nesting_depth, inner), default=0) if isinstance(content, dict | list) else 0


def describe_value(content: Any) -> str:
    """The type of a JSON value that is no object, in words."""
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(content), "a number")
