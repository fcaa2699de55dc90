"""A step that was not finite is recorded, and repeated from the checkpoint before it."""

from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest

from fewstep.data import NEWEST_ORDER, batch_indices
from fewstep.modes import job as JOB
from fewstep.modes.request import Request
from fewstep.training.compiled_step import compile_step, create_state
from fewstep.training.experiment import build
from fewstep.training.replay import GRADIENT, ROWS, read_newest_record
from fewstep.training.report import NonFiniteError
from fewstep.training.sharding import put_batch
from fewstep.training.sources import Supply, open_sources
from fewstep.training.storage import checkpoint, workdir
from tests.modes.recorded import TRAIN, job_of, make_dataset, random_network, replace_dit
from tests.training.runs import small_config
from tests.training.test_sharding import mesh_of

REPLAY = import_module("fewstep.modes.replay")
FIELDS = {"seed": 3, "micro_batches": 2, "data.flip": True, "batch_size": 32}


def test_the_record_of_a_step_has_its_seed_and_its_images(tmp_path):
    config, data = small_config("flow_matching", **FIELDS), make_dataset(8, 1)
    job = job_of(config=config, dataset=data, experiment=build(config))
    error = NonFiniteError("broken", step=7, values={"loss": np.inf})
    told = TRAIN.record_failure(error, job, NEWEST_ORDER, tmp_path)
    assert str(tmp_path / "replay" / "7.json") in str(told)
    record = read_newest_record(tmp_path)
    assert (record["step"], record["seed"]) == (7, 3)
    # Six batches come before that of the seventh step.
    indices = batch_indices(200, batch_size=32, seed=3, step=6, order=NEWEST_ORDER)
    np.testing.assert_array_equal(record["indices"], indices)
    batch = next(open_stream(config, job.experiment, data).batches(6))["images"]
    np.testing.assert_array_equal(batch["label"], data.train.labels[indices])
    samples = NonFiniteError("samples")
    assert TRAIN.record_failure(samples, job, NEWEST_ORDER, tmp_path).step is None


def test_a_step_without_images_records_none_though_a_data_set_is_here(tmp_path):
    config, data = small_config("sim", **FIELDS), make_dataset(8, 1)
    job = job_of(config=config, dataset=data, experiment=build(config))
    TRAIN.record_failure(NonFiniteError("broken", step=7, values={}), job, NEWEST_ORDER, tmp_path)
    assert read_newest_record(tmp_path)["indices"] is None


def open_stream(config, experiment, data):
    given = config, experiment, data, (1,) * 10, NEWEST_ORDER, mesh_of(1, 1), Path("run")
    return open_sources(Supply(*given))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a network of a few numbers, saved after two steps: folder, parts, losses."""
    with pytest.MonkeyPatch.context() as patch:
        replace_dit(patch, lambda *_, **fields: random_network((8, 8, 1)))
        yield save_run(tmp_path_factory.mktemp("run"))


def save_run(folder):
    config = small_config("flow_matching", **FIELDS)
    experiment, mesh, data = build(config), mesh_of(1, 1), make_dataset(8, 1)
    objective, optimizers = experiment.objective, experiment.optimizers
    step = compile_step(objective, optimizers, 3, mesh, 2)
    state, losses = create_state(objective, optimizers, 3, {}, mesh), []
    stream = open_stream(config, experiment, data)
    source = stream.batches(0)
    for number in range(1, 6):
        state, metrics = step(state, {}, stream.complete(put_batch(next(source), mesh)))
        losses.append(float(metrics["loss"].total))
        if number == 2:
            workdir.start_run(folder, config)
            with checkpoint.open_checkpoints(folder) as checkpoints:
                checkpoint.save_state(checkpoints, state, workdir.as_dict(config))
    return folder, (config, experiment, data, mesh), losses


@pytest.mark.parametrize("number", [2, 5])
def test_a_repeated_step_has_the_same_loss(run, number):
    folder, inputs, losses = run
    again = REPLAY.redo_step(folder, number, JOB.assemble_job(folder, *inputs))
    assert float(again["loss"].total) == pytest.approx(losses[number - 1], rel=1e-6)
    # Rows are sums over two micro-batches.
    assert again[ROWS].total.shape == (16,)
    assert again[ROWS].total.sum() / 32 == pytest.approx(losses[number - 1], rel=1e-5)
    arrays = {name.removeprefix(GRADIENT) for name in again if name.startswith(GRADIENT)}
    assert arrays == {"a", "b", "c", "d", "e"}
    assert len({round(loss, 4) for loss in losses}) == 5
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(again))


def test_a_field_beside_a_config_that_would_change_nothing_is_refused(tmp_path):
    workdir.start_run(tmp_path, small_config("flow_matching", **FIELDS))
    replayed = {"optimizer.learning_rate": 1.0, "data.dir": "elsewhere"}
    config = small_config("flow_matching", **replayed)
    request = Request(workdir=tmp_path, config=config, given=tuple(replayed))
    with pytest.raises(ValueError, match=r"--config.optimizer.learning_rate would change nothing"):
        REPLAY.replay(request)
    with pytest.raises(ValueError, match="has no record: no step"):
        REPLAY.replay(request._replace(given=("data.dir",)))


@pytest.mark.parametrize("fields", [{"seed": 4}, {"indices": [1, 2]}], ids=str)
def test_a_record_of_another_run_is_refused(tmp_path, fields):
    config = small_config("flow_matching", **FIELDS)
    record = {"step": 7, "seed": 3, "indices": list(range(32))}
    REPLAY.check_record_fits(record, config, tmp_path)
    REPLAY.check_record_fits({"step": 7, "indices": None}, config, tmp_path)  # of an older version
    with pytest.raises(ValueError, match=r"replay/7.json is of another run: .* delete it"):
        REPLAY.check_record_fits(record | fields, config, tmp_path)
