"""The headline of each player exists."""

import jax
import jax.numpy as jnp
import pytest

from fewstep.objectives.base import SHARED
from tests.objectives.assembled import CASES, KEY, assemble, objective_batch


@pytest.mark.parametrize("name", CASES)
def test_the_headline_of_every_player_is_the_loss_or_a_metric_of_it(name):
    case = assemble(name)
    objective, networks, batch = case.objective, case.networks, objective_batch(case.objective)

    def metrics_of(player):
        def step(networks):
            shared = {SHARED: objective.share(networks, batch, KEY)} if objective.share else {}
            loss = objective.players[player].loss
            return loss(networks[player], networks, {**batch, **shared}, KEY, jnp.int32(0))[1]

        return jax.eval_shape(step, networks)

    for player, own in objective.players.items():
        assert own.headline in {"loss", *metrics_of(player)}


def test_a_loss_that_says_nothing_is_no_headline():
    shown = {
        name: [player.headline for player in assemble(name).objective.players.values()]
        for name in ("denoising", "continuous_training", "distribution_matching")
    }
    assert shown == {
        "denoising": ["loss"],
        "continuous_training": ["tangent"],
        "distribution_matching": ["loss", "gap"],
    }
