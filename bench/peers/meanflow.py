"""The code of Geng et al. 2025 (Gsunshine/meanflow) in a race: its DiT, loss and sampler.

Its training step is for several devices under `pmap`; the one here is that of one device, without
the collectives. As theirs, it donates nothing.
"""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from bench.peers.official import make_importable, random_batch
from bench.racer import Spec, Work, jax_cost, serve

make_importable()

from meanflow import MeanFlow  # noqa: E402

models_dit = importlib.import_module("models.models_dit")  # its folder `models`, not ours

EMA = 0.9999


def prepare(spec: Spec) -> Work:
    """The training step or the sampler of a spec."""
    images, labels = random_batch(spec)
    models_dit.Raced = partial(
        models_dit.DiT,
        input_size=spec["side"],
        patch_size=spec["patch"],
        in_channels=spec["channels"],
        hidden_size=spec["width"],
        depth=spec["depth"],
        num_heads=spec["heads"],
        num_classes=spec["classes"],
    )
    times = jnp.linspace(1.0, 0.0, spec.get("steps", 1) + 1)
    model = MeanFlow(
        "Raced", {}, num_classes=spec["classes"], guidance_eq="", sampling_timesteps=times
    )
    first = images[:1], jnp.ones(1), jnp.ones(1, jnp.int32)
    params = jax.jit(model.init)({"params": jax.random.key(0)}, *first)["params"]
    if spec["kind"] == "train":
        return training(model, params, images, labels)
    return sampling(model, params, images, labels, times)


def training(model: MeanFlow, params, images: jax.Array, labels: jax.Array) -> Work:
    """A step: loss, gradient, AdamW, average."""
    optimizer = optax.adamw(1e-4, b2=0.95, weight_decay=0.0)
    apply = partial(model.apply, method=model.forward)
    state = TrainState.create(apply_fn=apply, params=params, tx=optimizer)
    average = jax.tree.map(jnp.copy, params)

    @jax.jit
    def step(state, average, images, labels):
        key = jax.random.fold_in(jax.random.key(1), state.step)

        def loss(params):
            return state.apply_fn({"params": params}, images, labels, rngs={"gen": key})

        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        state = state.apply_gradients(grads=gradient)
        average = jax.tree.map(lambda a, p: EMA * a + (1 - EMA) * p, average, state.params)
        return state, average, value

    def run():
        nonlocal state, average
        state, average, value = step(state, average, images, labels)
        return value

    compiled = lambda: step.lower(state, average, images, labels).compile()
    return Work(run, jax.block_until_ready, lambda: jax_cost(compiled(), 0))


def sampling(model: MeanFlow, params, noise: jax.Array, labels: jax.Array, times) -> Work:
    """Its jumps along the grid of times, in one program."""

    @jax.jit
    def draw(params, x):
        def jump(i, x):
            keys = {"gen": jax.random.key(0)}
            jump = model.sample_one_step
            return model.apply({"params": params}, x, labels, i, times, method=jump, rngs=keys)

        return jax.lax.fori_loop(0, len(times) - 1, jump, x)

    cost = lambda: jax_cost(draw.lower(params, noise).compile(), 0)
    return Work(lambda: jax.device_get(draw(params, noise)), jax.block_until_ready, cost)


if __name__ == "__main__":
    serve(prepare)
