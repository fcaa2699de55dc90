from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewstep.diffusion.path import linear
from fewstep.models.network import Network
from fewstep.objectives.base import Follower, Mean, Objective, Player
from fewstep.objectives.denoising import denoising
from fewstep.objectives.followers import constant_ema, keep_unchanged
from fewstep.objectives.stages import Stage
from fewstep.training.optimizer import Optimizer, build_optimizer
from fewstep.training.report import NonFiniteError, check_finite
from fewstep.training.spikes import skip_spikes
from fewstep.training.state import initial_state, named_key
from fewstep.training.step import train_step
from tests.networks import affine_network, build_model

RATE = 0.1
SGD = Optimizer(optax.sgd(RATE), optax.constant_schedule(RATE))
BATCH = {"x": jnp.array([[1.0], [3.0]]), "label": jnp.array([0, 1])}


def player(target, every=1, init=0.0):
    """A scalar w with the loss (w - target(networks, batch))^2 / 2."""

    def loss(params, networks, batch, key, step):
        error = params["w"] - target(networks, batch)
        return 0.5 * error**2, {"seen": Mean(jnp.float32(2), jnp.float32(1))}

    return Player(Network(lambda key: {"w": jnp.float32(init)}, None), loss=loss, every=every)


def game(every=1):
    """`first` follows the batch; `second` follows `first`, an average and a frozen network."""

    def total(networks, batch):
        names = ("first", "average", "teacher")
        return sum(networks[name]["w"] for name in names) * jnp.ones(2)

    return Objective(
        players={
            "first": player(lambda networks, batch: batch["x"][:, 0], every=every),
            "second": player(total, init=5.0),
        },
        followers={"average": Follower("first", constant_ema(0.5))},
        sample=None,
        generator="second",
        frozen=("teacher",),
    )


FROZEN = {"teacher": {"w": jnp.float32(7.0)}}


def start(objective):
    optimizers = dict.fromkeys(objective.players, SGD)
    state = initial_state(objective, optimizers, 0, FROZEN)
    return state, jax.jit(train_step(objective, optimizers, 0))


def test_players_move_in_order_and_followers_after_them():
    state, step = start(game())
    state, metrics = step(state, FROZEN, BATCH)
    first = 0.0 - RATE * (0.0 - 2.0)  # the batch's mean is 2
    second = 5.0 - RATE * (5.0 - (first + 0.0 + 7.0))  # sees the new first, the old average
    assert float(state.networks["first"]["w"]) == pytest.approx(first)
    assert float(state.networks["second"]["w"]) == pytest.approx(second)
    assert float(state.followers["average"]["w"]) == pytest.approx(0.5 * first)
    assert int(state.step) == 1
    assert float(metrics["second/gradient_norm"].total) == pytest.approx(abs(5.0 - first - 7.0))
    assert float(metrics["first/loss"].total) == pytest.approx(0.5 * (1 + 9) / 2)


def test_each_player_s_update_changes_that_player_alone():
    objective = game()
    for alone in objective.players:
        still = {
            name: p if name == alone else p._replace(loss=lambda *a: (jnp.zeros(2), {}))
            for name, p in objective.players.items()
        }
        state, step = start(objective._replace(players=still))
        updated, _ = step(state, FROZEN, BATCH)
        moved = {n for n in still if updated.networks[n]["w"] != state.networks[n]["w"]}
        assert moved == {alone}


def test_a_slow_player_moves_at_its_own_period():
    state, step = start(game(every=3))
    values, counts = [], []
    for _ in range(7):
        state, metrics = step(state, FROZEN, BATCH)
        values.append(float(state.networks["first"]["w"]))
        counts.append(float(metrics["first/loss"].count))
    assert counts == [1, 0, 0, 1, 0, 0, 1]
    still = [values[i] == values[i - 1] for i in range(1, 7)]
    assert still == [True, True, False, True, True, False]


def test_a_follower_of_a_slow_player_counts_the_player_s_updates():
    # An average of an average: both follow `first`, and their step is the number of its updates.
    seen = Follower("average", lambda own, source, step: {"w": 1.0 + step.astype(jnp.float32)})
    objective = game(every=3)
    objective = objective._replace(followers={**objective.followers, "counter": seen})
    state, step = start(objective)
    counts, averages = [], []
    for _ in range(7):
        state, _ = step(state, FROZEN, BATCH)
        counts.append(float(state.followers["counter"]["w"]))
        averages.append(float(state.followers["average"]["w"]))
    assert counts == [1, 1, 1, 2, 2, 2, 3]
    first = 2.0 * RATE
    assert averages[:4] == pytest.approx([0.5 * first] * 3 + [0.25 * first + 0.5 * first * 1.9])


def test_the_logged_rate_of_a_slow_player_is_that_of_its_own_update():
    rising = Optimizer(optax.sgd(RATE), lambda n: 1.0 + n)
    objective = game(every=3)
    optimizers = dict.fromkeys(objective.players, rising)
    state = initial_state(objective, optimizers, 0, FROZEN)
    step = jax.jit(train_step(objective, optimizers, 0))
    logged = {"first": [], "second": []}
    for _ in range(7):
        state, metrics = step(state, FROZEN, BATCH)
        for player, rates in logged.items():
            rate = metrics[f"{player}/learning_rate"]
            rates.append(float(rate.total) if rate.count else None)
    assert logged["first"] == [1.0, None, None, 2.0, None, None, 3.0]
    assert logged["second"] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_each_player_is_updated_by_its_own_optimizer():
    objective = game()
    rates = {"first": RATE, "second": 3.0 * RATE}
    optimizers = {
        name: Optimizer(optax.sgd(rate), optax.constant_schedule(rate))
        for name, rate in rates.items()
    }
    state = initial_state(objective, optimizers, 0, FROZEN)
    state, metrics = jax.jit(train_step(objective, optimizers, 0))(state, FROZEN, BATCH)
    first = RATE * 2.0
    second = 5.0 - 3.0 * RATE * (5.0 - (first + 0.0 + 7.0))
    assert float(state.networks["first"]["w"]) == pytest.approx(first)
    assert float(state.networks["second"]["w"]) == pytest.approx(second)
    logged = {name: float(metrics[f"{name}/learning_rate"].total) for name in rates}
    assert logged == pytest.approx(rates)


def test_the_logged_rate_is_the_one_of_the_update_whatever_was_skipped_before():
    # A loss of value x and gradient 1: each update moves w by the rate, unless it is skipped.
    loss = lambda params, networks, batch, *_: (
        params["w"] - jax.lax.stop_gradient(params["w"]) + batch["x"][:, 0],
        {},
    )
    objective = Objective(
        players={"network": Player(Network(lambda key: {"w": jnp.float32(0.0)}, None), loss)},
        followers={},
        sample=None,
        init_from={},
    )
    rate = lambda n: 1.0 + n
    optimizers = {"network": Optimizer(skip_spikes(optax.sgd(rate), 3.0, 2), rate, 3.0, 9)}
    state = initial_state(objective, optimizers, 0, {})
    step = jax.jit(train_step(objective, optimizers, 0))
    moves, rates = [], []
    for value in (1.0, 2.0, 90.0, 2.0, 2.0):
        before = float(state.networks["network"]["w"])
        state, metrics = step(state, {}, {"x": jnp.full((2, 1), value), "label": jnp.zeros(2)})
        moves.append(before - float(state.networks["network"]["w"]))
        rates.append(float(metrics["learning_rate"].total))
    assert moves == [1.0, 2.0, 0.0, 3.0, 4.0]
    assert rates == [1.0, 2.0, 3.0, 3.0, 4.0]


def test_a_follower_copies_its_source_and_no_other_network():
    copies = {
        name: Follower(source, constant_ema(0.0))
        for name, source in (("mine", "second"), ("its", "mine"), ("other", "first"))
    }
    objective = game()
    objective = objective._replace(followers={**objective.followers, **copies})
    state, step = start(objective)
    state, _ = step(state, FROZEN, BATCH)
    networks, followers = state.networks, state.followers
    assert float(networks["first"]["w"]) != float(networks["second"]["w"])
    for name, source in (("mine", "second"), ("its", "second"), ("other", "first")):
        assert float(followers[name]["w"]) == float(networks[source]["w"])


def test_players_start_from_frozen_networks_and_own_their_copy():
    objective = game()._replace(init_from={"second": "teacher"})
    state, step = start(objective)
    assert float(state.networks["second"]["w"]) == 7.0
    donated = jax.jit(step, donate_argnums=0)
    donated(state, FROZEN, BATCH)
    assert float(FROZEN["teacher"]["w"]) == 7.0


@pytest.mark.parametrize("bad", ["first", "second"])
def test_a_non_finite_loss_leaves_the_whole_state_and_is_named(bad):
    objective = game()
    nan = player(lambda networks, batch: jnp.array([jnp.nan, 0.0]))
    state, step = start(objective._replace(players={**objective.players, bad: nan}))
    updated, metrics = step(state, FROZEN, BATCH)
    chex.assert_trees_all_equal(updated, state)
    with pytest.raises(NonFiniteError, match=f"of {bad} is not finite at step 12") as error:
        check_finite(12, jax.device_get(metrics))
    values = error.value.values
    assert values.keys() == {f"{p}/{v}" for p in state.networks for v in ("loss", "gradient_norm")}
    assert np.isnan(values[f"{bad}/loss"]) and error.value.step == 12


def test_an_infinite_gradient_of_a_finite_loss_is_caught():
    # sqrt has value 0 and an infinite gradient at 0.
    loss = lambda params, *_: (jnp.sqrt(params["w"]) * jnp.ones(2), {})
    objective = game()
    bad = Player(Network(lambda key: {"w": jnp.float32(0.0)}, None), loss=loss)
    state, step = start(objective._replace(players={**objective.players, "first": bad}))
    with pytest.raises(NonFiniteError, match="first"):
        check_finite(1, jax.device_get(step(state, FROZEN, BATCH)[1]))


def overflowing_game(bad):
    """A game in which finite gradients of `first` make the part `bad` of its state infinite."""
    objective, optimizers = game(), dict.fromkeys(("first", "second"), SGD)
    if bad == "parameters":
        optimizers["first"] = Optimizer(optax.sgd(1e39), optax.constant_schedule(1e39))
    if bad == "optimizer state":
        squares = optax.GradientTransformation(
            lambda params: jnp.float32(1.0),
            lambda updates, state, params=None: (updates, 1e30 * state * 1e30),
        )
        transform = optax.chain(squares, optax.sgd(RATE))
        optimizers["first"] = Optimizer(transform, optax.constant_schedule(RATE))
    if bad == "follower":
        blown_up = Follower("average", lambda own, source, step: {"w": source["w"] * 1e39})
        objective = objective._replace(followers={**objective.followers, "blown_up": blown_up})
    return objective, optimizers


@pytest.mark.parametrize("bad", ["parameters", "optimizer state", "follower"])
def test_an_update_that_makes_any_part_infinite_is_not_kept_and_named(bad):
    objective, optimizers = overflowing_game(bad)
    state = initial_state(objective, optimizers, 0, FROZEN)
    step = jax.jit(train_step(objective, optimizers, 0))
    updated, metrics = step(state, FROZEN, BATCH)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updated))
    chex.assert_trees_all_equal(updated, state)
    with pytest.raises(NonFiniteError) as error:
        check_finite(12, jax.device_get(metrics))
    assert "of first after its update are not finite at step 12" in str(error.value)


def test_keys_are_a_function_of_seed_step_and_name():
    seen = {}

    def loss(params, networks, batch, key, step):
        return jnp.zeros(2) * params["w"], {"draw": Mean(jax.random.uniform(key), jnp.float32(1))}

    noisy = Player(Network(lambda key: {"w": jnp.float32(0)}, None), loss=loss)
    objective = game()._replace(players={"first": noisy, "second": noisy})
    state, step = start(objective)
    for i in range(2):
        state, metrics = step(state, FROZEN, BATCH)
        for name in ("first", "second"):
            seen[i, name] = float(metrics[f"{name}/draw"].total)
    assert len(set(seen.values())) == 4
    expected = named_key(jax.random.fold_in(jax.random.key(0), 1), "second")
    assert seen[1, "second"] == float(jax.random.uniform(expected))


def test_a_gradient_is_the_mean_of_those_of_the_micro_batches():
    objective, count = denoising(build_model(affine_network(), linear()))._replace(init_from={}), 4
    optimizers = {"network": SGD}
    state = initial_state(objective, optimizers, 0, {})
    batch = {
        "x": jax.random.normal(jax.random.key(1), (24, 2, 2, 1)),
        "label": jnp.arange(24) % 4,
    }
    updated, metrics = jax.jit(train_step(objective, optimizers, 0, count))(state, {}, batch)
    key = named_key(jax.random.fold_in(jax.random.key(0), 0), "network")
    params, loss = state.networks["network"], objective.players["network"].loss

    def of_part(i):
        part = {name: rows[i::count] for name, rows in batch.items()}
        mean = lambda p: loss(p, {}, part, jax.random.fold_in(key, i), 0)[0].mean()
        return jax.value_and_grad(mean)(params)

    losses, gradients = zip(*map(of_part, range(count)), strict=True)
    assert float(metrics["loss"].total) == pytest.approx(np.mean(losses), rel=1e-6)
    assert float(metrics["loss"].count) == 1
    assert sum(metrics[f"loss_noise_{i}"].count for i in range(8)) == 24
    total = sum(float(metrics[f"loss_noise_{i}"].total) for i in range(8))
    assert total == pytest.approx(24 * np.mean(losses), rel=1e-5)
    for name, after in updated.networks["network"].items():
        mean = np.mean([gradient[name] for gradient in gradients], axis=0)
        np.testing.assert_allclose(params[name] - RATE * mean, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("micro_batches", "seeds"), [(1, [0]), (4, [0, 1])])
def test_every_row_has_a_draw_of_its_own_that_all_players_share(micro_batches, seeds):
    # Each of 8 rows says what was drawn for it, for what is shared and by the player itself.
    def draws(key, batch):
        return jax.random.uniform(key, batch["label"].shape)

    def loss(params, networks, batch, key, step):
        drawn = {"shared": batch["shared"]["x"], "own": draws(key, batch)}
        rows = jnp.zeros(8).at[batch["label"]]
        found = {name: Mean(rows.set(value), jnp.float32(1)) for name, value in drawn.items()}
        return params["w"] * jnp.zeros(len(batch["label"])), found

    player = Player(Network(lambda key: {"w": jnp.float32(0.0)}, None), loss)
    objective = Objective(
        players={"first": player, "second": player},
        followers={},
        sample=None,
        share=lambda networks, batch, key: {"x": draws(key, batch)},
        init_from={},
    )
    optimizers = dict.fromkeys(objective.players, SGD)
    drawn = []
    for seed in seeds:
        state = initial_state(objective, optimizers, seed, {})
        step = jax.jit(train_step(objective, optimizers, seed, micro_batches))
        for _ in range(2):
            state, metrics = step(state, {}, {"label": jnp.arange(8)})
            first, second = (metrics[f"{name}/shared"].total for name in objective.players)
            np.testing.assert_array_equal(first, second)
            own = (metrics[f"{name}/own"].total for name in objective.players)
            drawn += [first, *own]
    # No key is drawn twice: of two seeds, two steps, two players and shared arrays.
    assert len(np.unique(np.concatenate(drawn))) == len(seeds) * 2 * 3 * 8


def sharing_game(counts, every=1):
    """Both players read samples w x of `second`; `counts` counts how often they are computed."""

    def scaled(w, x):
        jax.debug.callback(lambda: counts.update(["made"]))
        return w * x

    def critic_loss(params, networks, batch, key, step):
        return 0.5 * (params["w"] - batch["shared"]["x"]) ** 2, {}

    def artist_loss(params, networks, batch, key, step):
        error = batch["shared"]["x"] - networks["first"]["w"]
        return 0.5 * error**2 + 0.5 * params["w"] ** 2, {}

    return Objective(
        players={
            "first": Player(Network(lambda key: {"w": jnp.float32(0.0)}, None), critic_loss),
            "second": Player(
                Network(lambda key: {"w": jnp.float32(5.0)}, None), artist_loss, every=every
            ),
        },
        followers={},
        sample=None,
        share=lambda networks, batch, key: {"x": scaled(networks["second"]["w"], batch["x"][:, 0])},
        init_from={},
    )


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_is_shared_is_made_once_and_pulls_the_gradient_back_to_who_made_it(micro_batches):
    counts = Counter()
    objective = sharing_game(counts, every=2)
    optimizers = dict.fromkeys(objective.players, SGD)
    state = initial_state(objective, optimizers, 0, {})
    step = jax.jit(train_step(objective, optimizers, 0, micro_batches))
    state, _ = step(state, {}, BATCH)
    # The samples are 5 and 15, whatever the first player has become.
    first = 0.0 - RATE * (0.0 - 10.0)
    second = 5.0 - RATE * (((5.0 - first) * 1.0 + (15.0 - first) * 3.0) / 2 + 5.0)
    assert float(state.networks["first"]["w"]) == pytest.approx(first)
    assert float(state.networks["second"]["w"]) == pytest.approx(second)
    for _ in range(3):
        state, _ = step(state, {}, BATCH)
    jax.effects_barrier()
    # Of four steps; in two parts each player makes its own, the second at every other step.
    assert counts["made"] == (4 if micro_batches == 1 else 12)
    fresh = float(state.networks["second"]["w"])
    third = float(state.networks["first"]["w"])
    state, _ = step(state._replace(step=jnp.int32(5)), {}, BATCH)
    assert float(state.networks["second"]["w"]) == fresh
    moved = third - RATE * (third - 2.0 * fresh)  # samples of the current network
    assert float(state.networks["first"]["w"]) == pytest.approx(moved)


COUNTER = lambda own, source, step: {"w": 1.0 + step.astype(jnp.float32)}
ADAM = {
    "name": "adam",
    "learning_rate": 0.1,
    "schedule": "linear",
    "warmup_steps": 0,
    "b1": 0.9,
    "b2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
}


def staged_game(*starts, every=1):
    """The game in stages, with followers that restart and followers that go on."""
    followers = {
        "held": Follower("second", keep_unchanged, restarts=True),
        "average": Follower("first", constant_ema(0.5), restarts=True),
        "lasting": Follower("first", constant_ema(0.5)),
        "counter": Follower("average", COUNTER, restarts=True),
        "counter of all": Follower("average", COUNTER),
    }
    stages = tuple(map(Stage, starts))
    return game(every)._replace(followers=followers, stages=stages)


def walk(objective, optimizers, steps):
    """All states from the initial one on, and the metrics of the steps between them."""
    states, logged = [initial_state(objective, optimizers, 0, FROZEN)], []
    step = jax.jit(train_step(objective, optimizers, 0))
    for _ in range(steps):
        state, metrics = step(states[-1], FROZEN, BATCH)
        states.append(state)
        logged.append(metrics)
    return states, logged


def test_a_stage_begins_with_new_optimizers_and_schedules_and_goes_on_from_the_players():
    starts, total = (0, 3, 7), 9
    objective = staged_game(*starts)
    optimizers = dict.fromkeys(
        objective.players, build_optimizer(**ADAM, updates=total, starts=starts)
    )
    states, logged = walk(objective, optimizers, total)
    rates = [float(metrics["second/learning_rate"].total) for metrics in logged]
    thirds, quarters = [0.1, 0.2 / 3, 0.1 / 3], [0.1, 0.075, 0.05, 0.025]
    assert rates == pytest.approx([*thirds, *quarters, 0.1, 0.05])
    for start, end in ((3, 7), (7, 9)):
        # A run of that stage alone, from the players and followers that the stage before left.
        alone = objective._replace(stages=(Stage(0),))
        own = dict.fromkeys(objective.players, build_optimizer(**ADAM, updates=end - start))
        fresh = {
            name: own[name].transform.init(params)
            for name, params in states[start].networks.items()
        }
        before = {**states[start].networks, **states[start].followers}
        followers = {
            name: before[follower.source] if follower.restarts else before[name]
            for name, follower in objective.followers.items()
        }
        state = states[start]._replace(optimizers=fresh, followers=followers)
        step = jax.jit(train_step(alone, own, 0))
        for number in range(start, end):
            state, _ = step(state, FROZEN, BATCH)
            chex.assert_trees_all_equal(state.networks, states[number + 1].networks)
            for name in ("held", "average", "lasting"):
                chex.assert_trees_all_equal(
                    state.followers[name], states[number + 1].followers[name]
                )


def test_a_follower_that_restarts_counts_from_there_and_one_that_holds_jumps():
    objective = staged_game(0, 3, 7)
    states, _ = walk(objective, dict.fromkeys(objective.players, SGD), 9)
    of = lambda name: [float(state.followers[name]["w"]) for state in states[1:]]
    assert of("counter") == [1, 2, 3, 1, 2, 3, 4, 1, 2]
    assert of("counter of all") == list(range(1, 10))
    second = [float(state.networks["second"]["w"]) for state in states]
    assert of("held") == [second[0]] * 3 + [second[3]] * 4 + [second[7]] * 2
    first = [float(state.networks["first"]["w"]) for state in states]
    assert of("average")[3] == pytest.approx(0.5 * (first[3] + first[4]))
    assert of("lasting")[3] != pytest.approx(of("average")[3], rel=1e-3)


def test_a_slow_player_s_stage_begins_with_its_first_update_in_it():
    # Updates at steps 0, 3, 6: the stage that begins at step 4 has the last alone.
    objective = staged_game(0, 4, every=3)
    rising = lambda n: jnp.where(n < 2, 1.0 + n, 10.0 * (n - 1.0))
    slow = Optimizer(optax.chain(optax.trace(0.9), optax.scale_by_schedule(rising)), rising)
    states, logged = walk(objective, {"first": slow, "second": SGD}, 7)
    rates = [m["first/learning_rate"] for m in logged]
    assert [float(r.total) for r in rates if r.count] == [1.0, 2.0, 10.0]
    counts = [int(optax.tree.get(s.optimizers["first"], "count")) for s in states]
    assert counts == [0, 1, 1, 1, 2, 2, 2, 3]
    of = [float(state.followers["counter"]["w"]) for state in states[1:]]
    assert of[:4] == [1, 1, 1, 2] and of[6] == 1
    before = states[6].networks["first"]["w"]
    trace = optax.tree.get(states[7].optimizers["first"], "trace")["w"]
    assert float(trace) == pytest.approx(float(before) - 2.0)  # of this gradient alone


def test_a_step_that_is_not_finite_does_not_begin_a_stage():
    objective = staged_game(0, 2)
    states, _ = walk(objective, dict.fromkeys(objective.players, SGD), 2)
    step = jax.jit(train_step(objective, dict.fromkeys(objective.players, SGD), 0))
    bad = {**BATCH, "x": jnp.full((2, 1), jnp.nan)}
    chex.assert_trees_all_equal(step(states[2], FROZEN, bad)[0], states[2])


def test_an_objective_of_one_stage_is_the_program_that_it_was():
    plain = game()
    marked = {name: f._replace(restarts=True) for name, f in plain.followers.items()}
    programs = {
        str(jax.make_jaxpr(train_step(objective, optimizers, 0))(*inputs))
        for objective in (plain, plain._replace(followers=marked))
        for optimizers in [dict.fromkeys(plain.players, SGD)]
        for inputs in [(initial_state(objective, optimizers, 0, FROZEN), FROZEN, BATCH)]
    }
    (program,) = programs
    assert "cond" not in program
