"""What a job is checked for before anything is computed."""

import pytest

from fewstep.modes.job import warn_of_zero_rates
from tests.training.runs import small_experiment


@pytest.mark.parametrize(
    ("rate", "own", "still"),
    [
        (1e-3, {}, ""),
        (0.0, {"generator": {"learning_rate": 1e-3}}, "fake_score"),
        (0.0, {}, "fake_score and generator"),
    ],
)
def test_networks_that_do_not_learn_are_told(rate, own, still, capsys):
    config, experiment = small_experiment(
        "dmd", **{"optimizer.learning_rate": rate, "player_optimizers": own}
    )
    warn_of_zero_rates(config, experiment)
    expected = f"warning: learning_rate=0 leaves {still} as at the start\n" if still else ""
    assert capsys.readouterr().err == expected
