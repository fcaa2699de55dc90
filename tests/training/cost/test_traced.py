"""The estimate of a program's memory: by hand on small programs, and beside XLA's own figure."""

import jax
import jax.numpy as jnp
import pytest

from fewstep.training.cost.traced import temporary_bytes

ROWS, WIDTH = 64, 32
X, W = jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH))
ARRAY = X.nbytes


def chain(x, w):
    """Three products, each of what the one before makes."""
    return jnp.sum(jnp.tanh(jnp.tanh(jnp.tanh(x @ w) + 1.0) @ w) @ w)


def fused(x, w):
    return jnp.sum(jnp.exp(2.0 * jnp.sin(x)) + x)


def residual(x, w):
    """The first product is read again after the second, which is read with it."""
    first = x @ w
    return jnp.sum(first * (jnp.tanh(first) @ w))


def loop(x, w):
    return jnp.sum(jax.lax.scan(lambda x, _: (jnp.tanh(x @ w) @ w, None), x, length=5)[0])


def dead(x, w):
    x @ w @ w @ w
    return jnp.sum(x @ w)


def called(x, w):
    twice = jax.jit(lambda x: jnp.tanh(x @ w))
    return jnp.sum(twice(twice(x)))


@pytest.mark.parametrize(
    ("function", "arrays"),
    [
        (chain, 2),  # a product, and what the next one reads
        (fused, 0),
        (residual, 3),  # both products and the operand of the second
        (loop, 3),  # the result, and in the loop a product and an operand
        (dead, 1),
        (called, 2),
    ],
)
def test_memory_is_that_of_arrays_that_are_not_fused(function, arrays):
    found = temporary_bytes(jax.jit(function).trace(X, W).jaxpr.jaxpr)
    assert found == pytest.approx(arrays * ARRAY, abs=64)


def test_narrow_numbers_count_as_the_device_computes_them():
    half = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)
    jaxpr = jax.jit(chain).trace(*half).jaxpr.jaxpr
    assert temporary_bytes(jaxpr) == pytest.approx(ARRAY, abs=64)
    assert temporary_bytes(jaxpr, 4) == pytest.approx(2 * ARRAY, abs=64)


def test_a_gradient_keeps_what_the_backward_pass_reads_unless_it_is_recomputed():
    def deep(w, x):
        for _ in range(8):
            x = block(x, w)
        return jnp.sum(x)

    def block(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    kept = temporary_bytes(jax.jit(jax.grad(deep)).trace(W, X).jaxpr.jaxpr)
    block = jax.checkpoint(block)
    recomputed = temporary_bytes(jax.jit(jax.grad(deep)).trace(W, X).jaxpr.jaxpr)
    assert kept > 16 * ARRAY and recomputed < 0.7 * kept
