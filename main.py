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

# Ctrl-C while the libraries are imported ends the process without their traceback; `run` has more.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# Orbax and TFDS log through absl; the progress bar and the results are what a user wants to see.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from fewstep.configs import overrides
from fewstep.configs.methods import TEACHERS
from fewstep.files import in_words
from fewstep.messages import guess, nearest, no_choice
from fewstep.modes import MODES, Request
from fewstep.modes.command_line import take_none, unknown_field
from fewstep.modes.compilation_cache import keep_compiled
from fewstep.modes.request import at_home, check_started_alike, with_home
from fewstep.training.cluster import clusters, exits, joining, processes
from fewstep.training.cluster.door import MissingError
from fewstep.training.cluster.preemption import BROKEN_OFF, INTERRUPTED, Preempted, Preemption
from fewstep.training.profile import Window
from fewstep.training.report import DivergedError
from fewstep.training.storage.fields import check_fields

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/FILE.py:METHOD")
MODE = flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
WORKDIRS = flags.DEFINE_list("workdirs", [], "report: folders of the runs to show together.")
STEPS = flags.DEFINE_integer("steps", 1, "sample: number of sampling steps.")
SEEDS = flags.DEFINE_string(
    "seeds",
    None,
    "sample: of the noise, one image each; default 0-63. compare: of the runs; default 0.",
)
METRIC = flags.DEFINE_string(
    "metric", "", "report: which measurement, such as fd-pixels-1k, if the runs have several."
)
METHODS = flags.DEFINE_list("methods", [], "compare: the methods, such as cd,sim; teachers follow.")
LABELS = flags.DEFINE_list(
    "labels", [], "sample: classes by index or name, gone through in turn; all if unset."
)
GUIDANCE = flags.DEFINE_float("guidance", None, "sample: guidance scale; 1 is none.")
CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "sample, evaluate: step; default newest.")
NETWORK = flags.DEFINE_string(
    "network", "", "sample, evaluate: network or average that samples, such as ema_0.999."
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a Slurm, MPI, Kubernetes or Cloud TPU job."
)
MESH = flags.DEFINE_list("mesh", [], "plan: sizes of the axes data and fsdp, such as 8,8.")
ACCELERATOR = flags.DEFINE_string(
    "accelerator", "", "plan: for what, such as h100, 8xh100, or the TPU slices v4-32, v5e-16."
)
MFU = flags.DEFINE_list(
    "mfu", [], "plan: share of the peak FLOP/s that is reached, one or a range; default 0.25,0.45."
)
PRICE = flags.DEFINE_float("price", None, "plan: of a device for an hour, in any currency.")
DISK_SPEED = flags.DEFINE_float(
    "disk_speed", None, "plan: GB/s that all processes write to the workdir together; default 1."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, to join processes that no cluster started."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one, from 0.")
JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", joining.JOIN, "Seconds to wait until all processes of the job have started."
)
PROFILE = flags.DEFINE_string(
    "profile", None, "train: START:STOP, the steps of which a trace is kept, such as 100:103."
)
OUT = flags.DEFINE_string(
    "out", None, "sample: a folder or an .npz file. evaluate: a folder. report: an .html file."
)


# The modes that several processes run together.
TOGETHER = ("train", "evaluate", "sample", "compare", "replay", "doctor")
# Those that train: SIGTERM ends them in all processes after the same step.
TRAINING = ("train", "compare")
UNFINISHED = "preempted, resumable: the same command does again what was not finished"
# The modes of a run's folder.
WITH_RUNS = ("train", "evaluate", "sample", "report", "checkpoints", "replay")
# The modes that read a flag; those that are not here are read by all.
USED_BY = {
    "config": ("train", "evaluate", "prepare", "describe", "plan", "compare", "replay", "doctor"),
    "workdir": (*WITH_RUNS, "compare", "doctor"),
    "workdirs": ("report",),
    "steps": ("sample",),
    "seeds": ("sample", "compare"),
    "methods": ("compare",),
    "metric": ("report",),
    "labels": ("sample",),
    "guidance": ("sample",),
    "checkpoint": ("sample", "evaluate"),
    "network": ("sample", "evaluate"),
    "out": ("sample", "evaluate", "report"),
    "mesh": ("plan",),
    "accelerator": ("plan",),
    "mfu": ("plan",),
    "price": ("plan",),
    "disk_speed": ("plan",),
    "profile": ("train",),
    "distributed": TOGETHER,
    "coordinator": TOGETHER,
    "num_processes": TOGETHER,
    "process_id": TOGETHER,
    "join_timeout": TOGETHER,
}


def main(_: list[str]) -> None:
    """Run one mode; an error that a user can mend becomes a message and exit code 2."""
    quieten()
    try:
        asked = request()
        keep_compiled(asked)
        where = clusters.rendezvous(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        if where or DISTRIBUTED.value:
            joining.join(where, JOIN_TIMEOUT.value)
        elif flags.FLAGS["join_timeout"].present:
            raise ValueError("--join_timeout goes with --distributed or --coordinator")
    except (ValueError, OSError) as error:
        fail(error)
    except MissingError as error:
        fail(error, exits.PEER_DIED)
    with processes.together():
        run(asked)


def quieten() -> None:
    """Keep libraries from telling, with tracebacks from their threads, of errors that we tell.

    So does Orbax of a save that fails (training/storage/checkpoint.py), several times over.
    """
    if TRACEBACK.value:
        return
    logging.set_verbosity(logging.FATAL)
    hook = sys.unraisablehook
    loop_closed = "Event loop is closed"
    sys.unraisablehook = lambda lost: str(lost.exc_value) == loop_closed or hook(lost)


def run(asked: Request) -> None:
    """Run the mode that was asked for; SIGTERM and Ctrl-C end it with a line and their code."""
    trains = MODE.value in TRAINING
    interrupted = INTERRUPTED if trains else BROKEN_OFF
    try:
        with (
            Preemption(processes.several() and trains, interrupted) as preemption,
            preemption.at_once(),
        ):
            # The doctor tells differences itself, with all else that it finds.
            if processes.several() and MODE.value != "doctor":
                check_started_alike(MODE.value, asked)
            MODES[MODE.value](asked)
    except (ValueError, OSError, DivergedError) as error:
        if TRACEBACK.value:
            raise
        fail(error, exits.DIVERGED if isinstance(error, DivergedError) else exits.BAD_INPUT)
    except Preempted as stop:
        if not str(stop):  # of this process alone, which has left the others in the middle
            processes.fail(exits.PREEMPTED, UNFINISHED)
        processes.say(str(stop), sys.stderr)
        sys.exit(exits.PREEMPTED)
    except KeyboardInterrupt:
        processes.fail(exits.INTERRUPTED, interrupted)


def request() -> Request:
    """The flags as a Request.

    Raises ValueError for lists that are not of integers and for flags that the mode does not read.
    """
    for name, modes in USED_BY.items():
        if flags.FLAGS[name].present and MODE.value not in modes:
            hint = f"; did you mean --config.{name}?" if name == "steps" else ""
            raise ValueError(f"--{name} is not used by --mode={MODE.value}{hint}")
    return Request(
        config=config_of(flags.FLAGS),
        config_of_method=config_of_method,
        workdir=path_of(WORKDIR.value),
        workdirs=tuple(map(path_of, WORKDIRS.value)),
        steps=STEPS.value,
        seeds=ranges(SEEDS.value) if SEEDS.value is not None else None,
        methods=tuple(METHODS.value),
        teachers=TEACHERS,
        metric=METRIC.value,
        labels=tuple(map(index_or_name, LABELS.value)),
        guidance=GUIDANCE.value,
        out=path_of(OUT.value),
        checkpoint=CHECKPOINT.value,
        network=NETWORK.value,
        mesh=integers("mesh", MESH.value, "8,8"),
        accelerator=ACCELERATOR.value,
        mfu=numbers("mfu", MFU.value, "0.25,0.45"),
        price=PRICE.value,
        disk_speed=DISK_SPEED.value,
        profile=window(PROFILE.value) if PROFILE.value is not None else None,
    )


def path_of(text: str | None) -> Path | None:
    """The path in a flag, None without one."""
    return Path(at_home(text)) if text else None


def integers(flag: str, values: list[str], example: str) -> tuple[int, ...]:
    """The values of a flag as integers. Raises ValueError."""
    if not all(re.fullmatch(r"-?\d+", value) for value in values):
        raise ValueError(f"--{flag}={','.join(values)} must be integers, such as {example}")
    return tuple(map(int, values))


def index_or_name(text: str) -> int | str:
    """A number as it would be printed as an int, anything else as the name of a class."""
    return int(text) if re.fullmatch(r"0|-?[1-9]\d*", text) else text


def numbers(flag: str, values: list[str], example: str) -> tuple[float, ...]:
    """The values of a flag as numbers. Raises ValueError."""
    try:
        return tuple(map(float, values))
    except ValueError as error:
        raise ValueError(
            f"--{flag}={','.join(values)} must be numbers, such as {example}"
        ) from error


def window(text: str) -> Window:
    """The steps of START:STOP. Raises ValueError."""
    ends = re.fullmatch(r"(\d+):(\d+)", text)
    if not ends:
        raise ValueError(
            f"--profile={text} must be START:STOP, two numbers of steps such as 100:103"
        )
    return Window(*map(int, ends.groups()))


def ranges(text: str) -> tuple[int, ...]:
    """Numbers and ranges with both ends, such as 0-63 or 0-7,100. Raises ValueError."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not ends or int(ends[2] or ends[1]) < int(ends[1]):
            raise ValueError(f"--seeds={text} must be numbers or ranges, such as 0-63 or 0-7,100")
        numbers += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(numbers)


def config_of(values: flags.FlagValues) -> ConfigDict | None:
    """--config with its overrides; a part with another name than the file's keeps those alone.

    Raises ValueError for a value out of its range.
    """
    config = values["config"].value
    if config is None:
        return None
    given = config_flags.get_override_values(values["config"])
    overrides.forget_replaced(
        config, given, {field: values[f"config.{field}"].default for field in given}
    )
    check_fields(config)
    return with_home(config)


def config_of_method(method: str) -> ConfigDict:
    """The config that --config's file has for a method, with the same overrides.

    Raises ValueError for a method that it does not have, or one without an overridden field.
    """
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    given = config_flags.get_override_values(flags.FLAGS["config"])
    overridden = [f"--config.{field}={value}" for field, value in given.items()]
    try:
        values([sys.argv[0], f"--config={file}:{method}", *overridden])
    except (flags.Error, KeyError, AttributeError) as error:
        unknown = unknown_in(f"{file}:{method}", overridden)
        raise ValueError(f"{method}: {unknown}" if unknown else str(error)) from error
    return config_of(values)


def plain_config(path: str) -> ConfigDict:
    """FILE[:METHOD] without overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=sys.argv[:1])
    values([sys.argv[0], f"--config={path}"])
    return values["config"].value


def fail(error: Exception, code: int = exits.BAD_INPUT) -> None:
    """Print an error's message in one paragraph and exit with a code."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = in_words(error)
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if "Traceback" in message:  # absl quotes a config file's; its last line says what is wrong
        message = message.strip().splitlines()[-1].partition(": ")[2]
    processes.fail(code, f"error: {' '.join(message.split())}")


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; config files and overrides are read here too. --help ends with code 0."""
    take_none()
    argv, config = with_config_at_home(argv)
    file = config.partition(":")[0]
    if file and not Path(file).is_file():
        fail(ValueError(f"--config: the file {file} does not exist"))
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # of absl's flags that show help, with code 1
        sys.exit(exits.DONE)
    except flags.UnrecognizedFlagError as error:
        known = [*USED_BY, MODE.name, TRACEBACK.name, "help"]
        meant = guess(nearest(error.flagname.partition(".")[0], known), "--{}")
        fail(ValueError(f"--{error.flagname} is no flag{meant}"))
    except (flags.Error, ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        fail(ValueError(unknown_in(config, argv) or str(error)))
    if len(rest) > 1:
        # Such as --steps 4 5, or a name of a mode.
        meant = guess(nearest(rest[1], MODES), "--mode={}")
        fail(ValueError(f"{rest[1]!r} is no flag{meant or '; a flag begins with --'}"))
    if MODE.value not in MODES:
        fail(ValueError(no_choice("--mode", MODE.value, MODES)))
    return rest


def with_config_at_home(argv: list[str]) -> tuple[list[str], str]:
    """The arguments with ~ in --config expanded, and the value of --config, "" without it."""
    argv, value = [*argv], ""
    for i, argument in enumerate(argv):
        given = re.fullmatch(r"(--?config=)(.*)", argument)
        if given:
            value = at_home(given[2])
            argv[i] = given[1] + value
        elif argument in ("--config", "-config") and argv[i + 1 :]:
            value = argv[i + 1] = at_home(argv[i + 1])
    return argv, value


def unknown_in(config: str, argv: list[str]) -> str:
    """The message for the first field that a config does not have; "" if that is not the fault."""
    try:
        return unknown_field(plain_config(config), argv) if config else ""
    except (flags.Error, ValueError, KeyError, AttributeError, TypeError, OSError):
        return ""


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
