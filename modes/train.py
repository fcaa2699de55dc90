"""--mode=train: train from scratch, or go on from the newest checkpoint of the workdir."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

import data
from data import Dataset, Pairs
from eval.evaluate import check_evaluation, evaluator, summary
from eval.pairs import teacher_pairs
from modes.request import Request, required_config, required_workdir, resolve_with_data
from objectives.base import Params
from training import checkpoint, workdir
from training.experiment import Experiment, build, rebuild
from training.loop import HostBatch, abstract_batch, abstract_state, compile_step
from training.loop import train as train_network
from training.sharding import check_batch_size, first_process_says, make_mesh
from training.state import TrainState
from training.teacher import TEACHER, checked_teacher, load_teacher, pinned


def train(request: Request) -> None:
    """Train to config.steps, evaluating and saving on the way."""
    path, config = required_workdir(request), required_config(request)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    config, dataset = resolve_with_data(config)
    check_batch_size(config.batch_size, mesh)
    experiment = build(config)
    check_evaluation(experiment, dataset, config, mesh)
    config = pinned(config, path)
    if first_process_says(checkpoint.has_checkpoint(path)):
        # It starts from that, and needs a teacher only to be taught.
        experiment = experiment._replace(objective=experiment.objective._replace(init_from={}))
    frozen = load_teacher(config, experiment, mesh)
    check_step(experiment, config, mesh, frozen)
    evaluate_network = evaluator(experiment, dataset, config, mesh, path)
    workdir.start_run(path, config)
    pairs = pairs_of(config, experiment, frozen, mesh, path)

    def evaluate(state: TrainState) -> dict[str, float]:
        if not config.evaluate.steps:
            return {}
        params = {**state.networks, **state.followers}[experiment.sample_with]
        results = evaluate_network(params, int(state.step))
        if jax.process_index() == 0:
            tqdm.write(summary(results), file=sys.stderr)
        return {
            f"{metric}_{result['protocol']['sampling']['steps']}": value
            for result in results
            for metric, value in result["metrics"].items()
        }

    train_network(
        objective=experiment.objective,
        optimizers=experiment.optimizers,
        frozen=frozen,
        mesh=mesh,
        seed=config.seed,
        steps=config.steps,
        batch_size=config.batch_size,
        batches=lambda start: batches(config, experiment, dataset, pairs, start),
        evaluate=evaluate,
        workdir=path,
        log_every=config.log.every,
        checkpoint_every=config.checkpoint.every,
        keep_checkpoints=config.checkpoint.keep,
        evaluate_every=config.evaluate.every,
    )
    if jax.process_index() == 0:
        print(f"{path} is at step {config.steps}; draw from it: --mode=sample --workdir={path}")


def batches(
    config: ConfigDict,
    experiment: Experiment,
    dataset: Dataset | None,
    pairs: Pairs | None,
    start: int,
) -> Iterator[HostBatch]:
    """This process's batches from step `start` on: images or labels alone, and pairs if any."""
    share = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "start_step": start,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    if experiment.objective.reads_images:
        rows = data.batches(dataset.train, flip=config.data.flip, **share)
    else:
        rows = data.label_batches(experiment.num_classes, **share)
    if pairs is None:
        return rows
    return (
        {**row, "pairs": pair}
        for row, pair in zip(rows, data.pair_batches(pairs, **share), strict=True)
    )


def pairs_of(
    config: ConfigDict,
    experiment: Experiment,
    frozen: Mapping[str, Params],
    mesh: Mesh,
    folder: Path,
) -> Pairs | None:
    """The pairs of the teacher, made or read, if the objective reads any."""
    if not experiment.objective.reads_pairs:
        return None
    taught = rebuild(checked_teacher(config, experiment), config.teacher)
    return teacher_pairs(
        folder,
        taught,
        frozen[TEACHER],
        mesh,
        count=config.pairs.count,
        steps=config.pairs.steps,
        guidance_scale=experiment.objective.guidance_scale,
        batch_size=config.evaluate.batch_size,
    )


def check_step(
    experiment: Experiment, config: ConfigDict, mesh: Mesh, frozen: Mapping[str, Params]
) -> None:
    """Trace a training step on shapes, so that what it refuses is refused before any compute."""
    objective, optimizers = experiment.objective, experiment.optimizers
    state = abstract_state(objective, optimizers, config.seed, frozen, mesh)
    batch = abstract_batch(objective, config.batch_size, experiment.image_shape)
    jax.eval_shape(compile_step(objective, optimizers, config.seed, mesh), state, frozen, batch)
