import numpy as np
import optax
import pytest

from objectives.base import Mean
from training import report as module
from training.metrics import read_rows
from training.optimizer import Optimizer
from training.report import Report, SpikesError, check_spikes, evaluations


def optimizer(cap):
    return Optimizer(optax.identity(), optax.constant_schedule(0.1), 3.0, cap)


def test_each_player_may_skip_as_many_updates_as_its_own_cap():
    two = {"generator": optimizer(5), "fake_score": optimizer(2)}
    skipped = {"generator/skipped": Mean(5, 1), "fake_score/skipped": Mean(2, 1)}
    check_spikes(7, skipped, two)
    check_spikes(7, {"skipped": Mean(4, 1)}, {"network": optimizer(4)})
    for player, count in (("generator", 6), ("fake_score", 3)):
        with pytest.raises(SpikesError, match=f"{player} has skipped {count} updates at step 7"):
            check_spikes(7, {**skipped, f"{player}/skipped": Mean(count, 1)}, two)
    with pytest.raises(SpikesError, match="network has skipped 5"):
        check_spikes(7, {"skipped": Mean(5, 1)}, {"network": optimizer(4)})


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_row_has_the_mean_and_the_speed_of_its_own_steps(tmp_path, monkeypatch, at_once):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    with Report(tmp_path, 0, 4, 8, 2, {}) as report:
        for last in range(at_once, 5, at_once):
            steps = np.arange(last - at_once, last) + 1.0
            loss = steps[0] if at_once == 1 else steps
            report.after_steps(last, at_once, {"loss": Mean(loss, np.ones_like(loss))})
            clock[0] += at_once * (1.0 if last <= 2 else 4.0)
            if last == 2:
                report.flush(last)
        report.flush(4)
    # Two steps of eight images in two seconds, and in eight.
    assert read_rows(tmp_path / "metrics.jsonl") == [
        {"step": 2, "loss": 1.5, "images_per_second": 8.0},
        {"step": 4, "loss": 3.5, "images_per_second": 2.0},
    ]


def test_a_row_of_the_players_losses_is_no_evaluation(tmp_path):
    with Report(tmp_path, 0, 4, 8, 1, {}) as report:
        report.write(2, {"generator/loss": 1.0, "fake_score/loss": 2.0})
        assert not report.evaluated(2)
        report.evaluation(2, {"frechet_1": 3.0})
        assert report.evaluated(2) and not report.evaluated(4)
    assert evaluations(tmp_path) == {2: {"frechet_1": 3.0}}
