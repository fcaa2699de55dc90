"""Samples from a trained network; the sample of (seed, index) is the same in any batch.

Samples are the network's floats; `Space.finish` converts them to what is stored.
"""

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fewstep.data.spaces.space import Space
from fewstep.objectives.base import Objective, Params
from fewstep.progress import progress_bar
from fewstep.training.report import NonFiniteError
from fewstep.training.sharding import batch_sharding, replicated_sharding
from fewstep.training.state import named_key

# (params, indices [B], labels [B]) -> x_0 [B, ...]
BatchSampler = Callable[[Params, np.ndarray, np.ndarray], Array]
# Random stream of evaluations and --mode=sample.
SAMPLES = "sample"
# Seed k of --seeds has the noise of sample k in an evaluation of a run with this seed.
STREAM_SEED = 0


def batch_sampler(
    objective: Objective,
    shape: tuple[int, ...],
    mesh: Mesh,
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
    stream: str = SAMPLES,
) -> BatchSampler:
    """A jitted function from parameters, sample indices and labels to samples.

    The randomness of sample i is a function of (seed, stream, i). shape: of one sample, as the
    network makes it.
    """

    def sample(params: Params, indices: Array, labels: Array) -> Array:
        indices, labels = jax.lax.with_sharding_constraint((indices, labels), batch_sharding(mesh))
        eps, keys = initial_noise(seed, indices, shape, stream)
        return objective.sample(
            params,
            eps,
            {"label": labels},
            keys,
            steps=steps,
            guidance_scale=guidance_scale,
        )

    return jax.jit(
        sample,
        in_shardings=(None, replicated_sharding(mesh), replicated_sharding(mesh)),
        out_shardings=replicated_sharding(mesh),
    )


def image_sampler(
    objective: Objective, space: Space, images: np.ndarray, mesh: Mesh, *, steps: int
) -> BatchSampler:
    """A function from parameters, rows of images and their labels to reconstructions.

    images: as stored, [N, ...]. For an objective that reconstructs, which gets images as noise.
    """

    def sample(params: Params, x: Array, labels: Array) -> Array:
        x, labels = jax.lax.with_sharding_constraint((x, labels), batch_sharding(mesh))
        keys = jax.random.split(jax.random.key(0), labels.size)  # what reconstructs draws nothing
        scale = objective.guidance_scale
        return objective.sample(
            params, x, {"label": labels}, keys, steps=steps, guidance_scale=scale
        )

    replicated = replicated_sharding(mesh)
    compiled = jax.jit(
        sample, in_shardings=(None, replicated, replicated), out_shardings=replicated
    )
    return lambda params, rows, labels: compiled(params, space.start(images[rows]), labels)


def initial_noise(
    seed: int, indices: Array, shape: tuple[int, ...], stream: str = SAMPLES
) -> tuple[Array, Array]:
    """Noise that samples start from, [B, *shape], and keys [B] for what samplers draw later."""
    key = named_key(jax.random.key(seed), stream)
    keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
    key_eps, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(key_eps), keys


def generate(
    sample: BatchSampler,
    params: Params,
    labels: np.ndarray,
    batch_size: int,
    description: str = "",
    indices: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yields batches of samples, float32 [B, ...].

    labels: [N]. indices: [N], 0 .. N - 1 by default. Yields no batch from the first sample on that
    is not finite; then counts such samples to the end and raises NonFiniteError with their number.
    """
    broken = 0
    for x_0 in map_batches(sample, params, labels, batch_size, description, indices):
        broken += int(np.count_nonzero(~np.isfinite(x_0).reshape(len(x_0), -1).all(axis=1)))
        if not broken:
            yield x_0
    if broken:
        raise NonFiniteError(
            f"{broken} of {len(labels)} samples are not finite: the network or solver has diverged"
        )


def finish_together(finish: Callable[[np.ndarray], np.ndarray], samples: np.ndarray) -> np.ndarray:
    """Finished samples [B, ...], in all processes, each of which finishes its part of the rows.

    To finish a latent is to decode it, which may cost as much as to draw it. finish: that of a
    space. samples: [B, ...], the same in all processes.
    """
    count, rows = jax.process_count(), len(samples)
    if count == 1:
        return finish(samples)
    share = -(-rows // count)
    own = (np.arange(share) + share * jax.process_index()) % rows
    return multihost_utils.process_allgather(finish(samples[own]), tiled=True)[:rows]


def map_batches(
    sample: BatchSampler,
    params: Params,
    labels: np.ndarray,
    batch_size: int,
    description: str = "",
    indices: np.ndarray | None = None,
) -> Iterator[Any]:
    """Yields what `sample` makes of indices and labels, in batches on the host.

    labels: [N]. indices: [N], 0 .. N - 1 by default. The devices always compute batch_size rows;
    the last batch is cut afterwards. So one program computes every sample, bit for bit, for any N.
    """
    indices = np.arange(len(labels)) if indices is None else indices
    starts = range(0, len(labels), batch_size)
    silent = len(starts) < 2 or jax.process_index() > 0
    for start in progress_bar(starts, desc=description, unit="batch", silent=silent, leave=False):
        # NumPy, not device arrays: every process holds all indices and labels.
        rows = np.arange(start, start + batch_size) % len(labels)
        made = jax.device_get(
            sample(params, *(a[rows].astype(np.int32) for a in (indices, labels)))
        )
        kept = slice(len(labels) - start)
        yield jax.tree.map(operator.itemgetter(kept), made)
