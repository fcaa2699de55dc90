"""Every logger gets the rows of metrics.jsonl, also of a run that is resumed."""

import csv
import sys
from types import ModuleType

import pytest

from fewstep.training import loggers
from fewstep.training.loggers import LOGGERS, TABLE, check_loggers
from fewstep.training.metrics import MetricLog
from fewstep.training.storage.workdir import start_run
from tests.training.runs import small_config


class FakeRun:
    """What wandb.init returns, as far as it is used."""

    def __init__(self, fields):
        self.fields, self.rows, self.finished = fields, [], False

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb, which keeps its runs."""
    module = ModuleType("wandb")
    module.runs = []
    module.init = lambda **fields: module.runs.append(FakeRun(fields)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def write(folder, start, rows, to):
    log = MetricLog(folder, start, to)
    for step, values in rows:
        log.write(step, values)
    log.close()


def table(folder):
    with (folder / TABLE).open() as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_a_table_has_a_column_for_each_name_and_every_step_once(tmp_path):
    rows = [(1, {"loss": 0.5}), (2, {"loss": 0.25, "bad": float("nan")}), (3, {"evaluate/f_1": 2})]
    write(tmp_path, 0, [*rows, (4, {"loss": 1e-9})], ("csv",))
    expected = [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": "0.25"}]
    assert table(tmp_path) == [
        *expected,
        {"step": "3", "evaluate/f_1": "2"},
        {"step": "4", "loss": "1e-09"},
    ]
    write(tmp_path, 2, [(3, {"loss": 9})], ("csv",))
    assert table(tmp_path) == [*expected, {"step": "3", "loss": "9"}]
    (tmp_path / TABLE).unlink()  # a run that had no table gets all of its rows
    write(tmp_path, 3, [], ("csv",))
    assert table(tmp_path) == [*expected, {"step": "3", "loss": "9"}]


def test_a_run_of_wandb_has_our_id_and_all_rows(tmp_path, wandb):
    run = start_run(tmp_path / "mine", small_config())
    for start in (0, 1):  # started, and resumed
        write(tmp_path / "mine", start, [(start + 1, {"loss": 0.5})], ("wandb", "csv"))
    first, second = wandb.runs
    assert (first.rows, second.rows) == ([(1, {"loss": 0.5})], [(2, {"loss": 0.5})])
    assert first.fields == second.fields and first.finished and second.finished
    expected = {"name": "mine", "id": run.id, "project": "fewstep", "resume": "allow"}
    assert first.fields.items() >= expected.items()
    assert first.fields["config"]["method"] == "shortcut"
    assert not (tmp_path / "mine" / "tensorboard").exists()


def test_wandb_itself_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"MODE": "offline", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    start_run(tmp_path / "mine", small_config())
    write(tmp_path / "mine", 0, [(1, {"loss": 0.5}), (2, {"evaluate/recall_1": 0.25})], ("wandb",))
    (file,) = (tmp_path / "mine").rglob("*.wandb")
    content = file.read_bytes()
    assert b"loss" in content and b"evaluate/recall_1" in content and b"shortcut" in content


def test_a_logger_that_is_not_here_is_refused(monkeypatch, tmp_path):
    check_loggers(())
    with pytest.raises(ValueError, match="log.to='tensorbord' is not one of tensorboard, csv, wa"):
        check_loggers(("tensorbord",))
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="log.to=wandb needs the package wandb.*pip install wand"):
        check_loggers(LOGGERS)
    monkeypatch.undo()
    (tmp_path / "jogger").mkdir()  # a folder is no package
    monkeypatch.syspath_prepend(tmp_path)
    assert loggers.is_installed("tqdm") and not loggers.is_installed("jogger")
