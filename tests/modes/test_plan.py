import re

import pytest

from modes.plan import ACCELERATORS, GIB, exchanges, fits, mesh_sizes, remedies
from tests.cli import run
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of
from training.compiled import Collective

CONFIG = "--config=configs/imagenet256.py:cd"


def test_a_mesh_that_is_not_here_is_planned_without_its_teacher():
    printed = run(
        "--mode=plan", CONFIG, "--config.debug", "--mesh=4,2", "--accelerator=v5e", devices=1
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
    assert "fits         v5e: yes" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mesh=3,1",), "batch_size=256 is not divisible by the 3 devices"),
        (("--mesh=1,1", "--accelerator=h10"), "--accelerator='h10' is not one of"),
        (("--mesh=a,b",), "--mesh=a,b must be integers, such as 8,8"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    stderr = run("--mode=plan", CONFIG, *arguments, expect=2).stderr
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_the_flag_names_the_mesh_or_else_the_config():
    config = small_config()
    assert mesh_sizes((8, 4), config) == (8, 4)
    with pytest.raises(ValueError, match="--mesh=DATA,FSDP is needed, such as --mesh=8,8"):
        mesh_sizes((), config)
    for mesh in ((8,), (8, 0), (-1, 8), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"must be two sizes of 1 or more"):
            mesh_sizes(mesh, config)
    config.mesh.data, config.mesh.fsdp = 2, 3
    assert mesh_sizes((), config) == (2, 3)


def test_what_fits_and_what_would_help():
    room = ACCELERATORS["h100"].usable * ACCELERATORS["h100"].gib * GIB
    assert fits(int(room), "h100", ["x"])[0].startswith("fits         h100: yes, 60.00 of 60.00")
    no, help_ = fits(int(room) + GIB, "h100", ["x", "y"])
    assert no.startswith("fits         h100: no, 61.00 of 60.00") and "of its 80" in no
    assert help_ == "would help   x; y"
    (names,) = fits(70 * GIB, "", [])
    assert names == "fits         v5p, h200"
    config, mesh = small_config(), mesh_of(2, 4)
    fields = [words.split()[0] for words in remedies(config, mesh)]
    assert fields == ["a", "model.remat=True,", "model.dtype=bfloat16,", "micro_batches=2,", "a"]
    config.model.remat, config.model.dtype, config.batch_size = True, "bfloat16", 8
    assert len(remedies(config, mesh)) == 1


def test_kinds_are_summed_over_groups():
    found = [
        Collective("all-reduce", 2, 3, 2**20),
        Collective("all-reduce", 4, 1, 2**21, conditional=True),
        Collective("collective-permute", 1, 2, 2**19, uncounted=True),
    ]
    first, second = exchanges(found)
    assert re.match(r"all-reduce +4 of +3.0 MiB, 4.0 MiB sent among 2 or 4 devices", first)
    assert first.endswith("some not at every step")
    assert re.match(r"collective-permute +2 of +0.5 MiB, 0.5 MiB sent, loops", second)
    assert exchanges([]) == ["none"]
