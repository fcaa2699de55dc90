"""Records the network calls and random draws of a training step of an assembled objective.

Nothing is compiled, so that the values of keys can be read.
"""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fewstep.training.optimizer import Optimizer
from fewstep.training.step import train_step
from fewstep.training.storage.train_state import TrainState
from tests.objectives.assembled import (
    ModelPart,
    assemble,
    field_names,
    field_value,
    objective_batch,
)

SEED, STEP = 5, 30


class Call(NamedTuple):
    """One evaluation of a network.

    who: owner of the parameters. key: dropout key, b"" without dropout.
    """

    phase: str
    who: str
    train: bool
    key: bytes
    t: np.ndarray
    s: np.ndarray
    label: np.ndarray
    scale: np.ndarray | None

    @property
    def mode(self):
        return "trains" if self.train else "rests"


class Draw(NamedTuple):
    """One call of a function of jax.random."""

    phase: str
    function: str
    key: bytes
    values: np.ndarray


class Record:
    """The calls and draws of a step, in their order."""

    def __init__(self):
        self.phase, self.names = "", []
        self.calls, self.draws, self.times = {}, [], {}
        self.parents, self.children = set(), []  # keys that are split or folded, and their results

    def record_network(self, network):
        """The network with its calls recorded; params["who"] is an index in names."""

        def recorded(function, params, x, t, s, condition, *names, train=False, rng=None):
            if "who" not in params:  # its shapes alone are asked for
                return function(params, x, t, s, condition, *names, train=train, rng=rng)
            phase, index = self.phase, len(self.calls)
            self.calls[index] = None

            def note(who, key, t, s, condition):
                self.calls[index] = Call(
                    phase,
                    self.names[int(who)],
                    train,
                    np.asarray(key).tobytes(),
                    np.asarray(t),
                    np.asarray(s),
                    np.asarray(condition["label"]),
                    condition.get("guidance_scale"),
                )

            key = () if rng is None else jax.random.key_data(rng)
            jax.debug.callback(note, params["who"], key, t, s, dict(condition))
            return function(params, x, t, s, condition, *names, train=train, rng=rng)

        apply, features = (partial(recorded, f) for f in (network.apply, network.features))
        return network._replace(apply=apply, features=features)

    def record_phase(self, phase, function):
        """The function; records during its calls belong to that phase."""

        def run(*args):
            self.phase = phase
            return function(*args)

        return run

    def record_times(self, field, sampler):
        """The sampler with its last draw recorded."""

        def sample(key, count):
            self.times[field] = sampler(key, count)
            return self.times[field]

        return sample

    def watch_random_numbers(self, monkeypatch):
        """Records the draws from each key, and the keys that are split or folded."""
        for name, function in vars(jax.random).copy().items():
            if inspect.isfunction(function) and "key" in inspect.signature(function).parameters:
                monkeypatch.setattr(jax.random, name, self.record_draw(name, function))

    def record_draw(self, name, function):
        def draw(key, *args, **kwargs):
            values = function(key, *args, **kwargs)
            if isinstance(values, jax.core.Tracer):  # of a loop, whose keys were split before
                return values
            data = np.asarray(jax.random.key_data(key)).tobytes()
            if name in ("split", "fold_in"):
                self.parents.add(data)
                made = np.asarray(jax.random.key_data(values))
                self.children += [child.tobytes() for child in made.reshape(-1, made.shape[-1])]
            else:
                self.draws.append(Draw(self.phase, name, data, np.asarray(values)))
            return values

        return draw


class Step(NamedTuple):
    """A training step and its record. before, after: parameters of players."""

    case: Any
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    batch: Mapping[str, Any]
    calls: list[Call]
    record: Record


def take_step(name, monkeypatch, **fields):
    """One training step of a case, recorded. fields: as for `assemble`."""
    record = Record()
    # A period of 1, because any other makes a branch, which is compiled.
    changed = {"fake_score_updates": 1} if "fake_score_updates" in field_names(name) else {}
    for field in ("time_sampler", "fake_time_sampler"):
        if field in field_names(name) and field_value(name, field):
            own = field_value(name, field)
            changed[field] = ModelPart(
                lambda m, own=own, f=field: record.record_times(f, own.build(m))
            )
    case = assemble(name, record.record_network, **changed, **fields)
    objective = case.objective
    record.names = list(case.networks)
    networks = {
        who: {**params, "who": jnp.float32(record.names.index(who))}
        for who, params in case.networks.items()
    }
    players = {
        player: entry._replace(loss=record.record_phase(player, entry.loss))
        for player, entry in objective.players.items()
    }
    share = objective.share and record.record_phase("share", objective.share)
    descent = Optimizer(optax.sgd(1.0), lambda step: 1.0)
    optimizers = dict.fromkeys(players, descent)
    state = TrainState(
        jnp.int32(STEP),
        {player: networks[player] for player in players},
        {follower: networks[follower] for follower in objective.followers},
        {player: descent.transform.init(networks[player]) for player in players},
    )
    batch = objective_batch(objective)
    step = train_step(objective._replace(players=players, share=share), optimizers, SEED)
    with monkeypatch.context() as patched:
        record.watch_random_numbers(patched)
        patched.setattr(jax.lax, "cond", lambda one, a, b, *given: (a if one else b)(*given))
        updated, _ = step(state, {name: networks[name] for name in objective.frozen}, batch)
    jax.effects_barrier()
    calls = [record.calls[i] for i in sorted(record.calls)]
    return Step(case, state.networks, updated.networks, batch, calls, record)
