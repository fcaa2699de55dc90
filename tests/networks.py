"""Networks without a neural network: a known function in the place of `apply`."""

import jax.numpy as jnp

from models.network import Network


def exact(function):
    """A Network that ignores its one parameter's value but for an added offset.

    The offset (0 unless a test sets it) makes the loss differentiable in the parameters.
    """

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        return function(x, t, s, condition) + params["offset"]

    return Network(lambda key: {"offset": jnp.zeros(())}, apply, second_time="step_size")


def affine():
    """u = a x + b + c t + d (t - s) + e[label], elementwise: small, and every input matters."""

    def init(key):
        return {
            "a": jnp.float32(0.3),
            "b": jnp.float32(-0.2),
            "c": jnp.float32(0.5),
            "d": jnp.float32(0.7),
            "e": jnp.linspace(-1.0, 1.0, 4),
        }

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        row = (
            params["b"] + params["c"] * t + params["d"] * (t - s) + params["e"][condition["label"]]
        )
        return params["a"] * x + row.reshape(-1, *[1] * (x.ndim - 1))

    return Network(init, apply, second_time="step_size")
