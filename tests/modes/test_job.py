"""What a job is checked for before anything is computed."""

import pytest

from fewstep.modes.checks import inspect_earlier_run
from fewstep.modes.job import draft_job, warn_of_zero_rates
from fewstep.modes.next_job import NextJob
from fewstep.modes.request import Request
from fewstep.modes.train_run import train_run
from fewstep.training.storage.identity import RUN
from tests.training.runs import save_run, small_config, small_experiment


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


def test_a_run_with_more_steps_than_it_is_asked_for_is_refused_and_keeps_its_record(tmp_path):
    folder = tmp_path / "run"
    save_run(folder, "flow_matching", steps=(5,))
    before = (folder / RUN).read_bytes()
    config = small_config("flow_matching", steps=3)
    message = r"run is at step 5, beyond steps=3; choose another --workdir or set as many"
    with pytest.raises(ValueError, match=message):
        train_run(Request(config=config, workdir=folder))
    assert (folder / RUN).read_bytes() == before
    with pytest.raises(ValueError, match=message):
        inspect_earlier_run(NextJob(Request(config=config, workdir=folder)))


def test_steps_that_are_left_open_are_chosen(tmp_path):
    config = small_config("flow_matching")
    with config.ignore_type():
        config.steps = None
    assert draft_job(tmp_path / "new", config).config.steps > 0
