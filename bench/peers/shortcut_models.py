"""The code of Frans et al. (kvfrans/shortcut-models) in a race: its DiT, targets and averages.

Its training step is a closure of its `main`, so the step here joins its parts in the same order. It
leaves out the norms of activations that theirs logs. As theirs, it donates nothing, and sampling
calls the compiled network once per step.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax

from bench.peers.official import make_importable, random_batch
from bench.racer import Spec, Work, jax_cost, serve

make_importable()

from baselines import targets_naive  # noqa: E402
from model import DiT  # noqa: E402
from targets_shortcut import get_targets  # noqa: E402
from utils.train_state import TrainStateEma  # noqa: E402

TARGETS = {"flow_matching": targets_naive.get_targets, "shortcut": get_targets}
EMA = 0.999


def prepare(spec: Spec) -> Work:
    """The training step or the sampler of a spec."""
    images, labels = random_batch(spec)
    state = initial_state(spec, images, labels)
    if spec["kind"] == "train":
        return training(spec, state, images, labels)
    return sampling(state, images, labels, spec["steps"])


def initial_state(spec: Spec, images: jax.Array, labels: jax.Array) -> TrainStateEma:
    """Parameters, their average, and the state of AdamW."""
    network = DiT(
        patch_size=spec["patch"],
        hidden_size=spec["width"],
        depth=spec["depth"],
        num_heads=spec["heads"],
        mlp_ratio=4.0,
        out_channels=spec["channels"],
        class_dropout_prob=0.1,
        num_classes=spec["classes"],
        ignore_dt=spec["method"] == "flow_matching",
        dtype=jnp.dtype(spec["dtype"]),
    )
    times = jnp.zeros(len(labels))
    keys = {"params": jax.random.key(0)}
    params = jax.jit(network.init)(keys, images, times, times, labels)["params"]
    optimizer = optax.adamw(1e-4, b1=0.9, b2=0.999, weight_decay=0.1)
    return TrainStateEma.create(network, params, rng=jax.random.key(1), tx=optimizer)


def training(spec: Spec, state: TrainStateEma, images: jax.Array, labels: jax.Array) -> Work:
    """A step: rows permuted, targets, gradient, AdamW, average."""
    flags = SimpleNamespace(
        dataset_name="",
        batch_size=spec["batch"],
        model={
            "bootstrap_every": 8,
            "bootstrap_ema": 1,
            "bootstrap_cfg": 0,
            "bootstrap_dt_bias": 0,
            "denoise_timesteps": spec["grid"],
            "class_dropout_prob": 0.1,
            "num_classes": spec["classes"],
        },
    )

    @jax.jit
    def step(state, images, labels):
        key, targets_key, dropout_key, order_key = jax.random.split(state.rng, 4)
        order = jax.random.permutation(order_key, len(labels))
        targets = TARGETS[spec["method"]](flags, targets_key, state, images[order], labels[order])
        x_t, velocity, *condition, _ = targets

        def loss(params):
            keys = {"dropout": dropout_key}
            found = state.call_model(x_t, *condition, train=True, rngs=keys, params=params)
            return jnp.mean(jnp.square(found - velocity))

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, optimizer_state = state.tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norms = optax.global_norm(gradient), optax.global_norm(updates)
        state = state.replace(rng=key, step=state.step + 1, params=params)
        state = state.replace(opt_state=optimizer_state).update_ema(1 - EMA)
        return state, (value, *norms)

    def run():
        nonlocal state
        state, metrics = step(state, images, labels)
        return metrics

    return Work(
        run, jax.block_until_ready, lambda: jax_cost(step.lower(state, images, labels).compile(), 0)
    )


def sampling(state: TrainStateEma, noise: jax.Array, labels: jax.Array, steps: int) -> Work:
    """Euler steps by the average, one call of the compiled network each."""
    level = jnp.full(len(labels), jnp.log2(steps))

    @jax.jit
    def velocity(state, x, t):
        return state.call_model_ema(x, t, level, labels, train=False)

    def draw():
        x = noise
        for i in range(steps):
            x = x + velocity(state, x, jnp.full(len(labels), i / steps)) / steps
        return jax.device_get(x)

    compiled = lambda: velocity.lower(state, noise, jnp.zeros(len(labels))).compile()
    return Work(draw, jax.block_until_ready, lambda: jax_cost(compiled(), 0))


if __name__ == "__main__":
    serve(prepare)
