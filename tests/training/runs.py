"""Small runs for tests of training: real objectives, synthetic images."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from fewstep.configs import base, methods
from fewstep.data import Split, image_batches
from fewstep.training.compiled_step import create_state
from fewstep.training.experiment import build
from fewstep.training.networks import with_network_fields
from fewstep.training.sharding import make_mesh
from fewstep.training.sources import abstract_batch
from fewstep.training.storage import checkpoint, workdir
from fewstep.training.storage.identity import as_dict

# Objectives that sample a density, and have points for examples.
SAMPLERS = ("dis", "dds", "scds")


def small_config(method="shortcut", **fields):
    """A config with a network of 0.2 M parameters on 8 x 8 images. fields: by dotted name."""
    config = methods.choose(base.config(), method)
    config.steps, config.batch_size = 10, 64
    config.data.image_size, config.data.channels, config.data.num_classes = 8, 1, 10
    if config.objective.name in SAMPLERS:
        config.data.name, config.data.num_classes = "density:gmm9", 0
        config.data.image_size = config.data.channels = 0
        config.model.width, config.model.depth = 8, 1
        steps = "max_steps" if config.objective.name == "scds" else "path_steps"
        config.objective[steps] = 4
    else:
        methods.network(config, size="nano")
    config.evaluate.features = "pixels"
    config.optimizer.learning_rate = 1e-3
    config.update_from_flattened_dict(fields)
    return config


def small_experiment(method="shortcut", **fields):
    config = small_config(method, **fields)
    return config, build(config)


def untrained_teacher(experiment, seed=7):
    """Initial parameters of the network, for every teacher that the losses read."""
    init = experiment.model.network.init
    return {name: jax.jit(init)(jax.random.key(seed)) for name in experiment.objective.frozen}


def save_run(folder, method, steps=(5,), **fields):
    """Save a run and return its folder; each step's networks are the initial ones plus noise."""
    config, experiment = small_experiment(method, **fields)
    config = with_network_fields(config)
    run = workdir.start_run(folder, config)
    state = create_state(experiment.objective, experiment.optimizers, 0, {}, make_mesh())
    with checkpoint.open_checkpoints(folder) as checkpoints:
        for step in steps:
            moved = state._replace(
                step=jnp.int32(step),
                networks=perturb(state.networks, seed=1000 * config.seed + step),
                followers=perturb(state.followers, seed=1000 * config.seed + 100 + step),
            )
            checkpoint.save_state(checkpoints, moved, as_dict(config), run.stamp)
    return str(folder)


def perturb(params, scale=0.05, seed=0):
    """The parameters plus normal noise, so that no part is zero or equal to its initial value."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32), params
    )


def synthetic_split(count=200):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return Split(images, (np.arange(count) % 10).astype(np.int32))


def synthetic_batches(config, start=0):
    split, seed = synthetic_split(), config.seed
    return image_batches(
        split, batch_size=config.batch_size, seed=seed, start_step=start, flip=True
    )


def random_batch(objective, rows, shape, classes, seed=0):
    """A batch that an objective reads: random images and labels; nested labels differ."""

    def filled(path, leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            label = (np.arange(rows) + len(path) - 1) % max(classes, 1)
            return np.asarray(label if classes else np.full(rows, -1), leaf.dtype)
        name = zlib.crc32(jax.tree_util.keystr(path).encode())
        return np.random.default_rng((seed, name)).standard_normal(leaf.shape).astype(leaf.dtype)

    shapes = abstract_batch(objective, rows, shape)
    return jax.tree_util.tree_map_with_path(filled, shapes)


def largest_difference(a, b):
    """The largest absolute difference between two trees, computed on the host."""
    differences = jax.tree.map(
        lambda x, y: float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()),
        jax.device_get(a),
        jax.device_get(b),
    )
    return max(jax.tree.leaves(differences), default=0.0)
