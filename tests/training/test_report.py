import numpy as np
import optax
import pytest

from fewstep.objectives.base import Mean, Objective, Player
from fewstep.training import report as module
from fewstep.training.metrics import LOG, read_rows
from fewstep.training.optimizer import Optimizer
from fewstep.training.packed import pack_metrics
from fewstep.training.report import (
    NonFiniteError,
    Report,
    SpikesError,
    check_finite,
    check_spikes,
    format_row,
    headlines,
    logged_evaluations,
)
from fewstep.training.schedule import Schedule


def packed(**totals):
    """Metrics of count 1, of a step or of several on a first axis."""
    return pack_metrics({name: Mean(x, np.ones_like(x)) for name, x in totals.items()})


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
    with Report(tmp_path, 0, Schedule(4, log=2), {}, batch_size=8) as report:
        for last in range(at_once, 5, at_once):
            steps = np.arange(last - at_once, last) + 1.0
            loss = steps[0] if at_once == 1 else steps
            report.after_steps(last, at_once, packed(loss=loss))
            clock[0] += at_once * (1.0 if last <= 2 else 4.0)
            if last == 2:
                report.flush(last)
        report.flush(4)
    # Two steps of eight images in two seconds, and in eight.
    rows = read_rows(tmp_path / "metrics.jsonl")
    names = ("step", "loss", "images_per_second", "step_seconds", "step_seconds_max")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (2, 1.5, 8.0, 1.0, 1.0),
        (4, 3.5, 2.0, 4.0, 4.0),
    ]


@pytest.mark.parametrize(
    ("seconds", "line"),
    [(1.0, "about 3.5 minutes for 210 more steps, without evaluations\n"), (0.1, "")],
)
def test_the_time_to_the_end_is_said_once_unless_it_is_short(
    tmp_path, monkeypatch, capsys, seconds, line
):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    with Report(tmp_path, 0, Schedule(221, log=0), {}, batch_size=8) as report:
        for step in range(1, 20):
            clock[0] += 30.0 if step == 1 else seconds
            report.handle(step, {"loss": Mean(1.0, 1)}, report.pace.step_times(1, 0.0))
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("finished", [False, True])
def test_whether_a_row_goes_on_is_what_the_first_process_sees(tmp_path, monkeypatch, finished):
    monkeypatch.setattr(module, "first_process_says", lambda here: finished)
    unfinished = {"sums": {"loss": (3.0, 2.0)}, "images": 16, "seconds": 2.0}
    with Report(tmp_path, 2, Schedule(4, log=4), {}, batch_size=8, unfinished=unfinished) as report:
        assert bool(report.unfinished_row()["sums"]) != finished
        assert report.unfinished_row()["images"] == (0 if finished else 16)


def test_a_row_of_the_players_losses_is_no_evaluation(tmp_path):
    with Report(tmp_path, 0, Schedule(4, log=1), {}, batch_size=8) as report:
        report.write(2, {"generator/loss": 1.0, "fake_score/loss": 2.0})
        assert not report.has_evaluation(2)
        report.log_evaluation(4, {})  # features none
        report.log_evaluation(2, {"frechet_1": 3.0})
        assert report.has_evaluation(2) and not report.has_evaluation(4)
    assert logged_evaluations(tmp_path) == {2: {"frechet_1": 3.0}}
    assert [row["step"] for row in read_rows(tmp_path / LOG)] == [2, 2]


def test_as_many_spikes_as_the_cap_are_allowed():
    one = {"network": Optimizer(None, None, spike_factor=6.0, spike_cap=2)}
    check_spikes(7, {"skipped": Mean(2, 1)}, one)
    check_spikes(7, {"loss": Mean(1, 1)}, one)
    with pytest.raises(SpikesError, match="network has skipped 3 updates at step 7"):
        check_spikes(7, {"skipped": Mean(3, 1)}, one)
    two = {**one, "fake_score": one["network"]}
    with pytest.raises(SpikesError, match="fake_score has skipped 3"):
        check_spikes(7, {"skipped": Mean(1, 1), "fake_score/skipped": Mean(3, 1)}, two)


def test_a_value_that_is_not_finite_ends_the_run_and_is_named():
    metrics = {"a/finite": Mean(1.0, 1.0), "b/finite": Mean(0.0, 0.0)}  # b was not updated
    check_finite(3, metrics)
    bad = {
        **metrics,
        "a/finite": Mean(0.0, 1.0),
        "a/loss": Mean(np.inf, 1.0),
        "a/x": Mean(1.0, 1.0),
    }
    with pytest.raises(NonFiniteError, match="of a is not finite at step 3") as error:
        check_finite(3, bad)
    assert (error.value.step, error.value.values) == (3, {"a/loss": np.inf})
    with pytest.raises(NonFiniteError, match="loss or gradient of the network is not"):
        check_finite(3, {"finite": Mean(0.0, 1.0), "loss": Mean(np.nan, 1.0)})
    with pytest.raises(NonFiniteError, match="parameters or optimizer state of the network after"):
        check_finite(3, {"finite": Mean(0.0, 1.0), "loss": Mean(2.0, 1.0)})


def test_a_line_has_the_headlines_the_speed_and_what_is_left(monkeypatch, tmp_path, capsys):
    shown = {"generator/gap": 1.5, "fake_score/loss": 2.25}
    row = {"images_per_second": 1234.4, "step_seconds": 2.0, "step_seconds_max": 50.0}
    said = "step 100 of 2000, generator/gap 1.5000, fake_score/loss 2.2500, 1,234 images/s, "
    assert format_row(100, 2000, shown, row, 8) == said + "1:03:20 left"
    older = {"images_per_second": 4.0}  # whose steps were not recorded
    assert format_row(1, 11, {}, older, 8) == "step 1 of 11, 4 images/s, 00:20 left"
    monkeypatch.setattr(module, "shows_bars", lambda: True)
    with Report(tmp_path, 0, Schedule(1, log=1), {}, batch_size=8) as report:
        report.after_steps(1, 1, packed(loss=1.0))
        report.flush(1)
    assert "images/s" not in capsys.readouterr().err  # the bar says it


def test_the_headline_of_every_player_is_shown_and_all_else_logged(tmp_path, capsys):
    players = {
        "fake_score": Player(None, None),
        "generator": Player(None, None, every=2, headline="gap"),
    }
    one = Objective({"network": players["generator"]}, {}, None)
    assert headlines(one) == ("gap",)
    shown = headlines(one._replace(players=players))
    assert shown == ("fake_score/loss", "generator/gap")
    metrics = {"fake_score/loss": 2.0, "generator/loss": 1.0, "generator/gap": 0.25}
    with Report(tmp_path, 0, Schedule(2, log=1), {}, batch_size=8, headlines=shown) as report:
        report.after_steps(1, 1, packed(**metrics))
        metrics.pop("generator/gap")  # in a row without an update of the generator
        report.after_steps(2, 1, packed(**metrics))
        report.flush(2)
        assert report.bar.postfix == "fake_score/loss 2.0000"
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 1 of 2, fake_score/loss 2.0000, generator/gap 0.2500, ")
    assert second.startswith("step 2 of 2, fake_score/loss 2.0000, ") and "gap" not in second
    assert read_rows(tmp_path / LOG)[0].items() >= {**metrics, "generator/gap": 0.25}.items()


def test_steps_one_by_one_and_several_at_once_make_the_same_rows(tmp_path, capsys):
    losses = np.arange(1.0, 7.0)
    for name, parts in (("one", [1] * 6), ("several", [1, 3, 2])):
        (tmp_path / name).mkdir()
        with Report(tmp_path / name, 0, Schedule(6, log=2), {}, batch_size=8) as report:
            done = 0
            for count in parts:
                values = losses[done : done + count]
                total = values if count > 1 else values[0]
                done += count
                report.after_steps(done, count, packed(loss=total))
            report.flush(done)
    said = capsys.readouterr().err.splitlines()  # which is no terminal
    for line, step in zip(said, (2, 4, 6, 2, 4, 6), strict=True):
        assert line.startswith(f"step {step} of 6, loss {step - 0.5:.4f}, ")
    rows = [
        [(row["step"], row["loss"]) for row in read_rows(tmp_path / name / LOG)]
        for name in ("one", "several")
    ]
    assert rows[0] == rows[1] == [(2, 1.5), (4, 3.5), (6, 5.5)]
