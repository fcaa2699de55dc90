"""--mode=describe prints the numbers of the config."""

import pytest

from fewstep.modes.describe import describe, describe_experiment
from fewstep.modes.request import Request
from fewstep.training.cost.step_cost import forward_flops, step_flops
from fewstep.training.experiment import build
from fewstep.training.networks import with_network_fields
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import workdir
from tests.modes.recorded import random_network
from tests.training.runs import small_config


def test_every_line_says_what_the_config_does():
    fields = {
        "steps": 300,
        "batch_size": 64,
        "micro_batches": 2,
        "mesh.data": 2,
        "mesh.fsdp": 4,
        "data.num_classes": 3,
        "optimizer.name": "radam",
        "ema.decays": (0.5, 0.9),
        "ema.sample_with": "ema_0.9",
    }
    config = small_config("dmd", **fields)
    config.player_optimizers = {"fake_score": {"name": "adam"}}
    experiment = build(config, random_network((8, 8, 1)))
    lines = describe_experiment(config, experiment, make_mesh(**config.mesh)).splitlines()
    flops = step_flops(config, experiment)
    passes = flops / forward_flops(config, experiment)
    # Each network has eight numbers; Adam and RAdam keep two for each, and a count.
    assert lines == [
        "objective    dmd on the ve path, t in [0.002, 80]",
        "data         digits, pixels of 8 x 8 x 1, 3 classes",
        "devices      8 (data 2, fsdp 4)",
        "batch        64, 8 per device, in 2 micro-batch(es)",
        "player       fake_score: 8 parameters, updated every 1 step(s) by adam",
        "player       generator: 8 parameters, updated every 5 step(s) by radam",
        "frozen       teacher: 8 parameters",
        "follower     ema_0.5 of generator",
        "follower     ema_0.9 of generator, samples",
        lines[9],
        f"step         {flops / 1e9:.2f} GFLOP, {flops / 64 / 1e6:.2f} MFLOP per image, as much as "
        f"{passes:.1f} forward passes",
        f"run          300 steps, 19,200 images, {300 * flops / 1e15:.3f} PFLOP",
    ]
    assert lines[9].startswith("state        0.0 MiB over all devices")


def test_a_run_of_other_devices_is_described(tmp_path, capsys):
    config = small_config("edm", **{"mesh.data": 5, "batch_size": 5, "data.num_classes": 3})
    config.data.image_size, config.data.channels = 8, 1
    workdir.start_run(tmp_path, with_network_fields(config))
    describe(Request(workdir=tmp_path))
    assert "objective    edm" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--from is for the new run"):
        describe(Request(workdir=tmp_path, from_="runs/a"))
