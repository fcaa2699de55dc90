import json

import numpy as np

from objectives.base import Mean
from training import metrics
from training.metrics import Average, MetricLog, read_rows


def test_average_divides_sums_and_leaves_out_what_was_never_counted():
    average = Average()
    average.add({"a": Mean(np.float32(3), np.float32(1)), "b": Mean(np.float32(0), np.float32(0))})
    average.add({"a": Mean(np.float32(1), np.float32(3)), "b": Mean(np.float32(0), np.float32(0))})
    assert average.pop() == {"a": 1.0}
    assert average.pop() == {}


def test_a_resumed_log_has_every_step_once(tmp_path):
    log = MetricLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2, "bad": float("nan")})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    log = MetricLog(tmp_path, 2)
    log.write(3, {"loss": 9.0})
    log.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_of_a_running_count_a_row_has_the_last():
    average = Average()
    for skipped, count in ((3, 1), (4, 1), (0, 0)):  # the player was not updated at the last step
        average.add({"fake_score/skipped": Mean(skipped, count), "loss": Mean(skipped, 1)})
    assert average.pop() == {"fake_score/skipped": 4.0, "loss": 7.0 / 3.0}


def test_events_after_the_step_that_a_log_is_opened_at_are_dropped(tmp_path, monkeypatch):
    writers = []
    monkeypatch.setattr(metrics, "SummaryWriter", lambda *a, **how: writers.append((a, how)))
    MetricLog(tmp_path, 6).file.close()
    assert writers == [((str(tmp_path / "tensorboard"),), {"purge_step": 7})]
