"""--mode=train: train from scratch, or go on from the newest checkpoint of the workdir."""

import sys
from collections.abc import Mapping

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

import data
from eval.evaluate import check_sampling, evaluator, summary
from modes.request import Request, load_dataset, required_config, required_workdir, resolve
from objectives.base import Params
from training import checkpoint, workdir
from training.experiment import Experiment, build
from training.loop import abstract_batch, abstract_state, compile_step
from training.loop import train as train_network
from training.sharding import check_batch_size, make_mesh
from training.state import TrainState
from training.teacher import load_teacher, pinned


def train(request: Request) -> None:
    """Train to config.steps, evaluating and saving on the way."""
    path, config = required_workdir(request), required_config(request)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    dataset = load_dataset(config)
    config = resolve(config, dataset)
    check_batch_size(config.batch_size, mesh)
    experiment = build(config)
    check_sampling(experiment, config, mesh)
    config = pinned(config, path)
    if checkpoint.has_checkpoint(path):
        # It starts from that, and needs a teacher only to be taught.
        experiment = experiment._replace(objective=experiment.objective._replace(init_from={}))
    frozen = load_teacher(config, experiment, mesh)
    check_step(experiment, config, mesh, frozen)
    workdir.start_run(path, config)
    evaluate_network = evaluator(experiment, dataset, config, mesh, path)

    def evaluate(state: TrainState) -> dict[str, float]:
        if not config.evaluate.steps:
            return {}
        params = {**state.networks, **state.followers}[experiment.sample_with]
        results = evaluate_network(params, int(state.step))
        if jax.process_index() == 0:
            tqdm.write(summary(results), file=sys.stderr)
        return {
            f"evaluate/{metric}_{steps}": value
            for steps, metrics in results["by_steps"].items()
            for metric, value in metrics.items()
        }

    train_network(
        objective=experiment.objective,
        optimizers=experiment.optimizers,
        frozen=frozen,
        mesh=mesh,
        seed=config.seed,
        steps=config.steps,
        batch_size=config.batch_size,
        batches=lambda start: data.batches(
            dataset.train,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start,
            flip=config.data.flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        evaluate=evaluate,
        workdir=path,
        log_every=config.log.every,
        checkpoint_every=config.checkpoint.every,
        keep_checkpoints=config.checkpoint.keep,
        evaluate_every=config.evaluate.every,
    )
    if jax.process_index() == 0:
        print(f"{path} is at step {config.steps}; draw from it: --mode=sample --workdir={path}")


def check_step(
    experiment: Experiment, config: ConfigDict, mesh: Mesh, frozen: Mapping[str, Params]
) -> None:
    """Trace a training step on shapes, so that what it refuses is refused before any compute."""
    objective, optimizers = experiment.objective, experiment.optimizers
    state = abstract_state(objective, optimizers, config.seed, frozen, mesh)
    batch = abstract_batch(config.batch_size, experiment.image_shape)
    jax.eval_shape(compile_step(objective, optimizers, config.seed, mesh), state, frozen, batch)
