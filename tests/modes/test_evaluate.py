"""A run is evaluated by its own config, or by the `evaluate` fields of another one."""

from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.modes.evaluate import evaluate as evaluate_mode
from fewstep.modes.recorded_run import LoadedRun, load_run
from fewstep.modes.request import Request
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import workdir
from tests.training.runs import save_run, small_config, small_experiment

EVALUATE = import_module("fewstep.modes.evaluate_run")


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """A function: fields of a request -> the `evaluate` fields and the data set that were used."""
    own = {"evaluate.steps": (1,), "data.dir": "own", "evaluate.weights": "/own.pth"}
    config, experiment = small_experiment(seed=5, **own, **{"evaluate.features": "inception"})
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
        assert seen["checked"] == (experiment, dataset, used, mesh, writable)
        assert (seen["request"], seen["params"], seen["step"]) == (request, "parameters", 30)
        assert seen["shown"] == "results" and used.seed == 5
        assert dataset.endswith(f", {writable}")
        return used.evaluate, dataset

    return evaluate


def test_an_open_number_of_rows_is_that_of_the_run(evaluate):
    own, _ = evaluate()
    other = small_config("edm", **{"evaluate.steps": (2,)})
    other.evaluate.batch_size = None
    used, _ = evaluate(config=other)
    assert used.batch_size == own.batch_size and used.steps == (2,)


def test_its_own_config_is_used_where_no_other_is_given(evaluate):
    fields, dataset = evaluate(config=None)
    assert (fields.steps, dataset) == ((1,), f"{Path('own').absolute()}, False")


def test_another_config_says_how_to_evaluate_and_where_data_lie(evaluate):
    other = small_config(
        seed=6, **{"evaluate.steps": (2, 4), "evaluate.reference": "all", "data.dir": "elsewhere"}
    )
    fields, dataset = evaluate(config=other)
    assert (fields, dataset) == (other.evaluate, f"{Path('elsewhere').absolute()}, True")


def test_fields_without_a_config_replace_those_of_the_run(evaluate):
    fields, dataset = evaluate(fields={"evaluate.steps": (8,), "evaluate.guidance_scale": 2.0})
    assert (fields.steps, fields.guidance_scale, dataset) == (
        (8,),
        2.0,
        f"{Path('own').absolute()}, False",
    )
    fields, dataset = evaluate(fields={"data.dir": "elsewhere"})
    assert (fields.steps, dataset) == ((1,), f"{Path('elsewhere').absolute()}, True")


def test_other_features_do_not_read_the_weights_of_the_run(evaluate):
    def used(**fields):
        asked = {f"evaluate.{name}": value for name, value in fields.items()}
        return evaluate(fields=asked)[0].weights

    assert used() == used(features="inception") == "/own.pth"
    assert used(features="pixels") == used(features="dinov2") == ""
    assert used(features="dinov2", weights="/d.pth") == "/d.pth"
    assert used(features="dinov2", weights="/own.pth") == "/own.pth"
    other = small_config(**{"evaluate.features": "dinov2", "evaluate.weights": "/file.pth"})
    assert evaluate(config=other, given=("evaluate.features",))[0].weights == "/file.pth"


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


def test_a_run_is_sampled_by_another_solver_with_its_own_defaults(tmp_path):
    churned = {"objective.solver.name": "churned_heun", "objective.solver.churn": 3.0}
    save_run(tmp_path / "run", "flow_matching", **churned)
    own, same, other = (
        load_run(Request(workdir=tmp_path / "run", solver=solver))
        for solver in ("", "churned_heun", "dpm_solver_2m")
    )
    assert same.config == own.config and own.config.objective.solver.churn == 3.0
    fields = other.config.objective.solver
    assert fields.name == "dpm_solver_2m" and not any({**fields, "name": ""}.values())
    trained = load_run(Request(workdir=tmp_path / "run")).config
    assert trained == own.config, "the record stays"
    eps = jax.random.normal(jax.random.key(0), (2, *own.experiment.space.shape))
    keys, condition = jax.random.split(jax.random.key(1), 2), {"label": jnp.zeros(2, jnp.int32)}

    def samples(run):
        params = run.params
        made = run.experiment.objective.sample
        return made(params, eps, condition, keys, steps=4, guidance_scale=1.0)

    first, second, third = map(samples, (own, same, other))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - third).max() > 1e-3


def test_a_solver_that_does_not_exist_or_has_no_use_is_refused(tmp_path):
    save_run(tmp_path / "run", "flow_matching")
    save_run(tmp_path / "jumps", "shortcut")
    with pytest.raises(ValueError, match="--solver='heum' is not one of .*did you mean 'heun'"):
        load_run(Request(workdir=tmp_path / "run", solver="heum"))
    with pytest.raises(ValueError, match="--solver=heun has no use: .*jumps is a run of shortcut"):
        load_run(Request(workdir=tmp_path / "jumps", solver="heun"))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("objective.solver.name", "heun", "for another solver use --solver$"),
        ("model.time_scale", 2.0, "replaces only evaluate, "),
    ],
)
def test_a_field_beside_a_config_that_would_change_nothing_is_refused(
    tmp_path, monkeypatch, field, value, words
):
    workdir.start_run(tmp_path / "run", small_config("flow_matching"))
    evaluated = []
    monkeypatch.setattr(import_module("fewstep.modes.evaluate"), "evaluate_run", evaluated.append)

    def ask(**given):
        config = small_config("flow_matching", **given)
        evaluate_mode(Request(workdir=tmp_path / "run", config=config, given=tuple(given)))

    ask(**{"evaluate.steps": (2,)})
    ask(**{"model.time_scale": small_config("flow_matching").model.time_scale})
    ask(**{"ema.decays": tuple(small_config("flow_matching").ema.decays)})
    ask(compilation_cache=str(tmp_path / "cache"))
    assert len(evaluated) == 4
    with pytest.raises(ValueError, match=f"--config.{field} would change nothing: .*{words}"):
        ask(**{field: value})
    other = small_config("cd", **{"objective.teacher_solver": "euler"})
    request = Request(workdir=tmp_path / "run", config=other, given=("objective.teacher_solver",))
    with pytest.raises(ValueError, match="--config is of cd"):
        evaluate_mode(request)
    assert len(evaluated) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("evaluate.features", "pixels"),
        ("evaluate.reference", "all"),
        ("evaluate.rows", ("hmc",)),
        ("evaluate.agreement", True),
        ("data.label_shares", "equal"),
        ("evaluate.steps", (1, 4)),
        ("evaluate.guidance_scale", (1.0, 2.0)),
    ],
)
def test_fields_that_change_no_maps_are_refused_with_them(tmp_path, monkeypatch, field, value):
    measured = []
    mode = import_module("fewstep.modes.evaluate")
    monkeypatch.setattr(mode, "measure_maps", measured.append)
    monkeypatch.setattr(mode, "check_effect", lambda *_: None)
    config = small_config("flow_matching", **{field: value})
    for asked in ({"fields": {field: value}}, {"config": config, "given": (field,)}):
        with pytest.raises(ValueError, match=f"{field}.* (change nothing: --maps|names several)"):
            evaluate_mode(Request(workdir=tmp_path, maps=True, **asked))
    numbers = {"evaluate.num_samples": 9, "evaluate.final_samples": 9, "evaluate.steps": (4,)}
    evaluate_mode(Request(workdir=tmp_path, maps=True, fields=numbers | {"data.dir": "here"}))
    evaluate_mode(Request(workdir=tmp_path, maps=True, config=config, given=()))
    assert len(measured) == 2


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
