"""The config of a student on the command line: inherited, refused with what works, or going on."""

import shutil

import pytest

from fewstep.modes.request import Request
from fewstep.modes.student import follow_teacher, keep_inherited, read_student
from fewstep.training.classes import class_names
from fewstep.training.experiment import build, effective_config
from fewstep.training.location import pin_teacher
from fewstep.training.networks import with_network_fields
from fewstep.training.storage import identity, workdir
from fewstep.training.teacher import teacher_identity
from tests.modes.recorded import random_network, replace_dit
from tests.training.runs import save_run, small_config

STUDENTS = {"cd": "edm", "cd_flow": "flow_matching", "lcm": "ddpm", "scd": "trigflow"}


def request(method, teacher, folder=None, given=(), **fields):
    """The request of a user with a config file of small configs."""

    def config_of(name):
        return small_config(name, teacher=str(teacher), **fields)

    given = ("teacher", *given)
    return Request(config_of(method), folder, given, config_of_method=config_of, teachers=STUDENTS)


@pytest.fixture
def begun(tmp_path):
    """Begins a run of a method in a folder, without a checkpoint."""

    def begin(method, **fields):
        workdir.start_run(tmp_path / method, with_network_fields(small_config(method, **fields)))
        return tmp_path / method

    return begin


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A teacher with a checkpoint of step 5, and its student in folders beside each other."""
    replace_dit(monkeypatch, lambda *_, **fields: random_network((8, 8, 1)))
    teacher, student = tmp_path / "old/edm/seed_0", tmp_path / "old/cd/seed_0"
    save_run(teacher, "edm", **{"path.sigma_max": 40.0})
    config = pin_teacher(read_student(request("cd", teacher, student)).config, student)
    workdir.start_run(student, config, teacher=teacher_identity(config, build(config)))
    return teacher, student


def test_debug_keeps_the_network_of_the_teacher(begun):
    teacher = begun("flow_matching", **{"model.size": "micro"})
    config = effective_config(read_student(request("cd", teacher, debug=True)).config)
    assert (config.model.size, config.steps, config.path.name) == ("micro", 10, "linear")


@pytest.mark.parametrize(
    ("method", "teacher", "message"),
    [
        (
            "scd",
            "flow_matching",
            "teacher={} is a flow_matching run, which scd cannot use: continuous-time consistency "
            "needs path.name=trigflow, not linear. Methods that can use it: cd, lcm",
        ),
        (
            "edm",
            "flow_matching",
            "teacher={} predicts velocity on the linear path, and edm trains F on the ve path. "
            "Methods that can use it: flow_matching",
        ),
        ("cd", "ct", "teacher={} was trained by ct, which does not predict"),
    ],
)
def test_a_method_that_cannot_use_a_teacher_names_those_that_can(begun, method, teacher, message):
    folder = begun(teacher)
    with pytest.raises(ValueError) as error:
        read_student(request(method, folder))
    assert str(error.value).startswith(message.format(folder))


def test_no_method_is_named_for_a_mistake_that_all_would_share(begun):
    teacher = begun("edm")
    fields = {"model.size": "micro"}
    with pytest.raises(
        ValueError, match=r"size=micro \(the teacher has nano\); leave the flag out"
    ) as e:
        read_student(request("cd", teacher, given=("model.size",), **fields))
    assert "Methods" not in str(e.value)


def test_a_config_that_is_final_inherits_nothing(begun):
    asked = request("cd", begun("flow_matching"))._replace(given=None)
    assert read_student(asked).config is asked.config


def test_a_student_goes_on_by_its_own_record(runs):
    teacher, student = runs
    shutil.rmtree(teacher)
    asked = request("cd", teacher, student)
    recorded = workdir.load_config(student)
    assert keep_inherited(asked, recorded).path.sigma_max == 40.0
    asked = request("cd", teacher, student, ("path.sigma_max",), **{"path.sigma_max": 20.0})
    assert keep_inherited(asked, recorded).path.sigma_max == 20.0


@pytest.mark.parametrize("place", ["old/edm/seed_2", "old/cd/moved", "new/edm/seed_0"])
def test_a_moved_teacher_is_found_by_its_parameters(runs, tmp_path, place, capsys):
    teacher, student = runs
    save_run(teacher.parent / "seed_1", "edm", seed=1)  # another run at the same step
    if place.startswith("new"):
        (tmp_path / "old").rename(tmp_path / "new")
        student = tmp_path / "new/cd/seed_0"
    else:
        teacher.rename(tmp_path / place)
    found = read_student(request("cd", teacher, student)).config
    assert found.teacher == f"{tmp_path / place}@5"
    assert (
        f"no longer at {teacher}; {tmp_path / place}@5 has its parameters"
        in capsys.readouterr().out
    )
    workdir.check_same_run(
        student, pin_teacher(found, student), None, teacher_identity(found, build(found))
    )
    assert follow_teacher(workdir.load_config(student), student).teacher == found.teacher
    classes = identity.read_identity(tmp_path / place)._replace(data={"classes": ["a", "b"]})
    identity.write_identity(tmp_path / place, classes)
    assert class_names(student) == ("a", "b")


def test_a_missing_teacher_is_named_with_its_run_and_its_old_place(runs, tmp_path):
    teacher, student = runs
    id = workdir.recorded_identity(teacher).id
    shutil.rmtree(teacher)
    with pytest.raises(ValueError) as error:
        read_student(request("cd", tmp_path / "typo", student))
    message = str(error.value)
    assert message.startswith(f"teacher={tmp_path / 'typo'}: no run is there, and none nearby is")
    assert f"which was at {teacher}@5 (run {id}, ema_0.999 with fingerprint " in message
    assert message.endswith("name its new place by --config.teacher=WORKDIR")


@pytest.mark.parametrize("scales", [(), (1.0, 5.0)])
def test_a_student_that_goes_on_keeps_the_scales_that_its_teacher_takes(scales):
    # Its own range is not its teacher's: a plain teacher is guided from outside.
    fields = {"teacher": "runs/x", "objective.guidance_range": (1.5, 4.0), "teacher_scales": scales}
    fields |= {"objective.guidance_scale": 2.0}
    recorded = with_network_fields(small_config("progressive", **fields))
    own = {k: v for k, v in fields.items() if not scales or "guidance" not in k}
    asked = small_config("progressive", **own | {"teacher_scales": ()})
    config = keep_inherited(Request(config=asked, workdir=None, given=()), recorded)
    assert config.teacher_scales == scales
    assert config.objective.guidance_range == (1.5, 4.0)
    assert config.objective.guidance_scale == 2.0
