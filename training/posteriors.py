"""Draws latents from the posteriors of a batch, on the devices.

    z = scale (mean + std eps - shift),    eps ~ N(0, 1), a function of (seed, position of the row)

So a row is drawn anew at every visit, equally by one device and by many, and by a resumed run.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from fewstep.latents.codec import sample_posterior, unpacked
from fewstep.latents.scaling import scale_moments
from fewstep.objectives.base import Batch
from fewstep.training.codecs import scaling_of
from fewstep.training.state import named_key

STREAM = "posterior"


def draw_latents(config: ConfigDict) -> Callable[[Batch], Batch]:
    """The function from {"moments", "position", "label"} to {"x", "label"}.

    moments: [..., M, h, w, c], position: [...], as in `data.moment_batches`; batches may be stacked
    on a first axis. x: float32 [..., h, w, c].
    """
    key, scaling = named_key(jax.random.key(config.seed), STREAM), scaling_of(config)

    def draw(position: Array, moments: Array) -> Array:
        scaled = scale_moments(scaling, unpacked(moments.astype(jnp.float32)))
        return sample_posterior(jax.random.fold_in(key, position), scaled)

    @jax.jit
    def complete(batch: Batch) -> Batch:
        rows = draw
        for _ in range(batch["position"].ndim):
            rows = jax.vmap(rows)
        return {"x": rows(batch["position"], batch["moments"]), "label": batch["label"]}

    return complete
