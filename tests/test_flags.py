"""Every flag reaches the field of the request that it is for, in the modes that read it."""

import re
import tomllib
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

import main
from fewstep.configs.methods import TEACHERS
from fewstep.modes import MODES
from fewstep.modes.request import Request
from fewstep.training.profile import Window
from fewstep.training.storage import code_version

# Of absl, which loads a config file as Python 3.12 will not.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

CONFIG = "configs/digits.py:shortcut"
# flag: its text, the field, and the value there
FLAGS = {
    "workdir": ("runs/x", "workdir", Path("runs/x")),
    "workdirs": ("a,b", "workdirs", (Path("a"), Path("b"))),
    "steps": ("3", "steps", 3),
    "seeds": ("4-6,9", "seeds", (4, 5, 6, 9)),
    "methods": ("cd,sim", "methods", ("cd", "sim")),
    "metric": ("fd-pixels-1k", "metric", "fd-pixels-1k"),
    "labels": ('7,cat,"a, b",07', "labels", (7, "cat", "a, b", "07")),
    "guidance": ("2.5", "guidance", 2.5),
    "out": ("there.npz", "out", Path("there.npz")),
    "checkpoint": ("30", "checkpoint", 30),
    "network": ("ema_0.9", "network", "ema_0.9"),
    "mesh": ("4,2", "mesh", (4, 2)),
    "accelerator": ("h100", "accelerator", "h100"),
    "mfu": ("0.3,0.5", "mfu", (0.3, 0.5)),
    "price": ("2.5", "price", 2.5),
    "disk_speed": ("3.5", "disk_speed", 3.5),
    "profile": ("4:7", "profile", Window(4, 7)),
    "from": ("runs/a@5", "from_", "runs/a@5"),
}
# Read by `main` itself, before there is a request.
OF_PROCESSES = ("distributed", "coordinator", "num_processes", "process_id", "join_timeout")
TEXTS = {name: text for name, (text, *_) in FLAGS.items()} | {
    "config": CONFIG,
    "distributed": "true",
    "coordinator": "127.0.0.1:1",
    "num_processes": "2",
    "process_id": "1",
    "join_timeout": "60",
}
RUNS = ("train", "evaluate", "sample", "report", "checkpoints", "replay")
TOGETHER = ("train", "evaluate", "sample", "compare", "replay", "doctor")
READ_BY = {
    "config": ("train", "evaluate", "prepare", "describe", "plan", "compare", "replay", "doctor"),
    "workdir": (*RUNS, "compare", "doctor", "describe"),
    "from": ("train", "describe", "doctor"),
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
    "profile": ("train",),
    **dict.fromkeys(("accelerator", "mfu", "price", "disk_speed"), ("plan",)),
    **dict.fromkeys(OF_PROCESSES, TOGETHER),
}


def requested(*arguments):
    """The request of a command line."""
    command = ["main.py", *arguments]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)  # where fields of a config are looked for
        flags.FLAGS(command)
        return main.read_request()


def test_without_flags_a_request_has_its_defaults():
    assert requested()._replace(config_of_method=None) == Request(teachers=TEACHERS)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_reaches_its_field_and_no_other(flag):
    text, field, value = FLAGS[flag]
    mode = f"--mode={READ_BY[flag][0]}"
    before, after = requested(mode), requested(mode, f"--{flag}={text}")
    own = {field: value, "config_of_method": after.config_of_method}
    assert after == before._replace(**own)
    assert getattr(before, field) != value


def test_a_config_has_its_method_and_its_overrides():
    config = requested(
        "--mode=describe", f"--config={CONFIG}", "--config.seed=5", "--config.ema.decays=(0.5,)"
    ).config
    assert (config.method, config.seed, config.ema.decays) == ("shortcut", 5, (0.5,))


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_refuses_the_flags_that_it_does_not_read(mode):
    for flag, text in TEXTS.items():
        arguments = (f"--mode={mode}", f"--{flag}={text}")
        if mode in READ_BY[flag]:
            requested(*arguments)
        else:
            with pytest.raises(ValueError, match=f"--{flag} is not used by --mode={mode}"):
                requested(*arguments)


def test_every_flag_and_every_field_is_in_a_table():
    own = {flag.name for flag in flags.FLAGS.get_flags_for_module("main")}
    own |= {flag.name for flag in flags.FLAGS.get_flags_for_module(main)}
    # Without the flags of single fields of a config, which other tests may have defined.
    known = {*READ_BY, "mode", "traceback"}
    assert {name for name in own if not name.startswith("config.")} == known
    fields = {field for _, field, _ in FLAGS.values()}
    assert set(Request._fields) == fields | {"config", "config_of_method", "teachers"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode=sample", '--labels="a'), '--labels="a has unmatched quotes'),
        (("--mode=sample", "--labels=a,,b"), "--labels=a,,b has an empty part"),
        (("--mode=report", "--workdirs=a,"), "--workdirs=a, has an empty part"),
        (("--mode=sample", "--steps=two"), "--steps=two must be a whole number, such as 4"),
        (("--mode=sample", "--guidance=much"), "--guidance=much must be a number, such as 2.5"),
        (("--mode=plan", "--mesh=8,b"), "--mesh=8,b must be whole numbers"),
        (("--mode=plan", '--mfu="'), "--mfu="),
    ],
)
def test_values_that_cannot_be_read_name_their_flag(arguments, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        requested(*arguments)


def test_only_flags_of_the_program_are_guessed(capsys):
    for flag, guessed in (("--device=cpu", ""), ("--stepss=3", "--steps"), ("--data=x", "")):
        with pytest.raises(SystemExit):
            main.parse_flags(["main.py", flag])
        error = capsys.readouterr().err
        assert ("did you mean" in error) == bool(guessed) and guessed in error


def test_the_lint_rule_on_names_knows_every_room_and_module():
    rule = tomllib.loads((Path(main.__file__).parent / "pyproject.toml").read_text())
    banned = rule["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert {*banned} == {*code_version.ROOMS, *code_version.MODULES} - {"main", "fewstep"}
