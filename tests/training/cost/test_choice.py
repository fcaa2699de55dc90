"""Open fields are chosen for images and devices; values that are given stay."""

import pytest

from fewstep.configs import digits, pictures
from fewstep.models.dit import SIZES, DiTSize
from fewstep.training.cost import choice
from fewstep.training.cost.accelerators import GIB, parse_target
from fewstep.training.cost.choice import (
    CHOICES,
    DISPATCH_SECONDS,
    MOST_STEPS_AT_ONCE,
    RESIDENT_SHARE,
    choose,
    field_value,
    open_fields,
)
from fewstep.training.cost.hardware import Hardware, planned_hardware
from fewstep.training.cost.memory import SPARE, planned_memory, with_values
from fewstep.training.networks import with_network_fields
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of


def hardware(accelerated=False, room=None, data=1, kind=""):
    kind = kind or ("accelerator" if accelerated else "cpu")
    return Hardware(mesh_of(data, 1), kind, accelerated, room)


def config_of(**fields):
    config = pictures.get_config("flow_matching")
    return with_values(config, {"data.num_classes": 3, **fields})


def chosen(devices, images=600, **fields):
    found = choose(config_of(**fields), devices, images)
    return {name: field_value(found, name) for name in CHOICES}


def test_defaults_are_small_on_cpus_and_larger_on_accelerators():
    assert chosen(hardware()) == {
        "model.patch_size": 4,
        "model.size": "mini",
        "model.dtype": "float32",
        "batch_size": 32,
        "micro_batches": 1,
        "evaluate.batch_size": 32,
        "steps": 3000,
        "optimizer.learning_rate": 1e-3,
        "data.on_device": False,
        "steps_per_dispatch": 1,
    }
    found = chosen(hardware(accelerated=True), images=5000)
    assert (found["model.size"], found["model.patch_size"]) == ("S", 2)
    assert (found["model.dtype"], found["batch_size"]) == ("bfloat16", 256)
    assert (found["steps"], found["optimizer.learning_rate"]) == (19_500, 5e-4)


@pytest.mark.parametrize(
    ("side", "patch"), [(8, 1), (28, 4), (30, 3), (31, 1), (32, 4), (64, 8), (100, 10), (256, 32)]
)
def test_an_image_of_any_size_has_about_as_many_tokens(side, patch):
    assert chosen(hardware(), **{"data.image_size": side})["model.patch_size"] == patch


@pytest.mark.parametrize(("images", "steps"), [(None, 3000), (10, 3000), (10**6, 30_000)])
def test_the_number_of_steps_has_limits(images, steps):
    assert chosen(hardware(accelerated=True), images)["steps"] == steps


def test_what_is_given_stays_and_the_rest_follows_from_it(capsys):
    given = {"model.size": "B", "micro_batches": 3, "optimizer.learning_rate": 1e-2}
    found = chosen(hardware(data=4), **given)
    assert {name: found[name] for name in given} == given
    assert found["batch_size"] == 36  # 4 devices and 3 micro-batches share it
    said = capsys.readouterr().err
    assert said.startswith("chosen for 4 devices (cpu): model.patch_size=4, model.dtype=float32, ")
    assert "micro_batches" not in said


def test_fields_of_other_networks_and_configs_without_open_fields_are_left_alone(capsys):
    config = small_config()
    assert choose(config, hardware()) is config and not capsys.readouterr().err
    mlp = config_of(**{"model.name": "mlp", "model.size": "", "model.dtype": "float32"})
    assert "model.patch_size" not in open_fields(mlp)
    assert choose(mlp, hardware()).optimizer.learning_rate == 1e-3


def test_what_is_chosen_fits_the_memory(monkeypatch):
    monkeypatch.setitem(SIZES, "nano", DiTSize(32, 1, 2))
    nano = {"model.size": "nano", "data.image_size": 8, "batch_size": 64, "steps": 200}
    whole = planned_memory(
        with_network_fields(choose(config_of(**nano), hardware())), hardware()
    ).total
    tight = hardware(room=whole / 2)
    found = choose(config_of(**nano), tight)
    assert found.micro_batches > 1 and 64 % found.micro_batches == 0
    assert planned_memory(with_network_fields(found), tight).total <= SPARE * tight.room
    smaller = {**nano, "batch_size": None, "micro_batches": 1}
    found = choose(config_of(**smaller), tight)
    assert found.batch_size in (8, 16) and found.evaluate.batch_size == found.batch_size
    assert planned_memory(with_network_fields(found), tight).total <= SPARE * tight.room
    # Not even one image fits beside a state of this size: the refusal says what to do.
    assert (
        choose(config_of(**{**nano, "model.size": "auto"}), hardware(room=1)).model.size == "nano"
    )
    assert hardware(room=GIB).describe() == "1 device (cpu) of 1.0 GiB"


@pytest.mark.parametrize(
    ("images", "room", "resident"),
    [(1000, 64 * 1000 / RESIDENT_SHARE, True), (1001, 64 * 1000 / RESIDENT_SHARE, False)]
    + [(None, 1e12, False), (1000, None, False)],
)
def test_devices_keep_images_that_are_a_small_part_of_their_memory(images, room, resident):
    config = with_values(digits.get_config(), {"data.image_size": 8, "data.channels": 1})
    found = choose(config, hardware(True, room), images)
    assert found.data.on_device is resident
    assert not choose(config, hardware(False, 1e12), images).data.on_device


@pytest.mark.parametrize(
    ("seconds", "every", "evaluate", "steps"),
    [
        (None, 1000, 0, 1),  # the peak is not known
        (2 * DISPATCH_SECONDS, 1000, 0, 1),  # the devices are busy anyway
        (DISPATCH_SECONDS / 1.5, 1000, 0, 2),
        (DISPATCH_SECONDS / 2.5, 1000, 0, 4),  # 3 does not divide the period of saves
        (DISPATCH_SECONDS / 2.5, 1000, 30, 5),
        (DISPATCH_SECONDS / 999, 1000, 0, 10),
        (DISPATCH_SECONDS / 999, 7, 0, 7),
        (DISPATCH_SECONDS / 999, 11, 0, 1),
        (DISPATCH_SECONDS / 999, 0, 0, 10),
    ],
)
def test_a_dispatch_has_work_for_the_time_that_the_next_one_takes(
    monkeypatch, seconds, every, evaluate, steps
):
    monkeypatch.setattr(choice, "least_seconds", lambda config, kind, devices: seconds)
    periods = {"checkpoint.every": every, "evaluate.every": evaluate}
    found = choose(config_of(**periods), hardware(True))
    assert found.steps_per_dispatch == steps


def test_the_work_of_a_step_follows_from_network_batch_and_devices(capsys):
    sized = {"data.image_size": 8, "data.channels": 1, "data.num_classes": 10}
    config = with_values(digits.get_config("flow_matching"), sized)
    large = {"model.size": "B", "batch_size": 1024}
    gpu = hardware(True, 64 * GIB, kind="NVIDIA H100 80GB HBM3")
    assert choose(config, gpu, 1437).steps_per_dispatch == MOST_STEPS_AT_ONCE
    assert choose(with_values(config, large), gpu, 1437).steps_per_dispatch == 1
    assert capsys.readouterr().err.splitlines()[0] == (
        "chosen for 1 device (NVIDIA H100 80GB HBM3) of 64.0 GiB: data.on_device=True, "
        "steps_per_dispatch=10"
    )


def test_a_plan_chooses_as_the_devices_that_it_is_for():
    sized = {"data.image_size": 8, "data.channels": 1, "data.num_classes": 10}
    config = with_values(digits.get_config("flow_matching"), sized)
    planned = planned_hardware(mesh_of(1, 1), parse_target("h100"))
    here = hardware(True, planned.room, kind="NVIDIA H100 80GB HBM3")
    chosen = [choose(config, each, 1437) for each in (planned, here)]
    assert [each.steps_per_dispatch for each in chosen] == [MOST_STEPS_AT_ONCE] * 2
