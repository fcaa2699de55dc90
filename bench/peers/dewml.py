"""Dew (`dewml` on PyPI) in a race: its trainer, its SimpleDiT and its Euler sampler.

Dew conditions on text alone, so its network reads no label. Two more things differ: it rotates
queries and keys by position, and its last normalization has weights in place of a modulation. It
has sCM only as distillation from a teacher, so it takes no part in `sct`.
"""

import jax
import numpy as np
import optax
from dew import Field, InputSpec, Trainer
from dew.diffusion.presets import Flow, Shortcut
from dew.nn.backbones import SimpleDiT
from dew.objectives.diffusion import DiffusionObjective, ShortcutObjective
from dew.sampling import Euler, sample

from bench.racer import Spec, Work, jax_cost, serve

OBJECTIVES = {
    "flow_matching": (DiffusionObjective, Flow(density="uniform")),
    "shortcut": (ShortcutObjective, Shortcut()),
}


def prepare(spec: Spec) -> Work:
    """The training step or the sampler of a spec."""
    shape = (spec["side"], spec["side"], spec["channels"])
    kind, process = OBJECTIVES[spec["method"]]
    model = SimpleDiT(
        patch_size=spec["patch"],
        emb_features=spec["width"],
        num_layers=spec["depth"],
        num_heads=spec["heads"],
        output_channels=spec["channels"],
        dtype=np.dtype(spec["dtype"]) if spec["dtype"] == "float32" else jax.numpy.bfloat16,
        interval=spec["method"] == "shortcut",
    )
    objective = kind(model, process, InputSpec(Field("image", shape)))
    trainer = Trainer(objective, optax.adamw(1e-4, weight_decay=0.0), key=0)
    state = trainer.place()[0]
    count = spec["batch"]
    if spec["kind"] == "train":
        return training(trainer, state, (count, *shape))
    return sampling(objective, state.averaged, (count, *shape), spec["steps"])


def training(trainer: Trainer, state, shape: tuple[int, ...]) -> Work:
    """The trainer's step on one batch of random pixels, in [0, 255] as Dew reads them."""
    pixels = np.random.default_rng(0).uniform(0.0, 255.0, shape).astype(np.float32)
    rows = jax.sharding.PartitionSpec(trainer.device_mesh.axis_names)
    batch = {"image": jax.device_put(pixels, jax.NamedSharding(trainer.device_mesh, rows))}
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    step = trainer.compile(state, batch)

    def run():
        nonlocal state
        state, loss, *_ = step(state, batch)
        return loss

    return Work(run, jax.block_until_ready, lambda: jax_cost(trainer.executable, state_bytes))


def sampling(objective: DiffusionObjective, variables, shape: tuple[int, ...], steps: int) -> Work:
    """A batch from `steps` evaluations of the network, copied to the host."""

    @jax.jit
    def draw(variables, key):
        denoise = objective.process.denoiser(objective.model, variables, {})
        noise = objective.process.noise(key, shape)
        grid = steps + 1
        return sample(denoise, noise, grid, solver=Euler(), key=key, final_denoise=False)

    key = jax.random.key(0)
    cost = lambda: jax_cost(draw.lower(variables, key).compile(), 0)
    return Work(lambda: jax.device_get(draw(variables, key)), jax.block_until_ready, cost)


if __name__ == "__main__":
    serve(prepare)
