"""Two real processes over loopback measure what one process measures."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
import jax
address, index, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if count > 1:
    jax.distributed.initialize(address, count, index)
assert jax.device_count() == 2
from pathlib import Path
from data import Dataset
from eval.evaluate import evaluator
from tests.training.runs import small_experiment, synthetic_split
from training.sharding import make_mesh, tree_shardings

fields = {"evaluate.steps": (1, 2), "evaluate.num_samples": 42, "evaluate.batch_size": 16}
config, experiment = small_experiment(**fields, **{"data.dir": f"{folder}/data{index}"})
mesh = make_mesh()
shapes = jax.eval_shape(experiment.model.network.init, jax.random.key(0))
init = jax.jit(experiment.model.network.init, out_shardings=tree_shardings(shapes, mesh))
dataset = Dataset("synthetic", synthetic_split(200), synthetic_split(120), 10)
evaluate = evaluator(experiment, dataset, config, mesh, Path(folder, "run"))
results = evaluate(init(jax.random.key(0)), 7)
again = evaluator(experiment, dataset, config, mesh, Path(folder, "run"))
Path(folder, f"{index}.json").write_text(json.dumps(results))
"""


def evaluated(folder, count):
    """Results of an evaluation by so many processes that share two devices, by process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = re.sub(r"(device_count)=\d+", rf"\1={2 // count}", os.environ["XLA_FLAGS"])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index), str(count), str(folder)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    for process in processes:
        assert process.wait(300) == 0, process.stderr.read()[-2000:]
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]


def test_two_processes_measure_what_one_does(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (alone,) = evaluated(tmp_path / "one", 1)
    first, second = evaluated(tmp_path / "two", 2)
    assert first == second
    for ours, theirs in zip(alone, first, strict=True):
        assert ours["id"] == theirs["id"]
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4, abs=1e-6)
    written = {path.name for path in (tmp_path / "two" / "run" / "eval").glob("*.json")}
    assert written == {f"{result['id']}.json" for result in first}
