"""A small data set kept on the devices: the host sends indices, and devices gather the rows.

Every device holds the bytes of all images. A table of 256 floats, computed on the host, converts
the bytes, so batches equal those of `data.image_batches` bit for bit.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from fewstep.data import Posteriors, Split, to_float
from fewstep.objectives.base import Batch
from fewstep.training.sharding import replicated_sharding

# The float of each value of a byte.
LEVELS = to_float(np.arange(256, dtype=np.uint8))


def load_images(split: Split, mesh: Mesh) -> Callable[[Batch], Batch]:
    """Put all images on every device; returns the function that completes batches there.

    It maps batches of `data.index_batches` to {"x", "label"}. Batches may be stacked on a first
    axis.
    """
    everywhere = replicated_sharding(mesh)
    images, labels, levels = (
        jax.make_array_from_process_local_data(everywhere, np.asarray(array))
        for array in (split.images, split.labels, LEVELS)
    )

    @jax.jit
    def gather(images: Array, labels: Array, levels: Array, batch: Batch) -> Batch:
        index, mirrored = batch["index"], batch["mirrored"]
        x = levels[images[index].astype(jnp.int32)]
        x = jnp.where(mirrored[..., None, None, None], x[..., ::-1, :], x)
        return {"x": x, "label": labels[index]}

    return lambda batch: gather(images, labels, levels, batch)


def load_moments(split: Split, moments: Posteriors, mesh: Mesh) -> Callable[[Batch], Batch]:
    """Put all posteriors on every device, as `load_images` puts images.

    The function that it returns makes the batches of `data.moment_batches` there.
    """
    everywhere = replicated_sharding(mesh)
    array, labels = (
        jax.make_array_from_process_local_data(everywhere, np.asarray(array))
        for array in (moments.array, split.labels)
    )

    @jax.jit
    def gather(array: Array, labels: Array, batch: Batch) -> Batch:
        index, view = batch["index"], batch["mirrored"].astype(jnp.int32)
        return {
            "moments": array[index, view],
            "position": batch["position"],
            "label": labels[index],
        }

    return lambda batch: gather(array, labels, batch)
