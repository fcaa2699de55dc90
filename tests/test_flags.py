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
    "grid": ("labels, seeds", "grid", ("labels", "seeds")),
    "sweep": ("steps=5,6; seed=1", "sweep", {"steps": ("5", "6"), "seed": ("1",)}),
    "cell": ("2/3", "cell", (2, 3)),
    "guidance": ("2.5", "guidance", 2.5),
    "num_samples": (
        "500",
        "fields",
        {"evaluate.num_samples": 500, "evaluate.final_samples": 500},
    ),
    "features": ("pixels", "fields", {"evaluate.features": "pixels"}),
    "out": ("there.npz", "out", Path("there.npz")),
    "checkpoint": ("30", "checkpoint", 30),
    "network": ("ema_0.9", "network", "ema_0.9"),
    "solver": ("heun", "solver", "heun"),
    "mesh": ("4,2", "mesh", (4, 2)),
    "accelerator": ("h100", "accelerator", "h100"),
    "mfu": ("0.3,0.5", "mfu", (0.3, 0.5)),
    "price": ("2.5", "price", 2.5),
    "disk_speed": ("3.5", "disk_speed", 3.5),
    "profile": ("4:7", "profile", Window(4, 7)),
    "from": ("runs/a@5", "from_", "runs/a@5"),
    "weights": ("sit.pt", "weights", Path("sit.pt")),
    "part": ("ema", "part", "ema"),
    "layout": ("sit", "layout", "sit"),
    "format": ("onnx", "format", "onnx"),
    "runtime": ("node_modules/x", "runtime", Path("node_modules/x")),
    "samples": ("x.npz", "samples", Path("x.npz")),
    "reference": ("digits", "reference", "digits"),
    "split": ("all", "split", "all"),
    "maps": ("true", "maps", True),
    "teacher": ("runs/a@5", "teacher", "runs/a@5"),
    "beside": ("runs/b", "beside", "runs/b"),
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
TOGETHER = ("train", "evaluate", "sample", "prepare", "compare", "replay", "doctor")
READ_BY = {
    "config": ("train", "evaluate", "prepare", "describe", "plan", "compare", "replay", "doctor"),
    "weights": ("import", "measure"),
    **dict.fromkeys(("part", "layout"), ("import",)),
    **dict.fromkeys(("samples", "reference", "split"), ("measure",)),
    "workdir": (*RUNS, "import", "export", "compare", "doctor", "describe"),
    "from": ("train", "describe", "doctor"),
    "workdirs": ("report",),
    "steps": ("sample", "evaluate", "export"),
    **dict.fromkeys(("format", "runtime"), ("export",)),
    "num_samples": ("evaluate",),
    "features": ("evaluate", "measure"),
    **dict.fromkeys(("maps", "teacher", "beside"), ("evaluate",)),
    "seeds": ("sample", "compare"),
    **dict.fromkeys(("methods", "sweep", "cell"), ("compare",)),
    "metric": ("report",),
    **dict.fromkeys(("labels", "grid"), ("sample",)),
    "guidance": ("sample", "evaluate", "export"),
    "checkpoint": ("sample", "evaluate", "export"),
    "network": ("sample", "evaluate", "export"),
    "solver": ("sample", "evaluate", "export"),
    "out": ("sample", "evaluate", "report", "export", "measure"),
    "mesh": ("plan",),
    "profile": ("train", "doctor"),
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


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        (("--config.debug", "--config.steps=7", "--config.model.size=S"), ("steps", "model.size")),
        (("--config.steps=7",), ()),
        (("--config.debug", "--config.steps=7", "--config.debug_keeps=()"), ()),
    ],
)
def test_debug_keeps_the_fields_that_are_given(fields, kept):
    config = requested("--mode=describe", f"--config={CONFIG}", *fields).config
    assert config.steps == 7 and {*config.debug_keeps} == {*kept}


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
    assert set(Request._fields) == fields | {"config", "config_of_method", "given", "teachers"}


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
        (("--mode=sample", "--labels="), "--labels= has no value"),
        (("--mode=sample", "--grid=labels"), "--grid=labels must be seeds,labels"),
        (("--mode=compare", "--cell=4/3"), "--cell=4/3 must be a share from 1/N to N/N"),
        (("--mode=compare", "--sweep=steps"), "--sweep=steps must be FIELD=VALUE,VALUE"),
        (("--mode=compare", "--sweep=steps=5,,6"), "--sweep: steps=5,,6 has an empty value"),
        (
            ("--mode=compare", "--sweep=steps=5,5"),
            "--sweep: steps or one of its values is there twice",
        ),
        (("--mode=compare", "--sweep=steps=5;steps=6"), "--sweep: steps or one of its values"),
        (
            ("--mode=compare", "--grid=seeds,labels"),
            "--grid is not used by --mode=compare; did you mean --sweep",
        ),
        (("--mode=sample", "--seeds=0-99999999999"), "--seeds=0-99999999999 has more than"),
        (("--mode=sample", "--seeds=0,1,"), "--seeds=0,1, must be numbers or ranges"),
    ],
)
def test_values_that_cannot_be_read_name_their_flag(arguments, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        requested(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # flags
        (("--device=cpu",), "--device is not a flag; --help lists the flags"),
        (("--data=x",), "--data is not a flag; --help lists the flags"),
        (("--work_dir=x",), "--work_dir is not a flag; did you mean --workdir?"),
        (("--lr=1e-3",), "did you mean --config.optimizer.learning_rate?"),
        (("--batch_size=8",), "did you mean --config.batch_size?"),
        (("--seed=8",), "did you mean --config.seed?"),
        (("--mode=sample", "--seed=8"), "did you mean --seeds?"),
        (("--mode=sample", "--cfg=3"), "did you mean --guidance?"),
        (("--mode=sample", "--batch_size=8"), "--help lists the flags"),
        (("--method=cd",), "write the method after the file, as in --config=configs/digits.py:cd"),
        (("--mode=compare", "--method=cd"), "did you mean --methods?"),
        (("--Config.steps=10",), "did you mean --config.steps?"),
        (("--config.steps=10",), "--config.steps needs --config=FILE:METHOD"),
        (
            ("--mode=checkpoints", "--config.steps=4"),
            "--config.steps needs a config, and --mode=checkpoints takes that of the run",
        ),
        # words
        (("1", "2", "4"), "'1' is not a flag; flags begin with --"),
        (("extra",), "'extra' is not a flag; flags begin with --"),
        (("sample",), "'sample' is not a flag; did you mean --mode=sample?"),
        (("--mode=sample", "--seeds", "0", "1", "2"), "write several values as in --seeds=0,1,2"),
        (("--mode=sample", "--seeds=0", "1"), "write several values as in --seeds=0,1"),
        (("--mode=sample", "--seeds=0", "/x.png"), "'/x.png' is not a flag; flags begin with --"),
        # modes
        (("--mode=2",), "--mode='2' is not one of train, evaluate, "),
        (("--mode=Eval",), "; did you mean 'evaluate'?"),
        (("--mode=",), "--mode='' is not one of train"),
        (("--mode",), "--mode has no value; write --mode=VALUE"),
        (("--mode=trian", "--stepss=4"), "; did you mean 'train'?"),
        # configs
        (("--config=",), "--config is empty; name a config, as in --config=configs/digits.py. The"),
        (("--config=README.md",), "README.md is not a Python file. The configs are configs/cele"),
        (("--config=configs/digits.py/cd",), "did you mean --config=configs/digits.py:cd? The con"),
        ((f"--config={CONFIG}", "--config.workdir=x"), "did you mean --workdir?"),
        ((f"--config={CONFIG}", "--config.=x"), "--config. is not a field"),
        (("--config=configs/digits.py:CD",), "did you mean 'cd'?"),
        (("--config=configs/digits.py:fm",), "method='fm' is not one of flow_matching, edm, ddpm"),
    ],
)
def test_what_is_typed_wrongly_is_told_with_what_was_meant(arguments, message, capsys):
    command = ["main.py", *arguments]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main.parse_flags(command)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and len(error.splitlines()) == 1
    assert "did you mean" in message or "did you mean" not in error


def test_a_config_in_the_home_folder_of_nobody_is_refused(capsys):
    command = ["main.py", "--config=~nobody_like_this/x.py", "--workdir=w"]
    with pytest.raises(SystemExit) as ended:
        main.parse_flags(command)
    assert ended.value.code == 2 and "nobody_like_this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps=4",), "--steps is not used by --mode=train; did you mean --config.steps?"),
        (("--mode=compare", "--workdirs=x"), "--mode=compare; did you mean --workdir?"),
        (("--mode=report", "--seeds=0"), "--mode=report; it is for the mode(s) sample, compare"),
        (
            (f"--config={CONFIG}", "--config.method=cd"),
            "--config.method=cd changes the name of the run, not its method; did you mean "
            "--config=configs/digits.py:cd?",
        ),
    ],
)
def test_a_flag_of_another_mode_is_told_with_what_was_meant(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        requested(*arguments)


def test_a_mistake_inside_a_config_file_is_named_by_its_line(tmp_path, capsys):
    for text, message in (("a = (", " line 1: "), ("\nb = no", " line 2: NameError: name 'no'")):
        (file := tmp_path / "mine.py").write_text(text)
        with pytest.raises(SystemExit):
            main.parse_flags(["main.py", f"--config={file}"])
        error = capsys.readouterr().err
        assert f"{file}{message}" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("flag", ["workdir", "workdirs", "out"])
def test_the_home_folder_is_written_out_in_every_flag_that_is_a_path(flag, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for mode in READ_BY[flag]:
        asked = requested(f"--mode={mode}", f"--{flag}=~/x")
        assert getattr(asked, flag) in (Path("/home/me/x"), (Path("/home/me/x"),))


def test_the_lint_rule_on_names_knows_every_room_and_module():
    rule = tomllib.loads((Path(main.__file__).parent / "pyproject.toml").read_text())
    banned = rule["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert {*banned} == {*code_version.ROOMS, *code_version.MODULES} - {"main", "fewstep"}


EVALUATE = ("--mode=evaluate", "--workdir=runs/x")


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        (("--steps=1,4",), {"evaluate.steps": (1, 4)}),
        (("--guidance=2",), {"evaluate.guidance_scale": 2.0}),
        (("--guidance=1,2",), {"evaluate.guidance_scale": (1.0, 2.0)}),
        (("--config.evaluate.steps=1,4",), {"evaluate.steps": (1, 4)}),
        (("--config.evaluate.reference", "test"), {"evaluate.reference": "test"}),
        (("--noconfig.evaluate.agreement",), {"evaluate.agreement": False}),
        (("--config.evaluate.guidance_scale=None",), {"evaluate.guidance_scale": None}),
        (("--config.data.dir=there", "--steps=2"), {"data.dir": "there", "evaluate.steps": (2,)}),
        (("--config.evaluate={'num_samples': 5}",), {"evaluate.num_samples": 5}),
    ],
)
def test_an_evaluation_takes_flags_and_fields_without_a_config(given, fields):
    found = parsed(*EVALUATE, *given)
    assert (found.config, found.fields) == (None, fields)


def parsed(*arguments):
    """The request of a command line that is parsed as `main` does."""
    command = ["main.py", *arguments]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        main.parse_flags(command)
        return main.read_request()


@pytest.mark.parametrize("mode", ["sample", "export"])
def test_a_fitted_codec_may_lie_in_another_data_folder(mode):
    found = parsed(f"--mode={mode}", "--workdir=runs/x", "--config.data.dir=there")
    assert found.fields == {"data.dir": "there"}


def test_a_dictionary_replaces_those_fields_of_a_group_that_it_has():
    given = ("--config.optimizer", "{'learning_rate': 0.005}", "--config.log={'to': ('csv',)}")
    found = parsed(f"--config={CONFIG}", *given)
    default = parsed(f"--config={CONFIG}").config
    assert found.given == ("log.to", "optimizer.learning_rate")
    assert (found.config.optimizer.learning_rate, found.config.log.to) == (0.005, ("csv",))
    assert found.config.optimizer.name == default.optimizer.name
    assert found.config.log.every == default.log.every


def test_a_flag_of_an_evaluation_replaces_the_field_of_a_config():
    found = parsed(*EVALUATE, f"--config={CONFIG}", "--steps=2")
    assert (found.config.method, found.fields) == ("shortcut", {"evaluate.steps": (2,)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode=evaluate", "--config.steps=4"), "would change nothing.*use --steps"),
        (("--mode=evaluate", "--config.model.size=B"), "replaces only evaluate, data.label_shares"),
        (("--mode=evaluate", "--config.evaluate.step=4"), "mean --config.evaluate.steps"),
        (("--mode=evaluate", "--config.evaluate.num_samples=x"), "must be a whole number"),
        (("--mode=evaluate", "--steps=x"), "--steps=x must be whole numbers"),
        (("--mode=checkpoints", "--steps=4"), "it is for the mode.* evaluate, sample, export$"),
    ],
)
def test_fields_without_a_config_are_refused_where_they_change_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        parsed(*arguments)
