"""Heads: small modules that read a network's hidden features.

    network = add_head(network, "discriminator", Classifier(), reads=("block_2",))
    output, hidden = network.features(params, x, t, s, condition, ("block_2",))
    logits = network.head("discriminator").apply(params, hidden)

A head's parameters lie beside the network's. The network's output and its own parameters are the
same with and without a head.
"""

import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewstep.models.network import GUIDANCE, Array, Head, Key, Network, Params


def add_head(network: Network, name: str, module: nn.Module, reads: Sequence[str]) -> Network:
    """The network with a head, whose parameters are the entry `name` of the network's parameters.

    module: called as `module(hidden)` with the features that the head reads, [B, ...] by name.
    reads: names of these features, from network.hidden.

    Raises ValueError for a name that the parameters already have, and for features that the network
    does not have.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    if name in shapes:
        raise ValueError(f"the network already has parameters {name!r}; give the head another name")
    if network.features is None:
        raise ValueError("the network has no hidden features for a head to read")
    features = jax.eval_shape(lambda params: zero_input_features(network, params, reads), shapes)

    def init(key: Key) -> Params:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), features)
        own = module.init(jax.random.fold_in(key, zlib.crc32(name.encode())), zeros)
        return {**network.init(key), name: own["params"]}

    def apply(params: Params, hidden: Mapping[str, Array]) -> Array:
        return module.apply({"params": params[name]}, {read: hidden[read] for read in reads})

    return network._replace(init=init, heads=(*network.heads, Head(name, tuple(reads), apply)))


def zero_input_features(network: Network, params: Params, reads: Sequence[str]) -> dict[str, Array]:
    """The features of one example of zeros, by name."""
    x, time = jnp.zeros((1, *network.shape)), jnp.zeros((1,))
    condition = {"label": jnp.zeros((1,), jnp.int32), **dict.fromkeys(GUIDANCE, time)}
    condition["score"] = jnp.zeros((1, *network.shape))
    return network.features(params, x, time, time, condition, reads)[1]
