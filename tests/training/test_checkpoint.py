import shutil

import jax
import numpy as np
import pytest

from diffusion.path import ve
from tests.networks import affine, model_of
from tests.training.runs import (
    largest_difference,
    perturbed,
    small_config,
    small_experiment,
    synthetic_batches,
    untrained_teacher,
)
from tests.training.test_sharding import mesh_of
from training import checkpoint
from training.experiment import build_objective, build_optimizers
from training.loop import abstract_state, compile_step, create_state, train
from training.sharding import put_batch

CONFIG, EXPERIMENT = small_experiment()
OBJECTIVE, OPTIMIZERS = EXPERIMENT.objective, EXPERIMENT.optimizers


def stepped(state, mesh, steps, start):
    step = compile_step(OBJECTIVE, OPTIMIZERS, 0, mesh)
    source = synthetic_batches(CONFIG, start)
    for _ in range(steps):
        state, metrics = step(state, {}, put_batch(next(source), mesh))
    return state, float(metrics["loss"].total)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder with the state after two steps on 8 devices, that state, state and loss at four)."""
    workdir, mesh = tmp_path_factory.mktemp("run"), mesh_of(2, 4)
    state, _ = stepped(create_state(OBJECTIVE, OPTIMIZERS, 0, {}, mesh), mesh, 2, 0)
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        checkpoint.save(checkpoints, state, {"seed": 0})
    host = jax.device_get(state)
    return workdir, host, *stepped(state, mesh, 2, 2)


def restored(workdir, mesh, seed=0):
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        abstract = abstract_state(OBJECTIVE, OPTIMIZERS, seed, {}, mesh)
        return checkpoint.restore(checkpoints, abstract, seed)


def test_the_same_mesh_goes_on_bit_for_bit(saved):
    workdir, host, final, loss = saved
    state = restored(workdir, mesh_of(2, 4))
    assert largest_difference(host, state) == 0.0
    again, loss_again = stepped(state, mesh_of(2, 4), 2, 2)
    assert largest_difference(final, again) == 0.0
    assert loss_again == loss


@pytest.mark.parametrize("sizes", [(1, 1), (4, 1)])
def test_another_mesh_goes_on_with_the_same_numbers(saved, sizes):
    workdir, host, _, loss = saved
    mesh = mesh_of(*sizes)
    state = restored(workdir, mesh)
    assert largest_difference(host, state) == 0.0
    assert stepped(state, mesh, 2, 2)[1] == pytest.approx(loss, rel=1e-5)


def test_a_single_network_is_read_alone(saved):
    workdir, host, *_ = saved
    shapes = jax.eval_shape(EXPERIMENT.model.network.init, jax.random.key(0))
    params, step = checkpoint.restore_network(workdir, "target", shapes)
    assert (largest_difference(host.followers["target"], params), step) == (0.0, 2)


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert restored(tmp_path, mesh_of(1, 1)) is None


def test_a_step_is_never_written_twice(saved, tmp_path):
    workdir = shutil.copytree(saved[0], tmp_path / "run")
    other = jax.tree.map(lambda leaf: leaf + 1, saved[1])._replace(step=np.int32(2))
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        checkpoint.save(checkpoints, other, {"seed": 0})
    assert largest_difference(saved[1], restored(workdir, mesh_of(1, 1))) == 0.0


def test_errors_name_the_folder_and_the_cause(saved, tmp_path):
    workdir = shutil.copytree(saved[0], tmp_path / "run")
    with pytest.raises(ValueError, match="seed=0, not 1"):
        restored(workdir, mesh_of(1, 1), seed=1)
    shutil.rmtree(workdir / "checkpoints" / "2" / "network")
    with pytest.raises(ValueError, match="checkpoints/2 cannot be read"):
        restored(workdir, mesh_of(1, 1))
    shapes = jax.eval_shape(EXPERIMENT.model.network.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"has \[2\], not 5"):
        checkpoint.restore_network(workdir, "target", shapes, step=5)
    with pytest.raises(ValueError, match="no checkpoints"):
        checkpoint.restore_network(tmp_path, "target", shapes)


def test_resuming_with_a_teacher_and_a_target_equals_not_stopping(tmp_path):
    config, experiment = small_experiment("cd")
    mesh = mesh_of(1, 1)
    objective, optimizers = experiment.objective, experiment.optimizers
    frozen = {name: perturbed(p) for name, p in untrained_teacher(experiment).items()}
    compiled = compile_step(objective, optimizers, 0, mesh)

    def advance(state, start):
        source = synthetic_batches(config, start)
        for _ in range(2):
            state, _ = compiled(state, frozen, put_batch(next(source), mesh))
        return state

    state = advance(create_state(objective, optimizers, 0, frozen, mesh), 0)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, state, {"seed": 0})
    uninterrupted = jax.device_get(advance(state, 2))
    names = {p.name for p in (tmp_path / "checkpoints" / "2").iterdir() if p.is_dir()}
    assert names >= {"network", "target", "ema_0.999", "run"} and "teacher" not in names
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        abstract = abstract_state(objective, optimizers, 0, frozen, mesh)
        resumed = advance(checkpoint.restore(checkpoints, abstract, 0), 2)
    assert largest_difference(uninterrupted, resumed) == 0.0
    moved = uninterrupted.networks["network"], frozen["teacher"]
    assert largest_difference(*moved) > 0.0
    assert largest_difference(uninterrupted.followers["target"], moved[0]) > 0.0


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("ct", {"objective.curriculum.last": 8}),  # 2, 5, 7 and 8 points
        ("ict", {"objective.curriculum.last": 80}),  # 10, 20, 40 and 80 cells
        ("ect", {"objective.stages": 2, "objective.q": 16.0}),  # the second one from step 2
    ],
)
def test_resuming_across_a_change_of_the_grid_equals_not_stopping(tmp_path, method, fields):
    # The config's own objective with a network of five numbers, which compiles in no time.
    config = small_config(method, steps=4, **fields)
    objective = build_objective(config, model_of(affine(), ve(), "F"))
    optimizers = build_optimizers(config, objective)

    def four_steps(workdir):
        return train(
            objective=objective,
            optimizers=optimizers,
            frozen={},
            mesh=mesh_of(1, 1),
            seed=config.seed,
            steps=config.steps,
            batch_size=config.batch_size,
            batches=lambda start: synthetic_batches(config, start),
            evaluate=lambda state: {},
            workdir=workdir,
            log_every=1,
            checkpoint_every=2,
            keep_checkpoints=0,
            evaluate_every=0,
        )

    final = four_steps(tmp_path / "whole")
    shutil.copytree(*(tmp_path / run / "checkpoints" / "2" for run in ("whole", "cut")))
    assert largest_difference(final, four_steps(tmp_path / "cut")) == 0.0

    @jax.jit
    def gap(step):
        """rho_t - rho_s at one key, summed."""
        networks, batch = {**final.networks, **final.followers}, next(synthetic_batches(config))
        loss = objective.players["network"].loss
        metrics = loss(networks["network"], networks, batch, jax.random.key(0), step)[1]
        return metrics["noise_gap"].total

    assert gap(1) > 1.2 * gap(2)


def test_the_newest_step_or_one_that_is_there(saved, tmp_path):
    assert checkpoint.saved_step(saved[0]) == checkpoint.saved_step(saved[0], 2) == 2
    with pytest.raises(ValueError, match=r"has \[2\], not 3"):
        checkpoint.saved_step(saved[0], 3)
    with pytest.raises(ValueError, match="no checkpoints"):
        checkpoint.saved_step(tmp_path)
