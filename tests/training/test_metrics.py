import errno
import json

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from fewstep.objectives.base import Mean, mean_metric
from fewstep.training import metrics
from fewstep.training.cost.step_cost import training_seconds
from fewstep.training.loggers import EVENTS
from fewstep.training.metrics import MetricLog, MetricMeans, read_rows
from fewstep.training.report import logged_evaluations

GOOD = [{"step": step, "loss": step / 2, "images_per_second": 8.0} for step in (1, 2, 3, 4)]
UNREADABLE = (
    b'{"step": 2, "los\xff": 1.0}',
    b'{"step": 2, "loss": 1.0',
    b'{"step": 2 "loss": 1.0}',
    b"\0\0\0\0",
    b"[1, 2]",
    b"3",
    b"null",
    b'"text"',
    b"{}",
    b'{"loss": 1.0}',
    b'{"step": "2", "loss": 1.0}',
    b'{"step": 2.5, "loss": 1.0}',
    b'{"step": true, "loss": 1.0}',
    b'{"step": -1, "loss": 1.0}',
    b'{"step": 1' + b"0" * 400 + b"}",
    b'{"step": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b"# the rate was halved here",
)
# Values that are left out, while the rest of their row is read.
NO_NUMBERS = ('"high"', "null", "true", "[1]", "{}", "NaN", "Infinity", "1" + "0" * 400)


def test_average_divides_sums_and_leaves_out_what_was_never_counted():
    average = MetricMeans()
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
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3
    log = MetricLog(tmp_path, 2)
    log.write(3, {"loss": 9.0})
    log.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert list((tmp_path / "tensorboard").glob("events*"))
    # Nothing is deleted.
    dropped = (tmp_path / "metrics.dropped.jsonl").read_text()
    assert dropped == '{"step": 3, "loss": 1.5}\n{"step": 4, "lo\n'


def test_a_row_has_the_last_value_of_a_running_count():
    average = MetricMeans()
    for skipped, count in ((3, 1), (4, 1), (0, 0)):  # the player was not updated at the last step
        average.add({"fake_score/skipped": Mean(skipped, count), "loss": Mean(skipped, 1)})
    assert average.pop() == {"fake_score/skipped": 4.0, "loss": 7.0 / 3.0}


def log_with(folder, line):
    """Path of a log with `line` between its second row and its third."""
    lines = [json.dumps(row).encode() for row in GOOD]
    path = folder / "metrics.jsonl"
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n")
    return path


@pytest.mark.parametrize("line", UNREADABLE)
def test_a_line_that_cannot_be_read_is_named_once_and_stays(tmp_path, capsys, line):
    path = log_with(tmp_path, line)
    for _ in range(2):
        assert read_rows(path) == GOOD
        assert logged_evaluations(tmp_path) == {}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"warning: {path}:3 has no integer step")
    log = MetricLog(tmp_path, 3)
    log.write(4, {"loss": 9.0})
    log.close()
    assert read_rows(path) == [*GOOD[:3], {"step": 4, "loss": 9.0}]
    assert path.read_bytes().split(b"\n")[2] == line
    assert json.loads((tmp_path / "metrics.dropped.jsonl").read_bytes()) == GOOD[3]
    assert {p.name for p in tmp_path.iterdir()} == {path.name, metrics.DROPPED, EVENTS}


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", bytes(4096), b"\xef\xbb\xbf  "])
@pytest.mark.parametrize("after", [b"", b"\r", bytes(9)])
def test_what_editors_and_power_losses_put_around_a_row_hides_none(tmp_path, capsys, before, after):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(before + json.dumps(GOOD[0]).encode() + after + b"\n")
    assert read_rows(path) == GOOD[:1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_value_that_is_no_number_is_left_out_and_its_line_named_once(tmp_path, capsys, value):
    text = f'{{"step": 2, "evaluate/frechet_1": {value}, "evaluate/frechet_4": 2}}'
    path = log_with(tmp_path, text.encode())
    assert read_rows(path)[2] == {"step": 2, "evaluate/frechet_4": 2}
    assert logged_evaluations(tmp_path) == {2: {"frechet_4": 2}}
    assert training_seconds(read_rows(path), 4, batch_size=2) == 1.0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"warning: {path}:3 has a value that is not a finite number")


def test_a_log_that_loses_nothing_is_not_written_again(tmp_path):
    path = log_with(tmp_path, b"no row")
    before = path.stat()
    MetricLog(tmp_path, 4).close()
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    assert not (tmp_path / metrics.DROPPED).exists()


def test_a_last_row_without_its_end_is_a_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(GOOD[0]).encode())
    log = MetricLog(tmp_path, 3)
    log.write(4, {"loss": 2.0})
    log.close()
    assert read_rows(path) == [GOOD[0], {"step": 4, "loss": 2.0}]


def test_a_kill_while_a_log_is_written_again_leaves_the_old_one(tmp_path, monkeypatch):
    path = log_with(tmp_path, b"no row")
    before = path.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.files.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        MetricLog(tmp_path, 2)
    assert path.read_bytes() == before


def test_an_editor_that_puts_another_file_in_the_log_s_place_loses_no_row(tmp_path):
    log = MetricLog(tmp_path, 0)
    log.write(1, {"loss": 0.5})
    edited = tmp_path / "edited"
    edited.write_bytes((tmp_path / "metrics.jsonl").read_bytes() + b"# so far so good\n")
    edited.replace(tmp_path / "metrics.jsonl")
    log.write(2, {"loss": 1.0})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 1, "loss": 0.5}', "# so far so good", '{"step": 2, "loss": 1.0}']


def test_an_average_goes_on_from_what_was_pending():
    whole, cut = MetricMeans(), MetricMeans()
    for i in range(7):
        row = {"a": Mean(np.float32(0.1 * i), np.float32(i)), "skipped": Mean(np.int32(i), 1.0)}
        whole.add(row)
        cut.add(row)
        cut = MetricMeans(json.loads(json.dumps(cut.pending())))
    assert whole.pop() == cut.pop()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_once_and_the_log_stays_whole(tmp_path, monkeypatch):
    log = MetricLog(tmp_path, 0)
    log.write(1, {"loss": 0.5})
    with monkeypatch.context() as patched:
        patched.setattr(metrics, "append", full)
        with pytest.raises(OSError, match=r"^\S*/metrics.jsonl could not be written \(No space"):
            log.write(2, {"loss": 1.0})
    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError, match=r"^\S*/tensorboard could not be written \(No space"):
        log.write(3, {"loss": 1.0})
    monkeypatch.setattr(RecordWriter, "flush", full)
    log.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 3]


def test_tensorboard_knows_where_a_run_goes_on(tmp_path):
    log = MetricLog(tmp_path, 7)
    log.write(8, {"loss": 0.5, "gradient_norm": 2.0})
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    _, start, *values = map(Event.FromString, records(path.read_bytes()))
    assert start.session_log.status == SessionLog.START and start.step == 8
    found = {event.summary.value[0].tag: event.summary.value[0].simple_value for event in values}
    assert found == {"loss": 0.5, "gradient_norm": 2.0}
    assert all(event.step == 8 and event.wall_time > 1e9 for event in values)


def records(content):
    """The records of a TFRecord file: length, its checksum, content, its checksum."""
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        yield content[12:end]
        content = content[end + 4 :]


def test_the_mean_of_an_array_is_its_sum_over_its_size():
    average = MetricMeans()
    for values in (np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([13.0])):
        average.add({"a": mean_metric(values)})
    assert average.pop() == {"a": 5.0}
