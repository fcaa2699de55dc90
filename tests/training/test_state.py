"""The initial state: where parameters and optimizer states come from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewstep.models.network import Network
from fewstep.objectives.base import Follower, Objective, Player
from fewstep.training.generate import SAMPLES, initial_noise
from fewstep.training.optimizer import Optimizer
from fewstep.training.state import initial_state, named_key

STREAMS = {
    "init": (3_020_537_540, 2_946_840_664),
    "network": (4_075_488_016, 2_196_139_728),
    "shared": (2_609_117_519, 2_605_068_432),
    "sample": (4_075_755_209, 1_821_490_181),
    "pairs": (707_519_160, 1_892_292_296),
    "posterior": (289_212_699, 1_503_054_107),
}
NOISE = (0.49990481, -0.73382610, 0.05077534)
COPY = lambda own, source, step: source
FROZEN = {name: {"w": jnp.full(3, value)} for name, value in (("easy", 7.0), ("hard", 8.0))}


def objective(**init_from):
    """Three players with random parameters; an average of the last, and an average of that."""

    def player(size):
        return Player(Network(lambda key: {"w": jax.random.normal(key, (size,))}, None), None)

    return Objective(
        players={"first": player(3), "second": player(3), "third": player(3)},
        followers={"average": Follower("third", COPY), "slower": Follower("average", COPY)},
        sample=None,
        init_from=init_from,
    )


def test_random_streams_are_those_of_earlier_versions():
    """A run that goes on, and a seed of --seeds, have the noise that they had."""
    key = jax.random.key(0)
    words = {name: jax.random.key_data(named_key(key, name)) for name in STREAMS}
    assert {name: tuple(map(int, data)) for name, data in words.items()} == STREAMS
    eps, _ = initial_noise(0, jnp.array([0]), (3,), SAMPLES)
    np.testing.assert_allclose(eps[0], NOISE, rtol=1e-6)


def optimizer(transform):
    return Optimizer(transform, optax.constant_schedule(0.1))


OPTIMIZERS = {
    "first": optimizer(optax.sgd(0.1)),
    "second": optimizer(optax.sgd(0.1, momentum=0.9)),
    "third": optimizer(optax.adam(0.1)),
}


def state(seed=0, **init_from):
    return initial_state(objective(**init_from), OPTIMIZERS, seed, FROZEN)


def weights(state):
    return {name: np.asarray(params["w"]) for name, params in state.networks.items()}


def test_players_differ_from_each_other_and_from_those_of_another_seed():
    drawn = [w for seed in (0, 1) for w in weights(state(seed)).values()]
    assert len({w.tobytes() for w in drawn}) == 6
    again = weights(state(1))
    assert [w.tobytes() for w in again.values()] == [w.tobytes() for w in drawn[3:]]


def test_a_player_starts_alike_whatever_others_there_are():
    whole = objective()
    alone = whole._replace(players={"third": whole.players["third"]}, followers={})
    other = initial_state(alone, OPTIMIZERS, 0, {})
    np.testing.assert_array_equal(other.networks["third"]["w"], weights(state())["third"])


def test_each_player_starts_from_the_network_that_is_named_for_it():
    own, started = weights(state()), state(third="hard", first="easy")
    np.testing.assert_array_equal(weights(started)["first"], [7.0] * 3)
    np.testing.assert_array_equal(weights(started)["second"], own["second"])
    np.testing.assert_array_equal(weights(started)["third"], [8.0] * 3)


def test_followers_start_as_what_they_follow():
    made = state()
    for follower in ("average", "slower"):
        np.testing.assert_array_equal(made.followers[follower]["w"], made.networks["third"]["w"])


@pytest.mark.parametrize("init_from", [{}, {"second": "hard"}])
def test_each_player_has_the_state_of_its_own_optimizer(init_from):
    made = state(**init_from)
    assert made.optimizers.keys() == OPTIMIZERS.keys()
    for name, optimizer in OPTIMIZERS.items():
        own = optimizer.transform.init(made.networks[name])
        assert jax.tree.structure(made.optimizers[name]) == jax.tree.structure(own)
    assert len({str(jax.tree.structure(own)) for own in made.optimizers.values()}) == 3


def test_an_optimizer_s_state_may_depend_on_its_player_s_parameters():
    remembers = optax.GradientTransformation(lambda params: params, None)
    optimizers = dict.fromkeys(OPTIMIZERS, optimizer(remembers))
    made = initial_state(objective(second="easy"), optimizers, 0, FROZEN)
    for name, params in made.networks.items():
        np.testing.assert_array_equal(made.optimizers[name]["w"], params["w"])


def test_streams_are_told_apart_by_their_names():
    key = jax.random.key(0)
    names = ("init", "sample", "pairs", "shared", "generator", "fake_score", "network")
    streams = [jax.random.key_data(k).tobytes() for k in (key, *(named_key(key, n) for n in names))]
    assert len(set(streams)) == len(names) + 1


def from_teacher(teacher, network):
    """The parameters of a player with this network that starts from the teacher."""
    players = {"network": Player(network, None)}
    objective = Objective(players, {}, None, init_from={"network": "teacher"})
    optimizers = {"network": OPTIMIZERS["third"]}
    return initial_state(objective, optimizers, 0, {"teacher": teacher}).networks["network"]


WITH_HEAD = Network(
    lambda key: {"body": {"w": jnp.zeros(3), "b": jnp.ones(2)}, "head": {"w": jnp.full(2, 5.0)}},
    None,
)


def test_a_player_keeps_what_its_teacher_does_not_have():
    teacher = {"body": {"w": jnp.full(3, 7.0)}}
    params = from_teacher(teacher, WITH_HEAD)
    np.testing.assert_array_equal(params["body"]["w"], [7.0] * 3)
    np.testing.assert_array_equal(params["body"]["b"], [1.0] * 2)
    np.testing.assert_array_equal(params["head"]["w"], [5.0] * 2)
    assert params["body"]["w"] is not teacher["body"]["w"]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            {"body": {"w": jnp.ones(4)}},
            r"network cannot start from teacher: .*body/w.*\(3,\).*\(4,\)",
        ),
        ({"body": {"c": jnp.ones(3)}}, "network cannot start from teacher: .*no parameter body/c"),
        ({"tail": {"w": jnp.ones(3)}}, "no parameter tail/w"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_by_the_parameter(teacher, message):
    with pytest.raises(ValueError, match=message):
        from_teacher(teacher, WITH_HEAD)
