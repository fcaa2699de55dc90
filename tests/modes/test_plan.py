import re

import pytest

from fewstep.configs import digits
from fewstep.modes.job import resident_images
from fewstep.modes.plan import (
    GIB,
    chunk_attention,
    collective_lines,
    fit_lines,
    fuses_attention,
    plan_mesh_sizes,
    remedies,
)
from fewstep.training.cost.accelerators import parse_target
from fewstep.training.cost.compiled import (
    FOR_INSPECTION,
    Collective,
    lowered_step,
    memory_plan,
    step_inputs,
)
from fewstep.training.experiment import build_on
from tests.cli import run
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of

CONFIG = "--config=configs/imagenet256.py:cd"


@pytest.mark.some_days(3)
def test_a_mesh_that_is_not_here_is_planned_without_its_teacher():
    printed = run(
        "--mode=plan",
        CONFIG,
        "--config.debug",
        "--config.mesh.fsdp=2",
        "--accelerator=v5e-8",
        "--price=1.2",
        devices=1,
    )
    assert "compiling the step for 8 device(s)" in printed.stderr
    table = printed.stdout
    assert "mesh         8 emulated device(s) (data 4, fsdp 2)" in table
    assert "batch        64, 8 per device" in table
    given, _, exchanged = table.partition("compute per step")
    amounts = dict(re.findall(r"^([a-z].*?) {2,}([\d,.]+) MiB", given, re.MULTILINE))
    sizes = {name: float(size.replace(",", "")) for name, size in amounts.items()}
    player = sizes["player network"]
    assert player > 0.5
    assert sizes["optimizer of network"] == pytest.approx(2 * player, abs=0.2)
    assert sizes["follower target"] == sizes["follower ema_0.999"] == player
    assert sizes["frozen teacher"] == player
    donated, peak = sizes.pop("donated"), sizes.pop("peak")
    assert donated == pytest.approx(5 * player, abs=0.3)
    assert peak == pytest.approx(sum(sizes.values()), abs=0.5)
    assert "100.0% of the state" in table
    assert "as much as 6." in exchanged  # two of the teacher, one of the target, three to train
    assert re.search(
        r"^all-gather +\d+ of +[\d.]+ MiB, [\d.]+ MiB sent among 2", exchanged, re.MULTILINE
    )
    assert "fits         v5e: yes, at most " in table
    assert "devices      8 x v5e on 1 host(s), a process per host" in table
    flops, step, cost = (
        re.search(rf"^{name} +([\d,.]+)", table, re.MULTILINE)[1]
        for name in ("per device", "step", "cost")
    )
    assert float(step) == pytest.approx(1e3 * float(flops) / (197 * 0.45), abs=0.1)
    assert float(cost) >= 0.0 and "1.2 per device-hour" in table
    assert re.search(r"^warning +8 image\(s\) per device are too few", table, re.MULTILINE)
    assert re.search(r"^checkpoint +0.01 GiB, written in 0.0 s at 1 GB/s", table, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mesh=3,1",), "batch_size=256 is not divisible by the 3 devices"),
        (("--mesh=1,1", "--accelerator=h10"), "--accelerator='h10' is not one of"),
        (("--mesh=a,b",), "--mesh=a,b must be whole numbers, such as 8,8"),
        (("--mesh=8,8", "--accelerator=v4-32"), "do not fill 16 device(s)"),
        (("--accelerator=1xh200", "--mfu=a"), "--mfu=a must be numbers, such as 0.25,0.45"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    stderr = run("--mode=plan", CONFIG, *arguments, expect=2).stderr
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_the_flag_names_the_mesh_or_else_the_config():
    config = small_config()
    assert plan_mesh_sizes((8, 4), config) == (8, 4)
    with pytest.raises(
        ValueError, match="--mesh is missing, and mesh.data=-1, .* such as --mesh=8,8"
    ):
        plan_mesh_sizes((), config)
    for mesh in ((8,), (8, 0), (-1, 8), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"must be two sizes of 1 or more"):
            plan_mesh_sizes(mesh, config)
    config.mesh.data, config.mesh.fsdp = 2, 3
    assert plan_mesh_sizes((), config) == (2, 3)


def test_the_devices_of_the_target_fill_the_mesh_as_in_training():
    config = small_config()
    assert plan_mesh_sizes((), config, parse_target("v4-32")) == (16, 1)
    assert plan_mesh_sizes((-1, 8), config, parse_target("16xh100")) == (2, 8)
    with pytest.raises(ValueError, match="such as --mesh=8,8"):
        plan_mesh_sizes((), config, parse_target("h100"))
    config.mesh.fsdp = 16
    assert plan_mesh_sizes((), config, parse_target("v5p-256")) == (8, 16)
    with pytest.raises(ValueError, match=r"does not fit into slices .* 8 device\(s\)"):
        plan_mesh_sizes((), config, parse_target("32xh100"))
    config.mesh.fsdp_across_slices = True
    assert plan_mesh_sizes((), config, parse_target("32xh100")) == (2, 16)


def test_images_that_each_device_keeps_are_counted_if_they_are_here(tmp_path):
    config = digits.get_config()
    assert resident_images(config, (8, 8, 1)) is None
    config.data.on_device = True
    assert resident_images(config, (8, 8, 1)) == 1437 * 8 * 8  # of one byte
    latent = config.copy_and_resolve_references()
    latent.codec.name = "f4"  # whose weights are not here
    # Two views, mean and deviation, of two bytes.
    assert resident_images(latent, (2, 2, 4)) == 1437 * 2 * 2 * 2 * 2 * 4 * 2
    config.data.update(name="cifar10", dir=str(tmp_path))
    assert resident_images(config, (32, 32, 3)) is None


def test_what_fits_and_what_would_help():
    h100 = parse_target("h100")
    room = int(h100.accelerator.room)
    (yes,) = fit_lines(room, 0, h100, ["x"])
    assert yes.startswith("fits         h100: yes, at most 60.00 of 60.00 GiB, 75% of its 80")
    perhaps, help_ = fit_lines(room + GIB, room, h100, ["x", "y"])
    assert perhaps.startswith("fits         h100: perhaps not, at most 61.00 of 60.00")
    assert perhaps.endswith("; at least 60.00")
    assert help_ == "would help   x; y"
    no, _ = fit_lines(room + 3 * GIB, room + GIB, h100, ["x"])
    assert no.startswith("fits         h100: no, 61.00 of 60.00")
    (names,) = fit_lines(70 * GIB, 0, None, [])
    assert names == "fits         v5p, h200, b200"


def remedy_fields(*arguments):
    return [words.split()[0] for words in remedies(*arguments)]


def test_remedies_are_those_that_the_config_leaves():
    config, mesh = small_config(), mesh_of(2, 4)
    fields = ["a", "model.remat=True,", "model.dtype=bfloat16,", "micro_batches=2,", "a"]
    assert (
        remedy_fields(config, mesh) == remedy_fields(config, mesh, parse_target("v4-8")) == fields
    )
    assert "model.attention=auto," in remedy_fields(config, mesh, parse_target("h100"))
    config.model.remat, config.model.dtype, config.batch_size = True, "bfloat16", 8
    assert len(remedies(config, mesh)) == 1


@pytest.mark.parametrize(
    ("attention", "name", "dtype", "fused"),
    [
        ("auto", "8xh100", "bfloat16", True),
        ("cudnn", "h200", "bfloat16", True),
        ("cudnn", "", "bfloat16", True),
        ("auto", "", "bfloat16", False),
        ("auto", "v4-8", "bfloat16", False),
        ("auto", "h200", "float32", False),
        ("xla", "h200", "bfloat16", False),
    ],
)
def test_attention_is_fused_where_the_target_has_it(attention, name, dtype, fused):
    config = small_config(**{"model.attention": attention, "model.dtype": dtype})
    assert fuses_attention(config, parse_target(name) if name else None) == fused


@pytest.mark.some_days(2)
def test_a_step_with_fused_attention_is_counted_without_its_weights():
    fields = {"data.image_size": 32, "model.patch_size": 2, "batch_size": 8}
    config = small_config("flow_matching", **fields)
    mesh, temporary = mesh_of(1, 1), []
    for counted in (config, chunk_attention(config)):
        experiment = build_on(counted, mesh)
        lowered = lowered_step(counted, experiment, mesh, step_inputs(counted, experiment, mesh))
        needs = memory_plan(lowered.compile(compiler_options=FOR_INSPECTION))
        temporary.append(needs.temporary)
    # The ratio is 0.58; it would be 0.92 if the backward pass kept the weights of chunks.
    assert temporary[1] < 0.7 * temporary[0]


def test_kinds_are_summed_over_groups():
    found = [
        Collective("all-reduce", 2, 3, 2**20),
        Collective("all-reduce", 4, 1, 2**21, conditional=True),
        Collective("collective-permute", 1, 2, 2**19, uncounted=True),
    ]
    first, second = collective_lines(found)
    assert re.match(r"all-reduce +4 of +3.0 MiB, 4.0 MiB sent among 2 or 4 devices", first)
    assert first.endswith("some not at every step")
    assert re.match(r"collective-permute +2 of +0.5 MiB, 0.5 MiB sent, loops", second)
    assert collective_lines([]) == ["none"]
