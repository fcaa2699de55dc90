"""Shared by the peers that are clones of official codes, not packages.

Put the clones on PYTHONPATH; one of them also needs einops. They were written for an older JAX, so
names that it has dropped since are restored.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core

from bench.racer import Spec

ROOT = Path(__file__).parent.parent.parent


def make_importable() -> None:
    """Find their modules, not ours of the same name, and restore what JAX has dropped."""
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map
    if not hasattr(core, "as_named_shape"):
        core.as_named_shape = lambda shape: shape
    clip = jnp.clip
    rename = {"a_min": "min", "a_max": "max"}
    jnp.clip = lambda *x, **ends: clip(*x, **{rename.get(k, k): end for k, end in ends.items()})


def random_batch(spec: Spec) -> tuple[jax.Array, jax.Array]:
    """Images of standard normal numbers, [B, H, W, C], and labels, int32 [B]."""
    draw = np.random.default_rng(0)
    shape = (spec["batch"], spec["side"], spec["side"], spec["channels"])
    images = draw.standard_normal(shape, dtype=np.float32)
    return jax.device_put((images, draw.integers(spec["classes"], size=spec["batch"])))
