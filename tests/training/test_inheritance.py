"""What a student takes from its teacher, what stays its own, and what the user decides."""

import pytest

from fewstep.configs import mixtures
from fewstep.training.experiment import build
from fewstep.training.inheritance import (
    check_given,
    check_own_path,
    describe_inherited,
    inherit,
    inherited_fields,
    with_scales,
)
from fewstep.training.networks import with_network_fields
from tests.training.runs import small_config


def recorded(method, **fields):
    """The config of a teacher as its run records it."""
    return with_network_fields(small_config(method, **fields))


def changed(config, teacher, given=()):
    """{field: value} of what inheritance changes in a config."""
    return {
        field: new for field, _, new in inherited_fields(config, inherit(config, teacher, given))
    }


@pytest.mark.parametrize(
    ("method", "teacher", "fields", "taken"),
    [
        ("sim", "edm", {}, {}),
        ("sim", "flow_matching", {}, {"path.name": "linear", "prediction.kind": "velocity"}),
        ("sim_flow", "edm", {}, {"path.name": "ve", "prediction.kind": "F"}),
        ("cd", "edm", {"prediction.sigma_data": 0.7}, {"prediction.sigma_data": 0.7}),
        ("cd", "edm", {"path.sigma_max": 40.0}, {"path.sigma_max": 40.0}),
        ("scd", "trigflow", {"model.time_scale": 2.0}, {"model.time_scale": 2.0}),
        ("cd", "edm", {"model.size": "micro", "model.scan": True}, {}),
        ("cd", "edm", {"data.name": "mnist", "data.flip": True, "data.background": "black"}, {}),
        ("cd", "edm", {"data.image_size": 16, "data.num_classes": 3, "data.dir": "/a"}, {}),
        ("progressive", "edm", {}, {"objective.spacing.name": "karras", "prediction.kind": "F"}),
        ("progressive", "flow_matching", {}, {"objective.spacing.name": "uniform"}),
        ("lcm", "ddpm", {"prediction.kind": "v"}, {"objective.spacing.name": "uniform"}),
    ],
)
def test_what_must_agree_is_the_teacher_s(method, teacher, fields, taken):
    found = changed(small_config(method), recorded(teacher, **fields))
    assert found.items() >= (taken or fields).items()
    if method in ("cd", "sim", "scd"):  # and no field of the method
        assert not [name for name in found if name.startswith(("objective", "optimizer"))]


@pytest.mark.parametrize(
    "fields",
    [
        {"model.dropout": 0.1, "model.dtype": "bfloat16", "model.attention": "chunked"},
        {"model.loss_weight": True, "model.guidance_input": True, "model.second_time": "time"},
        {"data.on_device": True, "data.label_shares": "equal", "data.local_dir": "/a"},
        {"steps": 7, "seed": 3, "optimizer.learning_rate": 1.0, "objective.guidance_scale": 3.0},
    ],
)
def test_what_need_not_agree_is_the_student_s_own(fields):
    plain = changed(small_config("cd"), recorded("edm"))
    assert changed(small_config("cd"), recorded("edm", **fields)) == plain


def test_what_the_user_sets_stays_and_must_agree():
    teacher = recorded("flow_matching", **{"model.size": "micro", "data.num_classes": 3})
    config = small_config("sim", teacher="runs/x")
    given = ("model.size", "data", "objective.sigma_init")
    student = inherit(config, teacher, given)
    assert (student.model.size, student.data.num_classes) == ("nano", 10)
    assert student.path.name == "linear"
    with pytest.raises(ValueError) as error:
        check_given(student, teacher, given)
    assert str(error.value) == (
        "teacher=runs/x does not agree with --config.data.num_classes=10 (the teacher has 3), "
        "--config.model.size=nano (the teacher has micro); leave the flag out, or name a teacher "
        "with that value"
    )
    check_given(inherit(config, teacher), teacher, given)
    # Two ways to write the same path agree.
    written = inherit(small_config("cd", **{"path.sigma_max": 80.0}), recorded("edm"), ("path",))
    check_given(written, recorded("edm"), ("path",))
    spaced = small_config("progressive", **{"objective.spacing.name": "uniform"})
    assert inherit(spaced, recorded("edm")).objective.spacing.name == "uniform"


def test_another_network_is_taken_whole():
    taught = mixtures.get_config("flow_matching")
    taught.model.width, taught.model.guidance_input = 32, True
    student = inherit(small_config("sim"), with_network_fields(taught))
    assert (student.data.name, student.model.name, student.model.width) == (
        "mixture:ring",
        "mlp",
        32,
    )
    assert student.model.size is student.model.patch_size is student.model.dropout is None
    assert student.model.guidance_input is None
    build(inherit(mixtures.get_config("sim"), recorded("edm")))


def test_a_denoising_method_is_not_another_one_on_the_path_of_its_start():
    own = small_config("edm", teacher="runs/x")
    for method, allowed in (("flow_matching", False), ("edm", True), ("cd", True)):
        config = inherit(own, recorded(method))
        if allowed:
            check_own_path(own, config, build(config))
            continue
        with pytest.raises(ValueError, match="velocity on the linear path, and edm trains F on"):
            check_own_path(own, config, build(config))


def test_inherited_fields_are_shown_with_what_the_config_has():
    found = inherited_fields(
        small_config("sim", **{"data.image_size": 0}),
        inherit(small_config("sim"), recorded("cd_flow")),
    )
    text = describe_inherited(found)
    assert "data.image_size=8, " in text
    assert "path.name=linear (not ve), prediction.kind=velocity (not F)" in text


def test_a_student_finds_the_codec_where_its_teacher_does():
    source = small_config("flow_matching", **{"codec.name": "f4", "codec.weights": "/runs/codec"})
    own = small_config("sim_flow")
    assert inherit(own, source).codec.weights == "/runs/codec"
    own.codec.weights = "/moved/codec"
    assert inherit(own, source, given=("codec.weights",)).codec.weights == "/moved/codec"


RANGE, SCALE = "objective.guidance_range", "objective.guidance_scale"
SCALES = "teacher_scales"


@pytest.mark.parametrize(
    ("method", "own", "given", "taken"),
    [
        # A method that can take the scale as an input takes the range of its teacher.
        ("progressive", {}, (), {SCALES: [1.5, 4.0], RANGE: [1.5, 4.0], SCALE: 2.0}),
        ("cd_flow", {}, (), {SCALES: [1.5, 4.0], RANGE: [1.5, 4.0], SCALE: 2.0}),
        # Unless it has one, or the user sets one scale.
        ("cd_flow", {RANGE: (2.0, 3.0), SCALE: 2.5}, (), {SCALES: [1.5, 4.0]}),
        ("progressive", {SCALE: 3.0}, (SCALE,), {SCALES: [1.5, 4.0]}),
        # Others have one scale.
        ("sim_flow", {SCALE: 3.0}, (), {SCALES: [1.5, 4.0]}),
        ("reflow", {SCALE: 3.0}, (), {SCALES: [1.5, 4.0]}),
    ],
)
def test_scales_that_a_teacher_takes_as_an_input(method, own, given, taken):
    teacher = recorded("guidance", **{RANGE: (1.5, 4.0), SCALE: 2.0})
    found = changed(small_config(method, **own), teacher, given)
    assert {name: value for name, value in found.items() if name in (SCALES, RANGE, SCALE)} == taken
    build(inherit(small_config(method, **own), teacher, given))
    # A student of another teacher has none.
    assert inherit(small_config("sim_flow"), recorded("flow_matching"))[SCALES] == ()


def test_a_student_that_goes_on_keeps_the_scales_of_its_own_record():
    config = with_scales(small_config("progressive"), (), small_config("progressive"), ())
    assert config[SCALES] == () and config.objective.guidance_range == ()
    own = recorded("progressive", **{RANGE: (1.5, 4.0), SCALE: 2.0, SCALES: (1.5, 4.0)})
    config = with_scales(small_config("progressive"), own[SCALES], own, ())
    assert (config[SCALES], config.objective.guidance_range) == ((1.5, 4.0), (1.5, 4.0))
    assert config.objective.guidance_scale == 2.0
