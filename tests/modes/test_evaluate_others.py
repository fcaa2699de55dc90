import jax
import pytest

from fewstep.modes import evaluate_run as module
from fewstep.modes.evaluate_run import evaluate_run
from fewstep.modes.recorded_run import LoadedRun
from fewstep.modes.request import Request
from fewstep.training.sharding import make_mesh
from fewstep.training.storage.workdir import start_run
from tests.training.runs import small_config, small_experiment

FIELDS = {
    "data.name": "digits",
    "evaluate.steps": (1,),
    "evaluate.num_samples": 16,
    "evaluate.batch_size": 16,
}


@pytest.mark.parametrize("given", [False, True])
def test_only_the_command_line_says_where_an_evaluation_writes(given, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "own"))
    recorded, asked = ({"data.dir": str(tmp_path / name)} for name in ("recorded", "asked"))
    config, experiment = small_experiment(**FIELDS, **recorded)
    params = experiment.model.network.init(jax.random.key(0))
    run = LoadedRun(config, experiment, make_mesh(), params, 7)
    monkeypatch.setattr(module, "load_run", lambda request: run)
    read, decoded = module.find_dataset, []

    def find_dataset(*arguments, writable):
        decoded.append(writable)
        return read(*arguments, writable)

    monkeypatch.setattr(module, "find_dataset", find_dataset)
    start_run(tmp_path / "run", config)
    evaluate_run(Request(small_config(**FIELDS, **asked) if given else None, tmp_path / "run"))
    assert (tmp_path / ("asked" if given else "own") / "references").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked" if given else "own", "run"]
    assert decoded == [given]
