"""Train, evaluate and sample few-step generative models.

    python main.py --config=configs/digits.py:shortcut --workdir=runs/digits
    python main.py --mode=sample --workdir=runs/digits --steps=1 --seeds=0-63 --out=samples

This file only reads flags and runs one mode. Any field of the config can be set, for example
--config.optimizer.learning_rate=1e-3. Bad input prints one or two lines on standard error and exits
with code 2; training/cluster/exits.py lists the other codes.
"""

import os
import re
import signal
import sys
from keyword import iskeyword
from pathlib import Path
from typing import Any

# Ctrl-C during these imports ends the process without a traceback; `run_mode` handles it later.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# Hides the logs of libraries, so that users see the progress bar and the results.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The backward pass of a softmax keeps its weights, not the exponentials too: a fifth less memory
# for a block of 256 tokens (docs/performance.md).
os.environ.setdefault("JAX_SOFTMAX_CUSTOM_JVP", "true")

from absl import app, flags, logging
from ml_collections import config_flags

from fewstep.configs import command_line
from fewstep.configs.fields import known_field
from fewstep.configs.methods import TEACHERS
from fewstep.files import in_words
from fewstep.messages import did_you_mean, unknown_choice
from fewstep.modes import MODES, mistakes
from fewstep.modes.bucket import on_disk
from fewstep.modes.compilation_cache import enable_compilation_cache
from fewstep.modes.host_memory import keep_freed_memory
from fewstep.modes.mode import Mode
from fewstep.modes.request import Request, check_same_flags, checked, expand_home, permit_code
from fewstep.modes.usage import usage
from fewstep.training.cluster import clusters, exits, joining, processes
from fewstep.training.cluster.door import MissingError
from fewstep.training.cluster.preemption import BROKEN_OFF, INTERRUPTED, Preempted, Preemption
from fewstep.training.cost.memory import memory_errors_in_words
from fewstep.training.report import DivergedError

MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
CONFIG = config_flags.DEFINE_config_file("config", None, "configs/FILE.py:METHOD")
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the Python traceback of an error.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a Slurm, MPI, Kubernetes or Cloud TPU job."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for processes that you start without a cluster."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "With --coordinator: the number of processes."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "With --coordinator: the index of this process, from 0."
)
JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", joining.JOIN, "Seconds to wait for all processes of the job to start."
)
# Flags of the modes that can run in several processes.
JOINING = (DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID, JOIN_TIMEOUT)
# Whether this is the command `fewstep` of an installation.
INSTALLED = Path(sys.argv[0]).name == "fewstep"
HELP = {"--help", "-help", "-h", "-?", "--helpshort"}
UNFINISHED = "preempted, resumable: the same command repeats what was not finished"


def define_flags() -> None:
    """Define the flags that the modes declare; the help of each names its modes."""
    helps: dict[str, dict[str, list[str]]] = {}
    for name, mode in MODES.items():
        for flag, own in mode.flags.items():
            helps.setdefault(flag, {}).setdefault(own.help, []).append(name)
    for flag, texts in helps.items():
        if flag != CONFIG.name:
            lines = [f"{', '.join(modes)}: {text}" for text, modes in texts.items()]
            switch = any(m.flags[flag].switch for m in MODES.values() if flag in m.flags)
            define = flags.DEFINE_bool if switch else flags.DEFINE_string
            define(flag, None, " ".join(lines))


define_flags()


def main(_: list[str]) -> None:
    """Run one mode; an error that the user can fix prints a message and exits with code 2."""
    silence_libraries()
    keep_freed_memory()
    try:
        asked = read_request()
        enable_compilation_cache(asked, MODES[MODE.value].trains)
        where = clusters.rendezvous(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        if where or DISTRIBUTED.value:
            joining.join(where, JOIN_TIMEOUT.value)
        elif JOIN_TIMEOUT.present:
            raise ValueError(
                "--join_timeout needs several processes; add --distributed or --coordinator"
            )
    except (ValueError, OSError) as error:
        fail(error)
    except MissingError as error:
        fail(error, exits.PEER_DIED)
    with processes.leave_together():
        run_mode(asked)


def silence_libraries() -> None:
    """Hide what libraries print about errors that Fewstep reports itself.

    For example, Orbax prints several tracebacks from its threads if a save fails
    (training/storage/checkpoint.py). --traceback shows them.
    """
    if TRACEBACK.value:
        return
    logging.set_verbosity(logging.FATAL)
    hook = sys.unraisablehook
    loop_closed = "Event loop is closed"
    sys.unraisablehook = lambda lost: str(lost.exc_value) == loop_closed or hook(lost)


def run_mode(asked: Request) -> None:
    """Run the requested mode; SIGTERM and Ctrl-C end it with one line and an exit code."""
    mode = MODES[MODE.value]
    interrupted = INTERRUPTED if mode.trains else BROKEN_OFF
    try:
        with (
            Preemption(processes.has_peers() and mode.trains, interrupted) as preemption,
            preemption.at_once(),
            memory_errors_in_words(),
        ):
            if processes.has_peers() and mode.alike:
                check_same_flags(MODE.value, asked)
            with on_disk(asked.workdir, mode.trains) as folder:
                mode.run(asked._replace(workdir=folder))
    except (ValueError, OSError, DivergedError) as error:
        if TRACEBACK.value:
            raise
        fail(error, exits.DIVERGED if isinstance(error, DivergedError) else exits.BAD_INPUT)
    except Preempted as stop:
        if not str(stop):  # only this process stops; the others still wait for it
            processes.exit_with_error(exits.PREEMPTED, UNFINISHED)
        processes.say(str(stop), sys.stderr)
        sys.exit(exits.PREEMPTED)
    except KeyboardInterrupt as stop:
        if not str(stop):
            processes.exit_with_error(exits.INTERRUPTED, interrupted)
        processes.say(str(stop), sys.stderr)
        sys.exit(exits.INTERRUPTED)


def read_request() -> Request:
    """Return the flags as a Request. Raises ValueError for a flag that the mode does not use."""
    mode = MODES[MODE.value]
    joining_flags = [flag.name for flag in JOINING]
    read = {*mode.flags, *(joining_flags if mode.together else ())}
    declared = {name for each in MODES.values() for name in each.flags}
    given = [name for name in sorted({*declared, *joining_flags}) if flags.FLAGS[name].present]
    for name in given:
        if name not in read:
            users = [
                other
                for other, each in MODES.items()
                if name in each.flags or (name in joining_flags and each.together)
            ]
            meant = did_you_mean(mistakes.meant_flag(name, mode, known_field), "{}")
            hint = meant or (f"; it is for the mode(s) {', '.join(users)}" if users else "")
            raise ValueError(f"--{name} is not used by --mode={MODE.value}{hint}")
    config = command_line.config_from_flags(flags.FLAGS)
    fields, values = {} if config is not None else replaced_fields(mode), {}
    for name in given:
        if name in mode.flags and name != CONFIG.name:
            flag, text = mode.flags[name], flags.FLAGS[name].value
            own = f"{name}_" if iskeyword(name) else name
            into, names = (fields, flag.fields) if flag.fields else (values, (own,))
            into |= dict.fromkeys(names, flag.read(name, text))
    if config is None:
        permit_code(fields.get("data.name", ""), fields.get("teacher", ""))
    else:
        permit_code(config.data.name, config.teacher)
    return Request(
        config=None if config is None else checked(config),
        given=None if config is None else command_line.given_fields(),
        fields=fields,
        config_of_method=lambda method: checked(command_line.config_of_method(method)),
        teachers=TEACHERS,
        **values,
    )


def replaced_fields(mode: Mode) -> dict[str, Any]:
    """Return the fields given by --config.FIELD without --config, by dotted name.

    Raises ValueError for a field that the mode does not take from the record of a run.
    """
    fields = command_line.read_fields(sys.argv[1:])
    for name in fields:
        if not mode.may_replace(name):
            raise ValueError(mistakes.no_effect(name, MODE.value, mode))
    return fields


def fail(error: Exception, code: int = exits.BAD_INPUT) -> None:
    """Print the message of an error as one paragraph and exit with a code."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = in_words(error)
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    processes.exit_with_error(code, f"error: {' '.join(message.split())}")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags and read the config file with its overrides. --help exits with code 0."""
    command_line.accept_none()
    argv = sys.argv = command_line.spread_groups(argv)  # where absl looks for fields of --config
    if HELP & {*argv}:
        show_usage(argv)
    try:
        argv, config = expand_config_path(argv)
    except ValueError as error:  # the home folder of an unknown user
        fail(error)
    file = (config or "").partition(":")[0]
    if config is not None and not command_line.is_python(Path(file)):
        fail(ValueError(command_line.missing_file_message(config)))
    fields: list[str] = []
    if not config:  # a mode may take these fields in place of those of a recorded run
        argv, fields = command_line.split_fields(argv)
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # absl's own help flags exit with code 1
        sys.exit(exits.DONE)
    except flags.UnrecognizedFlagError as error:
        mode = requested_mode(argv)
        unknown = mistakes.unknown_flag(
            error.flagname, mode, MODES[mode], known_field, known_flags()
        )
        fail(ValueError(unknown))
    except command_line.ERRORS as error:
        unknown = command_line.explain_unknown_field(config or "", argv, known_flags())
        raised = command_line.explain_file_error(file, error)
        fail(ValueError(unknown or raised or command_line.explain_value(error)))
    if len(rest) > 1:
        fail(ValueError(mistakes.stray_word(rest[1:], argv, [*MODES])))
    if MODE.value not in MODES:
        fail(ValueError(unknown_choice("--mode", MODE.value, MODES)))
    if fields and not MODES[MODE.value].replaces:
        name, mode = fields[0].lstrip("-").partition("=")[0], MODE.value
        fail(ValueError(mistakes.field_without_config(name, mode, MODES[mode], known_field)))
    return rest


def show_usage(argv: list[str]) -> None:
    """Print the help of the requested mode and exit with code 0."""
    mode = requested_mode([part for part in argv if part not in HELP])
    joins, common = (
        {flag.name: flags.FLAGS[flag.name].help for flag in those}
        for those in (JOINING, (TRACEBACK,))
    )
    text = usage(mode, joins, common)
    print(text.replace("python main.py", "fewstep") if INSTALLED else text)
    sys.exit(exits.DONE)


def requested_mode(argv: list[str]) -> str:
    """Return the mode of a command line whose other flags may be wrong; exits if there is none."""
    values = flags.FlagValues()
    flags.DEFINE_string(MODE.name, MODE.default, "", flag_values=values)
    try:
        values(argv, known_only=True)
    except flags.Error as error:
        fail(ValueError(command_line.explain_value(error)))
    if values.mode not in MODES:
        fail(ValueError(unknown_choice("--mode", values.mode, MODES)))
    return values.mode


def known_flags() -> list[str]:
    """Return the names of all flags."""
    declared = [flag for mode in MODES.values() for flag in mode.flags]
    return [*declared, *(flag.name for flag in (MODE, TRACEBACK, *JOINING)), "help"]


def expand_config_path(argv: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments with the path of --config expanded, and its value or None.

    It may begin with ~, or name a config that comes with Fewstep.
    """
    argv, value = [*argv], None
    for i, argument in enumerate(argv):
        given = re.fullmatch(r"(--?config=)(.*)", argument)
        if given:
            value = config_path(given[2])
            argv[i] = given[1] + value
        elif argument in ("--config", "-config") and argv[i + 1 :]:
            value = argv[i + 1] = config_path(argv[i + 1])
    return argv, value


def config_path(given: str) -> str:
    """Return the path of a config as a user gives it."""
    return command_line.packaged_config(expand_home(given))


def run() -> None:
    """Run the command line; the command `fewstep` of an installation."""
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
