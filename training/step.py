"""The training step of every method: begin a stage if one is due, update players, then followers.

Random numbers are a function of (seed, step, player, micro-batch), drawn at the global shape inside
jit. So one device and eight draw the same ones, and a resumed run draws those of an uninterrupted
one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from fewstep.objectives.base import (
    SHARED,
    Batch,
    Follower,
    Mean,
    Metrics,
    Objective,
    Params,
    Player,
)
from fewstep.objectives.stages import Stage, begins_stage, stage_start
from fewstep.training.gradient import Gradient, micro_batch, player_gradient
from fewstep.training.optimizer import Optimizer, restart_optimizer
from fewstep.training.state import named_key
from fewstep.training.storage.train_state import TrainState

TrainStep = Callable[[TrainState, Mapping[str, Params], Batch], tuple[TrainState, Metrics]]
# (parameters, optimizer state) -> the same after one update, and metrics
Update = Callable[[Params, Any], tuple[Params, Any, Metrics]]
# a player's gradient -> metrics
Observe = Callable[[Params], Metrics]

NO_METRICS: Observe = lambda grads: {}


def train_step(
    objective: Objective,
    optimizers: Mapping[str, Optimizer],
    seed: int,
    micro_batches: int = 1,
    observe: Observe = NO_METRICS,
) -> TrainStep:
    """The pure function (state, frozen, batch) -> (state, metrics); jit it with the state donated.

    micro_batches: parts of the batch whose gradients are averaged, one part in memory at a time.
    Shared arrays are then evaluated again for each player, from the same keys: keeping them would
    keep the activations of all parts.
    observe: a player's gradient -> metrics, added to the player's.

    If a loss, a gradient or an updated state is not finite, the step returns the whole state
    unchanged, its step number included. The metric `finite` (`PLAYER/finite` if there are several
    players) is then below 1.
    """

    def step(
        state: TrainState, frozen: Mapping[str, Params], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        started = begin_stage(objective, optimizers, state)
        networks, followers = dict(started.networks), dict(started.followers)
        opt_states, metrics = dict(state.optimizers), {}
        part = micro_batch(objective, state.networks, batch, named_key(key, SHARED), micro_batches)
        for name, player in objective.players.items():
            others = {**frozen, **followers, **networks}
            gradient = player_gradient(
                objective, name, others, part, named_key(key, name), state.step, micro_batches
            )
            update = player_update(player, optimizers[name], gradient, state.step, observe)
            networks[name], opt_states[name], metrics[name] = update_if_due(
                player.every, state.step, update, networks[name], started.optimizers[name]
            )
        for name, follower in objective.followers.items():
            source = {**networks, **followers}[follower.source]
            period = objective.players[root_player(objective, name)].every
            followers[name] = update_follower(
                period, state.step, follower, followers[name], source, objective.stages
            )
        updated = TrainState(state.step + 1, networks, followers, opt_states)
        metrics = {
            name: require_finite_state(own, player_state(objective, name, updated))
            for name, own in metrics.items()
        }
        return keep_if_finite(metrics, updated, state), flatten_metrics(metrics)

    return step


def begin_stage(
    objective: Objective, optimizers: Mapping[str, Optimizer], state: TrainState
) -> TrainState:
    """The state, with optimizers and followers restarted if this step begins a stage.

    Optimizers forget the past. Followers with `restarts` become copies of their sources as the
    stage before left them.
    """
    if len(objective.stages) == 1:
        return state

    def begin(state: TrainState) -> TrainState:
        sources = {**state.networks, **state.followers}
        return state._replace(
            followers={
                name: sources[follower.source] if follower.restarts else state.followers[name]
                for name, follower in objective.followers.items()
            },
            optimizers={
                name: restart_optimizer(
                    optimizers[name].transform,
                    player.part(state.networks[name]),
                    -(-state.step // player.every),
                )
                for name, player in objective.players.items()
            },
        )

    return jax.lax.cond(
        begins_stage(objective.stages, state.step), begin, lambda state: state, state
    )


def player_update(
    player: Player, optimizer: Optimizer, gradient: Gradient, step: Array, observe: Observe
) -> Update:
    """A function that makes one update of a player by its optimizer."""
    transform = optax.with_extra_args_support(optimizer.transform)

    def update(params: Params, opt_state: Any) -> tuple[Params, Any, Metrics]:
        loss, grads, metrics = gradient(params)
        norm = optax.tree.norm(grads)
        # Updates skipped as spikes since the run or its stage began; 0 without skip_spikes.
        skipped = optax.tree.get(opt_state, "skipped", 0)
        part = player.part(params)
        updates, opt_state = transform.update(grads, opt_state, part, value=loss)
        scalars = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": optimizer.learning_rate(step // player.every - skipped),
            "finite": jnp.isfinite(loss) & jnp.isfinite(norm),
        }
        if optimizer.spike_factor:
            scalars["skipped"] = optax.tree.get(opt_state, "skipped")
        once = {name: Mean(jnp.float32(value), jnp.float32(1)) for name, value in scalars.items()}
        metrics = {**metrics, **once, **observe(grads)}
        moved = player.whole(params, optax.apply_updates(part, updates))
        return moved, opt_state, metrics

    return update


def update_if_due(
    period: int, step: Array, update: Update, params: Params, opt_state: Any
) -> tuple[Params, Any, Metrics]:
    """`update` if step % period == 0; else nothing changes and every metric has count 0."""
    if period == 1:
        return update(params, opt_state)
    shapes = jax.eval_shape(update, params, opt_state)[2]
    empty = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    skip: Update = lambda params, opt_state: (params, opt_state, empty)
    return jax.lax.cond(step % period == 0, update, skip, params, opt_state)


def root_player(objective: Objective, name: str) -> str:
    """The player that a follower follows, directly or through other followers."""
    while name in objective.followers:
        name = objective.followers[name].source
    return name


def update_follower(
    period: int,
    step: Array,
    follower: Follower,
    own: Params,
    source: Params,
    stages: Sequence[Stage],
) -> Params:
    """A follower's parameters after a step; it moves at its player's updates, and counts them.

    period: steps between updates of the player. own: its parameters before the step. source: those
    of its source after the step.
    """

    def move(own: Params) -> Params:
        count = step if period == 1 else step // period
        if follower.restarts and len(stages) > 1:
            count += -stage_start(stages, step) // period  # minus the updates before its stage
        return follower.update(own, source, count)

    if period == 1:
        return move(own)
    return jax.lax.cond(step % period == 0, move, lambda own: own, own)


def player_state(objective: Objective, name: str, state: TrainState) -> list[Any]:
    """What a player's update changes: its parameters, optimizer state and followers."""
    followers = [own for f, own in state.followers.items() if root_player(objective, f) == name]
    return [state.networks[name], state.optimizers[name], *followers]


def require_finite_state(metrics: Metrics, updated: Any) -> Metrics:
    """A player's metrics; `finite` becomes 0 if its updated state is not finite."""
    finite = metrics["finite"]
    return {**metrics, "finite": finite._replace(total=finite.total * all_finite(updated))}


def all_finite(tree: Any) -> Array:
    """Whether all numbers of a tree are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def keep_if_finite(
    metrics: Mapping[str, Metrics], updated: TrainState, state: TrainState
) -> TrainState:
    """`updated` if every player that made an update is finite, else `state`."""
    finite = jnp.stack([m["finite"].total >= m["finite"].count for m in metrics.values()]).all()
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)


def column_name(metric: str, player: str, players: Collection[str]) -> str:
    """A metric's column in the log: METRIC, or PLAYER/METRIC if there are several players."""
    return metric if len(players) == 1 else f"{player}/{metric}"


def flatten_metrics(metrics: Mapping[str, Metrics]) -> Metrics:
    """Metrics of all players in one mapping, by their columns in the log."""
    return {
        column_name(name, player, metrics): m
        for player, ms in metrics.items()
        for name, m in ms.items()
    }
