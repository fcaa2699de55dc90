"""Samples from a trained network: the image of (seed, index) is the same in any batch."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from fewstep.data import to_uint8
from fewstep.objectives.base import Objective, Params
from fewstep.progress import progress_bar
from fewstep.training.report import NonFiniteError
from fewstep.training.sharding import batch_sharding, replicated
from fewstep.training.state import named_key

# (params, indices [B], labels [B]) -> x_0 [B, H, W, C]
BatchSampler = Callable[[Params, np.ndarray, np.ndarray], Array]
# The stream of randomness that evaluations and --mode=sample draw from.
SAMPLES = "sample"


def batch_sampler(
    objective: Objective,
    image_shape: tuple[int, ...],
    mesh: Mesh,
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
    stream: str = SAMPLES,
) -> BatchSampler:
    """One jitted function from parameters, sample indices and labels to images.

    All randomness of sample i is a function of (seed, i), and another in another stream.
    """

    def sample(params: Params, indices: Array, labels: Array) -> Array:
        indices, labels = jax.lax.with_sharding_constraint((indices, labels), batch_sharding(mesh))
        eps, keys = noise(seed, indices, image_shape, stream)
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
        in_shardings=(None, replicated(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )


def noise(
    seed: int, indices: Array, image_shape: tuple[int, ...], stream: str = SAMPLES
) -> tuple[Array, Array]:
    """The noise that samples start from, [B, *image_shape], and a key [B] for what they draw."""
    key = named_key(jax.random.key(seed), stream)
    keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
    key_eps, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    return jax.vmap(lambda key: jax.random.normal(key, image_shape))(key_eps), keys


def generate(
    sample: BatchSampler,
    params: Params,
    labels: np.ndarray,
    batch_size: int,
    description: str = "",
    indices: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Batches of uint8 images [B, H, W, C]: `generate_floats`, rounded."""
    samples = generate_floats(sample, params, labels, batch_size, description, indices)
    return map(to_uint8, samples)


def generate_floats(
    sample: BatchSampler,
    params: Params,
    labels: np.ndarray,
    batch_size: int,
    description: str = "",
    indices: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Batches of the samples with these indices, float32 [B, H, W, C], and these labels: [N].

    indices: [N], 0 .. N - 1 by default. Batches are always of batch_size rows (the last one cut),
    so that a sample is computed by the same program, bit for bit, whatever N is. A sample that is
    not finite ends it with a NonFiniteError once all have been counted.
    """
    indices = np.arange(len(labels)) if indices is None else indices
    starts, broken = range(0, len(labels), batch_size), 0
    silent = len(starts) < 2 or jax.process_index() > 0
    for start in progress_bar(starts, desc=description, unit="batch", silent=silent, leave=False):
        # NumPy, not device arrays: every process holds the whole of both.
        rows = np.arange(start, start + batch_size) % len(labels)
        x_0 = jax.device_get(sample(params, *(a[rows].astype(np.int32) for a in (indices, labels))))
        x_0 = x_0[: len(labels) - start]
        broken += int(np.count_nonzero(~np.isfinite(x_0).all(axis=(1, 2, 3))))
        if not broken:
            yield x_0
    if broken:
        raise NonFiniteError(
            f"{broken} of {len(labels)} samples are not finite: the network or solver has diverged"
        )
