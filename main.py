"""Train, evaluate and sample few-step generative models.

    python main.py --config=configs/digits.py:shortcut --workdir=runs/digits
    python main.py --mode=sample --workdir=runs/digits --steps=1 --seeds=0-63 --out=samples

Short on purpose: flags in, one mode out. Any field of the config can be set, for example
--config.optimizer.learning_rate=1e-3. Bad input ends in one or two lines on standard error and exit
code 2 (training/cluster/exits.py has the others).
"""

import os
import re
import signal
import sys
from pathlib import Path

# Ctrl-C during these imports ends the process without a traceback; `run_mode` handles it later.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# Orbax and TFDS log through absl; the progress bar and the results are what a user wants to see.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from fewstep.configs import command_line
from fewstep.configs.methods import TEACHERS
from fewstep.files import in_words
from fewstep.messages import did_you_mean, nearest_name, unknown_choice
from fewstep.modes import MODES
from fewstep.modes.compilation_cache import enable_compilation_cache
from fewstep.modes.request import Request, check_same_flags, expand_home, expand_paths
from fewstep.modes.usage import usage
from fewstep.training.cluster import clusters, exits, joining, processes
from fewstep.training.cluster.door import MissingError
from fewstep.training.cluster.preemption import BROKEN_OFF, INTERRUPTED, Preempted, Preemption
from fewstep.training.report import DivergedError
from fewstep.training.storage.fields import check_fields

MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
CONFIG = config_flags.DEFINE_config_file("config", None, "configs/FILE.py:METHOD")
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a Slurm, MPI, Kubernetes or Cloud TPU job."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, to join processes that no cluster started."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one, from 0.")
JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", joining.JOIN, "Seconds to wait until all processes of the job have started."
)
# Read by the modes that several processes run together.
JOINING = (DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID, JOIN_TIMEOUT)
HELP = {"--help", "-help", "-h", "-?", "--helpshort"}
UNFINISHED = "preempted, resumable: the same command does again what was not finished"


def define_flags() -> None:
    """Define the flags that the modes declare; each says in which modes it is read."""
    helps: dict[str, dict[str, list[str]]] = {}
    for name, mode in MODES.items():
        for flag, (text, _) in mode.flags.items():
            helps.setdefault(flag, {}).setdefault(text, []).append(name)
    for flag, texts in helps.items():
        if flag != CONFIG.name:
            lines = [f"{', '.join(modes)}: {text}" for text, modes in texts.items()]
            flags.DEFINE_string(flag, None, " ".join(lines))


define_flags()


def main(_: list[str]) -> None:
    """Run one mode; an error that a user can mend becomes a message and exit code 2."""
    silence_libraries()
    try:
        asked = read_request()
        enable_compilation_cache(asked)
        where = clusters.rendezvous(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        if where or DISTRIBUTED.value:
            joining.join(where, JOIN_TIMEOUT.value)
        elif JOIN_TIMEOUT.present:
            raise ValueError("--join_timeout goes with --distributed or --coordinator")
    except (ValueError, OSError) as error:
        fail(error)
    except MissingError as error:
        fail(error, exits.PEER_DIED)
    with processes.leave_together():
        run_mode(asked)


def silence_libraries() -> None:
    """Keep libraries from telling, with tracebacks from their threads, of errors that we tell.

    So does Orbax of a save that fails (training/storage/checkpoint.py), several times over.
    """
    if TRACEBACK.value:
        return
    logging.set_verbosity(logging.FATAL)
    hook = sys.unraisablehook
    loop_closed = "Event loop is closed"
    sys.unraisablehook = lambda lost: str(lost.exc_value) == loop_closed or hook(lost)


def run_mode(asked: Request) -> None:
    """Run the mode that was asked for; SIGTERM and Ctrl-C end it with a line and their code."""
    mode = MODES[MODE.value]
    interrupted = INTERRUPTED if mode.trains else BROKEN_OFF
    try:
        with (
            Preemption(processes.has_peers() and mode.trains, interrupted) as preemption,
            preemption.at_once(),
        ):
            if processes.has_peers() and mode.alike:
                check_same_flags(MODE.value, asked)
            mode.run(asked)
    except (ValueError, OSError, DivergedError) as error:
        if TRACEBACK.value:
            raise
        fail(error, exits.DIVERGED if isinstance(error, DivergedError) else exits.BAD_INPUT)
    except Preempted as stop:
        if not str(stop):  # of this process alone, which has left the others in the middle
            processes.exit_with_error(exits.PREEMPTED, UNFINISHED)
        processes.say(str(stop), sys.stderr)
        sys.exit(exits.PREEMPTED)
    except KeyboardInterrupt:
        processes.exit_with_error(exits.INTERRUPTED, interrupted)


def read_request() -> Request:
    """The flags as a Request. Raises ValueError for a flag that the mode does not read."""
    mode = MODES[MODE.value]
    joining_flags = [flag.name for flag in JOINING]
    read = {*mode.flags, *(joining_flags if mode.together else ())}
    declared = {name for each in MODES.values() for name in each.flags}
    given = [name for name in sorted({*declared, *joining_flags}) if flags.FLAGS[name].present]
    for name in given:
        if name not in read:
            hint = f"; did you mean --config.{name}?" if name == "steps" else ""
            raise ValueError(f"--{name} is not used by --mode={MODE.value}{hint}")
    values = {
        name: mode.flags[name].read(name, flags.FLAGS[name].value)
        for name in given
        if name in mode.flags and name != CONFIG.name
    }
    config = command_line.config_from_flags(flags.FLAGS)
    return Request(
        config=None if config is None else check_config(config),
        config_of_method=lambda method: check_config(command_line.config_of_method(method)),
        teachers=TEACHERS,
        **values,
    )


def check_config(config: ConfigDict) -> ConfigDict:
    """The config with ~ expanded. Raises ValueError for a value out of its range."""
    check_fields(config)
    return expand_paths(config)


def fail(error: Exception, code: int = exits.BAD_INPUT) -> None:
    """Print an error's message in one paragraph and exit with a code."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = in_words(error)
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if "Traceback" in message:  # absl quotes a config file's; its last line says what is wrong
        message = message.strip().splitlines()[-1].partition(": ")[2]
    processes.exit_with_error(code, f"error: {' '.join(message.split())}")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags; config files and overrides are read here too. --help ends with code 0."""
    command_line.accept_none()
    if HELP & {*argv}:
        show_usage(argv)
    argv, config = expand_config_path(argv)
    file = config.partition(":")[0]
    if file and not Path(file).is_file():
        fail(ValueError(f"--config: the file {file} does not exist"))
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # of absl's other flags that show help, with code 1
        sys.exit(exits.DONE)
    except flags.UnrecognizedFlagError as error:
        declared = {flag for mode in MODES.values() for flag in mode.flags}
        known = {*declared, *(flag.name for flag in (MODE, TRACEBACK, *JOINING)), "help"}
        meant = did_you_mean(nearest_name(error.flagname.partition(".")[0], known), "--{}")
        fail(ValueError(f"--{error.flagname} is no flag{meant}"))
    except command_line.ERRORS as error:
        fail(ValueError(command_line.explain_unknown_field(config, argv) or str(error)))
    if len(rest) > 1:
        # Such as --steps 4 5, or a name of a mode.
        meant = did_you_mean(nearest_name(rest[1], MODES), "--mode={}")
        fail(ValueError(f"{rest[1]!r} is no flag{meant or '; a flag begins with --'}"))
    if MODE.value not in MODES:
        fail(ValueError(unknown_choice("--mode", MODE.value, MODES)))
    return rest


def show_usage(argv: list[str]) -> None:
    """Print the help of the mode that is asked for, and exit with code 0."""
    values = flags.FlagValues()
    flags.DEFINE_string(MODE.name, MODE.default, "", flag_values=values)
    try:
        values([part for part in argv if part not in HELP], known_only=True)
    except flags.Error as error:
        fail(ValueError(str(error)))
    if values.mode not in MODES:
        fail(ValueError(unknown_choice("--mode", values.mode, MODES)))
    joins, common = (
        {flag.name: flags.FLAGS[flag.name].help for flag in those}
        for those in (JOINING, (TRACEBACK,))
    )
    print(usage(values.mode, joins, common))
    sys.exit(exits.DONE)


def expand_config_path(argv: list[str]) -> tuple[list[str], str]:
    """The arguments with ~ in --config expanded, and the value of --config, "" without it."""
    argv, value = [*argv], ""
    for i, argument in enumerate(argv):
        given = re.fullmatch(r"(--?config=)(.*)", argument)
        if given:
            value = expand_home(given[2])
            argv[i] = given[1] + value
        elif argument in ("--config", "-config") and argv[i + 1 :]:
            value = argv[i + 1] = expand_home(argv[i + 1])
    return argv, value


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
