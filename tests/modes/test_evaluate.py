"""A run is evaluated by its own config, or by the `evaluate` fields of another one."""

from importlib import import_module

import pytest

from fewstep.modes.recorded_run import LoadedRun
from fewstep.modes.request import Request
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import workdir
from tests.training.runs import small_config, small_experiment

EVALUATE = import_module("fewstep.modes.evaluate_run")


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """A function: fields of a request -> the `evaluate` fields and the data set that were used."""
    config, experiment = small_experiment(seed=5, **{"evaluate.steps": (1,), "data.dir": "own"})
    mesh, seen = make_mesh(), {}

    def load_run(request):
        seen["request"] = request
        return LoadedRun(config, experiment, mesh, "parameters", 30)

    def evaluator(*given, writable, samples, out, show):
        seen["given"] = (*given, writable)
        seen["out"], seen["samples"] = out, samples
        return lambda params, step: seen.update(params=params, step=step) or show("results")

    for name, stands_in in {
        "load_run": load_run,
        "find_dataset": lambda config, experiment, writable: f"{config.data.dir}, {writable}",
        "check_moved_data": lambda *given: None,
        "check_evaluation": lambda *given: seen.update(checked=given),
        "evaluator": evaluator,
        "summary": lambda results: seen.update(shown=results),
    }.items():
        monkeypatch.setattr(EVALUATE, name, stands_in)

    def evaluate(**fields):
        request = Request(workdir=tmp_path, **fields)
        EVALUATE.evaluate_run(request)
        own_experiment, dataset, used, own_mesh, folder, writable = seen["given"]
        assert (own_experiment, own_mesh, folder) == (experiment, mesh, tmp_path)
        assert seen["checked"] == (experiment, dataset, used, mesh)
        assert (seen["request"], seen["params"], seen["step"]) == (request, "parameters", 30)
        assert seen["shown"] == "results" and used.seed == 5
        assert dataset.endswith(f", {writable}")
        return used.evaluate, dataset

    return evaluate


def test_its_own_config_is_used_where_no_other_is_given(evaluate):
    fields, dataset = evaluate(config=None)
    assert (fields.steps, dataset) == ((1,), "own, False")


def test_another_config_says_how_to_evaluate_and_where_data_lie(evaluate):
    other = small_config(
        seed=6, **{"evaluate.steps": (2, 4), "evaluate.reference": "all", "data.dir": "elsewhere"}
    )
    fields, dataset = evaluate(config=other)
    assert (fields, dataset) == (other.evaluate, "elsewhere, True")


def test_fields_without_a_config_replace_those_of_the_run(evaluate):
    fields, dataset = evaluate(fields={"evaluate.steps": (8,), "evaluate.guidance_scale": 2.0})
    assert (fields.steps, fields.guidance_scale, dataset) == ((8,), 2.0, "own, False")
    fields, dataset = evaluate(fields={"data.dir": "elsewhere"})
    assert (fields.steps, dataset) == ((1,), "elsewhere, True")


def test_a_field_out_of_range_is_refused(evaluate):
    with pytest.raises(ValueError, match="evaluate.num_samples=0 must be"):
        evaluate(fields={"evaluate.num_samples": 0})


def test_a_config_of_another_method_is_refused_before_the_run_is_loaded(tmp_path):
    workdir.start_run(tmp_path / "run", small_config("edm"))
    request = Request(config=small_config("cd"), workdir=tmp_path / "run")
    with pytest.raises(
        ValueError, match="--config is of cd, but .*/run is a run of edm; leave out"
    ):
        EVALUATE.evaluate_run(request)


def test_results_that_cannot_be_written_are_refused_before_the_run_is_evaluated(evaluate, tmp_path):
    (tmp_path / "eval").write_text("no folder")
    with pytest.raises(
        OSError, match="eval cannot be written to .*; choose another folder by --out"
    ):
        evaluate(config=None)
    evaluate(config=None, out=tmp_path / "else" / "where")


def test_nothing_to_evaluate_is_refused(evaluate):
    with pytest.raises(ValueError, match="evaluate.steps="):
        evaluate(config=small_config(**{"evaluate.steps": ()}))


def test_numbers_of_steps_of_other_stages_alone_are_refused_before_compute(monkeypatch, tmp_path):
    fields = {"evaluate.steps": (1, 2), "objective.max_steps": 8, "steps": 40}
    config, experiment = small_experiment("progressive", **fields)
    run = lambda done: lambda request: LoadedRun(config, experiment, make_mesh(), None, done)
    monkeypatch.setattr(EVALUATE, "find_dataset", None)
    for done, stage in ((10, "1 of 4 (8"), (11, "2 of 4 (4")):
        monkeypatch.setattr(EVALUATE, "load_run", run(done))
        with pytest.raises(ValueError) as error:
            EVALUATE.evaluate_run(Request(workdir=tmp_path, config=None))
        assert f"stage {stage} sampling steps), and cannot sample in 1, 2; " in str(error.value)
