"""Sentences for what was typed wrongly on the command line: what was meant, and how to write it."""

import re
from collections.abc import Callable, Sequence

from fewstep.messages import did_you_mean, nearest_name
from fewstep.modes.mode import Mode

# Names in other codebases -> our flags.
OTHER_FLAGS = {
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "guidance_scale": "guidance",
    "class": "labels",
    "classes": "labels",
    "num_samples": "seeds",
    "samples": "seeds",
    "ckpt": "checkpoint",
    "output": "out",
    "outdir": "out",
    "num_steps": "steps",
    "logdir": "workdir",
    "output_dir": "workdir",
    "run": "workdir",
    "method": "methods",
    "grid": "sweep",
}
# The name of a field, here or in other codebases -> the field of a config; "" for others.
FieldOf = Callable[[str], str]
EXAMPLE = "--config=configs/digits.py:cd"
NUMBERS = re.compile(r"[\d.,-]+")


def no_effect(field: str, mode_name: str, mode: Mode) -> str:
    """The error message for a field that a mode does not take in place of that of a run."""
    hints = {"steps": "; for sampling steps use --steps"}
    if field.startswith("objective.solver"):
        hints[field] = "; for another solver use --solver"
    return (
        f"--config.{field} would change nothing: of a run, --mode={mode_name} replaces only "
        f"{', '.join(mode.replaces)}{hints.get(field, '')}"
    )


def meant_flag(name: str, mode: Mode, field_of: FieldOf, others: Sequence[str] = ()) -> str:
    """What was meant by a flag that a mode does not have, as it is written; "" if nothing is near.

    That is a flag of the mode, a field of its config, or else one of the other flags.
    """
    own = OTHER_FLAGS.get(name.lower(), "")
    found = nearest_name(name, mode.flags) or (own if own in mode.flags else "")
    if found:
        return f"--{found}"
    field = field_of(name)
    if field and "config" in mode.flags:
        return f"--config.{field}"
    found = nearest_name(name, others)
    return f"--{found}" if found else ""


def unknown_flag(
    name: str, mode_name: str, mode: Mode, field_of: FieldOf, others: Sequence[str]
) -> str:
    """The error message for a flag that no mode has.

    others: flags besides those of the mode. A field of a config that was not given is one too.
    """
    group, _, field = name.partition(".")
    if group == "config":
        return field_without_config(name, mode_name, mode, field_of)
    if field and nearest_name(group, ["config"]):
        return f"--{name} is not a flag{did_you_mean(f'config.{field}', '--{}')}"
    if name == "method" and "methods" not in mode.flags:
        return f"--{name} is not a flag; write the method after the file, as in {EXAMPLE}"
    meant = did_you_mean(meant_flag(name, mode, field_of, others), "{}")
    return f"--{name} is not a flag{meant or '; --help lists the flags'}"


def field_without_config(name: str, mode_name: str, mode: Mode, field_of: FieldOf) -> str:
    """The error message for a field, as config.FIELD, of a config that was not given."""
    if "config" in mode.flags:
        return f"--{name} needs --config=FILE:METHOD, the config whose field it sets"
    meant = did_you_mean(meant_flag(name.rpartition(".")[2], mode, field_of), "{}")
    return f"--{name} needs a config, and --mode={mode_name} takes that of the run{meant}"


def stray_word(words: Sequence[str], arguments: Sequence[str], modes: Sequence[str]) -> str:
    """The error message for words that belong to no flag, such as 1 2 after --seeds=0.

    words: these. arguments: the whole command line.
    """
    meant = nearest_name(words[0], modes)
    if meant:
        return f"{words[0]!r} is not a flag{did_you_mean(meant, '--mode={}')}"
    before = arguments[1 : arguments.index(words[0])]
    last = next((i for i in reversed(range(len(before))) if before[i].startswith("-")), None)
    if last is not None and all(map(NUMBERS.fullmatch, words)):
        flag, _, value = " ".join(before[last:]).replace(" ", "=", 1).partition("=")
        listed = ",".join([*filter(None, [value]), *words])
        return f"{words[0]!r} belongs to no flag; write several values as in {flag}={listed}"
    return f"{words[0]!r} is not a flag; flags begin with --"
