from pathlib import Path

import pytest

from fewstep.configs import digits
from fewstep.configs.command_line import (
    OptionalParser,
    explain_value,
    flags,
    list_files,
    missing_file_message,
    read_fields,
    spread_groups,
)
from fewstep.configs.fields import known_field, nearest_field, unknown_field_message
from fewstep.modes.request import expand_home, expand_paths
from tests.training.runs import small_config

CONFIG = digits.get_config("cd")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("batchsize", "batch_size"),
        ("bs", "batch_size"),
        ("optimiser.b1", "optimizer.b1"),
        ("optimizer.batch_size", "batch_size"),
        ("learning_rate", "optimizer.learning_rate"),
        ("data.size", "data.image_size"),
        ("save_every", "checkpoint.every"),
        ("debg", "debug"),
        ("Optimizer.LR", "optimizer.learning_rate"),
        ("eval.steps", "evaluate.steps"),
        ("checkpoint.keep_last", "checkpoint.keep"),
        ("epochs", ""),
        ("model.hidden_size", ""),
        ("workdir", ""),
        ("objective.solvr.name", ""),  # cd has no solver
        ("foo", ""),
        ("optimizer.foo", ""),
        ("steps.foo", ""),
        ("objective.xyz.name", ""),
    ],
)
def test_an_unknown_field_is_named_with_the_one_that_was_meant(asked, meant):
    ending = f"; did you mean --config.{meant}?" if meant else ""
    arguments = ["--config.seed=1", f"--config.{asked}=1", "--steps=3"]
    assert unknown_field_message(CONFIG, arguments) == f"--config.{asked} is not a field{ending}"


@pytest.mark.parametrize(
    "argument", ["--config.seed=1", "--noconfig.debug", "--config.optimizer={}"]
)
def test_fields_and_groups_that_there_are_are_not(argument):
    assert unknown_field_message(CONFIG, [argument]) == ""


@pytest.mark.parametrize(
    ("group", "field"),
    [
        ("data", "data.name"),
        ("log", "log.every"),
        ("objective.distance", "objective.distance.name"),
    ],
)
def test_a_group_with_the_value_of_a_field_is_told_with_one_of_its_fields(group, field):
    message = f"--config.{group} is a group of fields; set one, such as --config.{field}"
    assert unknown_field_message(CONFIG, [f"--config.{group}=l1"]) == message


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("lr", "optimizer.learning_rate"),
        ("Batch_Size", "batch_size"),  # rather than evaluate.batch_size
        ("features", "evaluate.features"),
        ("data", ""),
        ("name", ""),
        ("foo", ""),
    ],
)
def test_a_name_without_its_group_is_that_of_a_field(name, field):
    assert known_field(name) == field


def test_optimizer_fields_of_a_player_are_given_at_once():
    argument = "--config.player_optimizers.network.lr=1e-3"
    whole = """--config.player_optimizers="{'network': {'learning_rate': VALUE}}\""""
    assert unknown_field_message(CONFIG, [argument]).endswith(f"at once, as in {whole}")


def test_a_dictionary_for_a_group_is_one_argument_for_each_field():
    given = ["--config.optimizer={'b1': 0.5, 'name': 'adam'}", "--config.log", "{'to': ('csv',)}"]
    given += ["--config.objective={'solver': {'name': 'heun'}}", "--config.data={'a", "--steps={}"]
    assert spread_groups(given) == [
        "--config.optimizer.b1=0.5",
        "--config.optimizer.name=adam",
        "--config.log.to=('csv',)",
        "--config.objective.solver.name=heun",
        *given[-2:],
    ]
    free = "--config.player_optimizers={'network': {'learning_rate': 0.1}}"
    assert spread_groups([free]) == [free]


def test_a_part_is_compared_by_its_own_name():
    names = ["objective.solver.name", "objective.spacing.name", "model.name"]
    assert nearest_field("objective.solvr.name", names) == "objective.solver.name"


def test_none_is_read_as_none_and_other_texts_as_before():
    parser = OptionalParser(flags.FloatParser())
    assert parser.parse("None") is None and parser.parse("1e-3") == 1e-3
    with pytest.raises(ValueError, match="could not convert"):
        parser.parse("none")


PATHS = ("compilation_cache", "teacher", "data.dir", "data.local_dir", "evaluate.weights")
PATHS += ("evaluate.reference",)


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("folder:pics/", "folder:HERE/pics"),
        ("folder:../a/./pics.zip", "folder:HERE/../a/pics.zip"),  # a link may be on the way
        ("folder:/pics", "folder:/pics"),
        ("folder:", "folder:"),
        ("digits", "digits"),
    ],
)
def test_a_run_records_its_folder_of_images_from_the_root(given, recorded):
    name = expand_paths(small_config(**{"data.name": given})).data.name
    assert name == recorded.replace("HERE", str(Path.cwd()))


def test_the_home_folder_is_written_out_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    fields = {name: f"~/{name}" for name in PATHS} | {"data.name": "folder:~/pics"}
    config = expand_paths(small_config(**fields))
    for name in PATHS:
        group, _, field = name.rpartition(".")
        assert (config[group] if group else config)[field] == f"/home/me/{name}"
    assert config.data.name == "folder:/home/me/pics"
    assert (
        expand_home("digits") == "digits"
        and expand_home("a/~b") == "a/~b"
        and expand_home("") == ""
    )
    with pytest.raises(ValueError, match="the user nobody-of-that-name does not exist"):
        expand_home("~nobody-of-that-name/x")


@pytest.mark.parametrize(
    ("config", "ending"),
    [
        ("configs/digit.py:edm", "; did you mean --config=configs/digits.py:edm?"),
        ("configs/digits.py,edm", "; did you mean --config=configs/digits.py:edm?"),
        ("comand_line.py", "."),
        ("cifar10", "; did you mean --config=configs/cifar10.py?"),
        ("xyz.py:cd", "."),
    ],
)
def test_a_missing_file_is_named_with_the_one_that_was_meant(config, ending):
    file = config.partition(":")[0]
    message = missing_file_message(config)
    assert message.startswith(f"--config={config}: the file {file} does not exist{ending} The ")
    assert ", configs/cifar10.py, " in message and "base.py" not in message


@pytest.mark.parametrize(
    ("kind", "value", "meant"),
    [
        (flags.DEFINE_integer, "many", "a whole number"),
        (flags.DEFINE_float, "much", "a number"),
        (flags.DEFINE_boolean, "maybe", "True or False"),
    ],
)
def test_a_value_of_another_type_is_told_the_type(kind, value, meant):
    values = flags.FlagValues()
    kind("config.field", None, "", flag_values=values)
    with pytest.raises(flags.IllegalFlagValueError) as error:
        values(["main.py", f"--config.field={value}"])
    assert explain_value(error.value) == f"--config.field={value} must be {meant}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("Missing value for flag --workdir", "--workdir has no value; write --workdir=VALUE"),
        (
            "module 'config_config' has no attribute 'get_config'",
            f"--config: the file does not define get_config. {list_files()}",
        ),
        ("anything else", "anything else"),
    ],
)
def test_common_errors_of_absl_say_what_to_do(error, message):
    assert explain_value(ValueError(error)) == message


def test_fields_of_every_objective_are_read_without_a_config():
    """--mode=import takes them for the run that it makes."""
    given = [
        "main.py",
        "--config.objective.guided_channels=3",
        "--config.objective.solver.name=ddim",
    ]
    assert read_fields(given) == {
        "objective.guided_channels": 3,
        "objective.solver.name": "ddim",
    }
    with pytest.raises(ValueError, match="did you mean --config.objective.guided_channels"):
        read_fields(["main.py", "--config.objective.guided_chanels=3"])


def test_a_run_records_its_files_from_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fields = {"codec.weights": "codec.npz", "data.dir": "data", "evaluate.reference": "real.npz"}
    config = expand_paths(small_config(**fields))
    assert config.codec.weights == f"{tmp_path}/codec.npz"
    assert config.data.dir == f"{tmp_path}/data"
    assert config.evaluate.reference == f"{tmp_path}/real.npz"
    for reference, recorded in (("train", "train"), ("folder:a", f"folder:{tmp_path}/a")):
        config = expand_paths(small_config(**{"evaluate.reference": reference}))
        assert config.evaluate.reference == recorded
        assert config.codec.weights == config.data.dir == ""
