"""A fake score with a discriminator as a head, as in DMD2, from a teacher to a resumed run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fewstep.diffusion.path import linear
from fewstep.diffusion.prediction import KINDS
from fewstep.models.heads import add_head
from fewstep.models.mlp import mlp
from fewstep.models.model import Model
from fewstep.objectives.base import Objective, Player, per_example
from fewstep.training.compiled_step import Training, create_state
from fewstep.training.experiment import build_optimizers
from fewstep.training.loop import train
from fewstep.training.optimizer import build_optimizer
from fewstep.training.schedule import Schedule
from fewstep.training.session import Upkeep
from fewstep.training.sharding import spread
from fewstep.training.sources import Stream
from fewstep.training.storage.fields import check_field_values
from tests.training.runs import largest_difference, perturb, small_config
from tests.training.test_sharding import mesh_of

SIDE, WIDTH, BATCH, STEPS = (8, 8, 1), 64, 16, 4
LAST = "block_0"
HEAD_RATE = 1e-2
FIELDS = {
    "name": "adam",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_steps": 0,
    "b1": 0.5,
    "b2": 0.9,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "updates": STEPS,
}


class Classifier(nn.Module):
    """Tells real from generated samples by the units of the last block."""

    @nn.compact
    def __call__(self, hidden):
        units = nn.silu(nn.Dense(WIDTH, name="units")(hidden[LAST]))
        return nn.Dense(1, name="logit")(units)[:, 0]


def network():
    return mlp(SIDE, width=WIDTH, depth=1)


def adversarial(plain):
    """A generator and a fake score whose head tells its samples from real images."""
    headed = add_head(plain, "discriminator", Classifier(), reads=(LAST,))
    model = Model(plain, linear(), KINDS["velocity"])
    fake_model = model._replace(network=headed)

    def generate(params, key, condition):
        eps, t = jax.random.normal(key, (BATCH, *SIDE)), jnp.ones(BATCH)
        return model.endpoints(params, eps, t, condition).x_0

    def evaluated(params, x, key, condition):
        """The velocity at a noised x, its target, and the head's logits, by one evaluation."""
        eps, t = jax.random.normal(key, x.shape), jnp.full(BATCH, 0.5)
        x_t = model.path.interpolate(x, eps, t)
        v, hidden = fake_model.features(params, x_t, t, t, condition, (LAST,))
        return v, eps - x, headed.head("discriminator").apply(params, hidden)

    def fake_loss(params, networks, batch, key, step):
        keys, condition = jax.random.split(key, 3), {"label": batch["label"]}
        x_g = generate(networks["generator"], keys[0], condition)
        v, target, fake = evaluated(params, x_g, keys[1], condition)
        *_, real = evaluated(params, batch["x"], keys[2], condition)
        return per_example((v - target) ** 2) + nn.softplus(fake) + nn.softplus(-real), {}

    def generator_loss(params, networks, batch, key, step):
        keys, condition = jax.random.split(key), {"label": batch["label"]}
        x_g = generate(params, keys[0], condition)
        *_, fake = evaluated(networks["fake_score"], x_g, keys[1], condition)
        return nn.softplus(-fake), {}

    return Objective(
        players={
            "fake_score": Player(headed, fake_loss),
            "generator": Player(plain, generator_loss),
        },
        followers={},
        sample=None,
        generator="generator",
        init_from={"fake_score": "teacher", "generator": "teacher"},
    )


OPTIMIZERS = {
    "fake_score": build_optimizer(**FIELDS, heads={"discriminator": {"learning_rate": HEAD_RATE}}),
    "generator": build_optimizer(**FIELDS),
}


def teacher():
    return {"teacher": perturb(jax.jit(network().init)(jax.random.key(9)))}


def batches(start):
    for step in range(start, STEPS):
        x = np.random.default_rng(step).standard_normal((BATCH, *SIDE)).astype(np.float32)
        yield {"x": x, "label": np.zeros(BATCH, np.int32)}


def run(folder, steps, mesh):
    objective = adversarial(spread(network(), mesh))
    return train(
        Training(objective, OPTIMIZERS, teacher(), mesh, seed=0, batch_size=BATCH),
        Stream(batches, dict),
        Schedule(steps, log=1, save=2),
        Upkeep(folder, {"method": "gan"}),
        lambda state: {},
    )


def test_a_fake_score_with_a_head_starts_from_a_teacher():
    state = create_state(adversarial(network()), OPTIMIZERS, 0, teacher(), mesh_of(1, 1))
    params, given = state.networks["fake_score"], teacher()["teacher"]
    assert set(params) - set(given) == {"discriminator"}
    assert largest_difference({name: params[name] for name in given}, given) == 0.0
    assert largest_difference(state.networks["generator"], given) == 0.0


@pytest.mark.some_days(2)
def test_it_trains_sharded_and_goes_on_bit_for_bit(tmp_path):
    mesh = mesh_of(2, 4)
    whole = run(tmp_path / "whole", STEPS, mesh)
    kernel = whole.networks["fake_score"]["discriminator"]["units"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) != kernel.shape
    moments = [leaf for leaf in jax.tree.leaves(whole.optimizers["fake_score"]) if leaf.ndim == 2]
    assert any(leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in moments)
    run(tmp_path / "parts", 2, mesh)
    resumed = run(tmp_path / "parts", STEPS, mesh)
    assert int(resumed.step) == STEPS
    assert largest_difference(resumed, whole) == 0.0
    alone = run(tmp_path / "alone", STEPS, mesh_of(1, 1))
    assert largest_difference(alone.networks, whole.networks) < 1e-5
    start = create_state(adversarial(network()), OPTIMIZERS, 0, teacher(), mesh_of(1, 1))
    moved = {
        name: largest_difference(start.networks[name], whole.networks[name])
        for name in start.networks
    }
    assert min(moved.values()) > 1e-4


def test_a_head_moves_at_its_own_rate_and_is_clipped_by_its_own_norm():
    params = {"body": {"w": jnp.zeros(3)}, "head": {"w": jnp.zeros(3)}}
    grads = {"body": {"w": jnp.full(3, 1e3)}, "head": {"w": jnp.full(3, 1e-3)}}

    def update(**fields):
        transform = build_optimizer(**FIELDS | fields).transform
        return transform.update(grads, transform.init(params), params)[0]

    own = {"heads": {"head": {"learning_rate": 0.1, "b1": 0.0}}}
    found, plain = update(**own), update()
    np.testing.assert_allclose(found["head"]["w"], -0.1, rtol=1e-3)  # of Adam the first is the rate
    np.testing.assert_allclose(found["body"]["w"], plain["body"]["w"], rtol=1e-5)
    small = update(**own, eps=1.0, b1=0.0)  # proportional to the gradient, which is not clipped
    np.testing.assert_allclose(small["head"]["w"], -0.1 * 1e-3, rtol=1e-2)


def test_spikes_are_those_of_the_whole_network():
    made = build_optimizer(**FIELDS, spike_factor=3.0, heads={"head": {"learning_rate": 0.1}})
    params = {"body": {"w": jnp.zeros(3)}, "head": {"w": jnp.zeros(3)}}
    assert type(made.transform.init(params)).__name__ == "SpikeState"


def test_an_optimizer_without_heads_has_the_state_of_one_network():
    params = {"body": {"w": jnp.zeros(3)}}
    states = [build_optimizer(**FIELDS, heads=heads).transform.init(params) for heads in (None, {})]
    plain = build_optimizer(**FIELDS).transform.init(params)
    assert {jax.tree.structure(state) for state in states} == {jax.tree.structure(plain)}


def optimizer_with(own):
    config = small_config("flow_matching")
    config.player_optimizers = {"network": {"b1": 0.8, "heads": own}}
    check_field_values(config)
    headed = add_head(network(), "discriminator", Classifier(), reads=(LAST,))
    return build_optimizers(config, Objective({"network": Player(headed, None)}, {}, None))


def test_a_config_names_heads_and_their_fields():
    state = jax.eval_shape(
        lambda key: optimizer_with({"discriminator": {"learning_rate": HEAD_RATE}})[
            "network"
        ].transform.init(add_head(network(), "discriminator", Classifier(), (LAST,)).init(key)),
        jax.random.key(0),
    )
    assert set(state.inner_states) == {"network", "head_discriminator"}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"discriminater": {"b1": 0.0}}, "'discriminater' .* did you mean 'discriminator'"),
        ({"discriminator": {"rate": 0.1}}, "network.heads.discriminator='rate'"),
        ({"discriminator": {"spike_factor": 1.0}}, "heads.discriminator='spike_factor'"),
        ({"discriminator": {"name": "adan"}}, "'adan' .*'adam'"),
        ({"discriminator": {"b1": 2.0}}, "heads.discriminator.b1=2.0 must be"),
        ({"discriminator": 3}, "heads.discriminator=3 must be a group of fields"),
    ],
)
def test_a_head_or_field_that_does_not_exist_is_named(own, message):
    with pytest.raises(ValueError, match=message):
        optimizer_with(own)
