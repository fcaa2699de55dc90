import json
from importlib import import_module

import jax
import numpy as np
import pytest
from PIL import Image

from fewstep.data import Dataset
from fewstep.data.spaces.pixels import pixel_space
from fewstep.eval.checks import check_evaluation
from fewstep.eval.evaluate import evaluator, prepare_measures, sample_count
from fewstep.eval.new_result import evaluation_protocol, training_data_digest
from fewstep.eval.pictures import real_examples
from fewstep.eval.sampling import Wanted
from fewstep.eval.summary import summary
from fewstep.training.sharding import make_mesh
from fewstep.training.storage.identity import Identity
from tests.training.runs import small_experiment, synthetic_split

MODULE = import_module("fewstep.eval.evaluate")
FIELDS = {"evaluate.steps": (1, 2), "evaluate.num_samples": 24, "evaluate.batch_size": 16}


def dataset(classes=10):
    return Dataset("synthetic", synthetic_split(200), synthetic_split(120), classes)


@pytest.fixture
def evaluated(tmp_path):
    """A function that evaluates a small run with given fields, and returns results and folder."""

    def evaluated(data, step=7, **fields):
        config, experiment = small_experiment(
            **{**FIELDS, "data.dir": str(tmp_path / "data"), **fields}
        )
        params = experiment.model.network.init(jax.random.key(0))
        results = evaluator(experiment, data, config, make_mesh(), tmp_path)(params, step)
        return results, tmp_path / "eval"

    return evaluated


def test_an_evaluation_writes_what_it_returns(evaluated):
    (results, folder), rows = evaluated(dataset()), {}
    for result, steps in zip(results, (1, 2), strict=True):
        assert json.loads((folder / f"{result['id']}.json").read_text()) == result
        assert result["images_seen"] == 7 * 64
        sampling = result["protocol"]["sampling"]
        assert (sampling["steps"], sampling["step"], sampling["seed"]) == (steps, 7, 0)
        assert sampling["training_data"] == dataset().digest
        assert result["metric"] == "fd-pixels-24"
        (warning,) = result["warnings"]
        assert "24 samples" in warning
        with np.load(folder / f"{result['id']}.npz") as shown:
            assert shown["x"].shape == (24, 8, 8, 1) and shown["way"].shape == (3, 8, 8, 1)
            np.testing.assert_array_equal(shown["y"], np.arange(24) % 10)
            rows[f"shortcut, {steps} step{'s' if steps > 1 else ''}"] = shown["x"]
    rows |= real_examples(dataset(), np.arange(24) % 10)
    picture = pixel_space((8, 8, 1)).compare({name: row[:10] for name, row in rows.items()})
    np.testing.assert_array_equal(Image.open(folder / "step_00000007.png"), picture)
    names = {p.name for p in folder.glob("*.png")}
    assert names == {"step_00000007.png", *(f"{result['id']}.png" for result in results)}
    lines = summary(results).splitlines()
    table = [line.split() for line in lines]
    assert table[1][:2] == ["steps", "frechet"] and len(table[2]) == len(table[1])
    assert "fd-pixels-24 against synthetic, train split" in lines[0]
    assert "biased upwards" in lines[-1]


def test_results_of_different_protocols_have_their_own_files(evaluated):
    protocols = []
    first, folder = evaluated(dataset())
    second, _ = evaluated(dataset(), **{"evaluate.num_samples": 25})
    evaluated(dataset(), step=8)
    assert len({result["id"] for result in (*first, *second)}) == 4
    churned = {"objective.solver.name": "churned_heun", "objective.solver.churn": 3.0}
    for fields in ({}, churned, {**churned, "objective.solver.churn": 4.0}):
        config, experiment = small_experiment("edm", **fields)
        protocols.append(evaluation_protocol(experiment, config, 1, 2, None))
    assert protocols[1].sampling["sampler_fields"]["solver.churn"] == 3.0
    assert len({protocol.id for protocol in protocols}) == 3
    assert len(list(folder.glob("*.json"))) == 6


def test_the_protocol_says_what_was_trained_on():
    config, experiment = small_experiment()
    fewer = dataset()._replace(train=synthetic_split(199))
    digests = [training_data_digest(experiment, data, None) for data in (dataset(), fewer, None)]
    assert digests == [dataset().digest, fewer.digest, ""] and digests[0] != digests[1]
    protocols = [evaluation_protocol(experiment, config, 1, 2, None, digest) for digest in digests]
    assert protocols[0].sampling["training_data"] == digests[0]
    # Without it the protocol equals that of results written before the field existed.
    assert "training_data" not in protocols[2].sampling
    assert protocols[2].id == evaluation_protocol(experiment, config, 1, 2, None).id
    assert len({protocol.id for protocol in protocols}) == 3
    taught = experiment._replace(objective=experiment.objective._replace(reads=("labels",)))
    assert training_data_digest(taught, dataset(), None) == ""
    # The record of a run counts, whatever the data are now.
    run = Identity("a", {}, data=fewer.identity)
    assert {training_data_digest(experiment, data, run) for data in (dataset(), None)} == {
        digests[1]
    }


@pytest.mark.parametrize(
    ("data", "fields", "why"),
    [
        (None, {}, "the data set digits is not here"),
        (dataset(), {"evaluate.features": "none"}, "evaluate.features=none"),
    ],
)
def test_an_evaluation_without_metrics_has_pictures_and_a_reason(evaluated, data, fields, why):
    results, folder = evaluated(data, **fields)
    assert [result["metrics"] for result in results] == [{}, {}]
    assert f"skipped metrics: {why}" in summary(results)
    assert (folder / f"{results[0]['id']}.png").exists()


def test_a_file_of_statistics_needs_no_data(evaluated, tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(64), sigma=np.eye(64))
    results, _ = evaluated(None, **{"evaluate.reference": str(tmp_path / "adm.npz")})
    assert [set(result["metrics"]) for result in results] == [{"frechet"}] * 2


def test_a_folder_that_is_not_writable_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "own"))
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    config, experiment = small_experiment(**{**FIELDS, "data.dir": str(theirs)})
    wanted = Wanted(np.arange(24) % 10, "every class in turn")
    prepare_measures(experiment, dataset(), config, make_mesh(), wanted, writable=False)
    assert not theirs.exists() and len(list((own / "references").iterdir())) == 1
    own.rename(theirs)
    prepare_measures(experiment, dataset(), config, make_mesh(), wanted, writable=False)
    assert not own.exists()


def test_data_without_classes(evaluated):
    split = synthetic_split(200)
    unlabelled = Dataset("x", split._replace(labels=np.full(200, -1, np.int32)), None, 0)
    results, _ = evaluated(unlabelled, **{"data.num_classes": 0, "evaluate.agreement": True})
    measured = {"frechet", "kernel", "kernel_error", "precision", "recall", "density", "coverage"}
    assert set(results[0]["metrics"]) == measured
    assert results[0]["protocol"]["measurement"]["labels"] == "none"


def test_final_samples_count_after_the_last_step():
    config, _ = small_experiment(steps=9, **FIELDS)
    assert sample_count(config, 8) == sample_count(config, 9) == 24
    config.evaluate.final_samples = 30
    assert [sample_count(config, step) for step in (8, 9, 10)] == [24, 30, 30]


def test_results_are_shown_before_they_are_written(monkeypatch, tmp_path):
    config, experiment = small_experiment(**{**FIELDS, "data.dir": str(tmp_path)})
    params = experiment.model.network.init(jax.random.key(0))
    shown = []

    def full(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr(MODULE, "save_evaluation", full)
    how = {"out": tmp_path / "deep" / "er", "show": shown.extend}
    evaluate = evaluator(experiment, dataset(), config, make_mesh(), tmp_path, **how)
    with pytest.raises(OSError, match="no room"):
        evaluate(params, 7)
    assert [result["protocol"]["sampling"]["steps"] for result in shown] == [1, 2]
    assert how["out"].is_dir() and not (tmp_path / "eval").exists()


def test_real_examples_have_the_labels_of_the_samples():
    row = real_examples(dataset(), np.arange(12) % 10)["real"]
    train = dataset().train
    for i, image in enumerate(row):
        position = next(j for j, other in enumerate(train.images) if (other == image).all())
        assert train.labels[position] == i % 10
    assert real_examples(dataset(), np.array([0, 10])) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluate.batch_size": 20}, "evaluate.batch_size=20"),
        ({"evaluate.batch_size": 0}, "evaluate.batch_size=0"),
        ({"evaluate.num_samples": 2}, "evaluate.num_samples=2"),
        ({"evaluate.final_samples": 2}, "evaluate.final_samples=2"),
        ({"evaluate.steps": (1, 3)}, "power of two"),
        ({"evaluate.steps": (1, 4, 1)}, r"evaluate.steps=\(1, 4, 1\) has 1 more than once"),
        ({"evaluate.guidance_scale": 2.0}, "trained with guidance scale"),
        ({"evaluate.features": "clip"}, "evaluate.features='clip' is not one of"),
        ({"evaluate.features": "inception"}, "evaluate.features=inception needs weights"),
        ({"evaluate.weights": "w.pth"}, "does not use evaluate.weights"),
        ({"evaluate.reference": "valid"}, "evaluate.reference=valid"),
        ({"data.image_size": 96, "model.patch_size": 8}, "9216 dimensions"),
        ({"data.channels": 4}, "have no picture .images have 4 channels.*evaluate.steps="),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_compute(monkeypatch, fields, message):
    monkeypatch.delenv("FEWSTEP_INCEPTION", raising=False)
    config, experiment = small_experiment(**{**FIELDS, **fields})
    with pytest.raises(ValueError, match=message):
        check_evaluation(experiment, dataset(), config, make_mesh())


def test_a_staged_run_is_measured_in_the_steps_of_its_stage_and_others_are_refused(tmp_path):
    fields = {**FIELDS, "data.dir": str(tmp_path / "data"), "steps": 9, "objective.max_steps": 4}
    config, experiment = small_experiment("progressive", **fields)
    params = experiment.model.network.init(jax.random.key(0))
    evaluate = evaluator(experiment, dataset(), config, make_mesh(), tmp_path)
    measured = {
        step: [result["protocol"]["sampling"]["steps"] for result in evaluate(params, step)]
        for step in (3, 6, 9)
    }
    assert measured == {3: [], 6: [2], 9: [1]}
    # A step of the network, and x_0, for each sampling step.
    ways = {}
    for path in (tmp_path / "eval").glob("*.json"):
        sampling = json.loads(path.read_text())["protocol"]["sampling"]
        with np.load(path.with_suffix(".npz")) as shown:
            ways[sampling["steps"]] = len(shown["way"])
    assert ways == {2: 3, 1: 2}
    config.evaluate.steps = (1, 8)
    with pytest.raises(ValueError, match="power of two of steps up to 4, .* not in 8"):
        check_evaluation(experiment, dataset(), config, make_mesh())


def test_a_number_that_no_table_can_show_is_warned_of_and_left_out(evaluated, monkeypatch):
    huge = lambda batches, *_: {"frechet": 4.8e15, "recall": 1 / len([*batches])}
    monkeypatch.setattr(MODULE, "measure", huge)
    result = evaluated(dataset(), **{"evaluate.features": "pixels"})[0][0]
    assert result["metrics"].keys() == {"recall"}
    assert "frechet is not finite, or too large" in result["warnings"]


def test_samples_below_the_floor_are_warned_of(evaluated, monkeypatch):
    known, prepare = {"real": {"wasserstein_1": 1.0}}, MODULE.prepare_measures
    with_floor = lambda *given: prepare(*given)._replace(known=known)
    monkeypatch.setattr(MODULE, "prepare_measures", with_floor)
    closer = lambda batches, *_: {"wasserstein_1": 1 / (1 + len([*batches]))}
    monkeypatch.setattr(MODULE, "measure", closer)
    (result,), _ = evaluated(dataset(), **{"evaluate.steps": (1,)})
    assert any("wasserstein_1" in told and "collapsed" in told for told in result["warnings"])


@pytest.mark.some_days(3)
def test_against_other_images_nothing_is_said_of_labels_and_copies(evaluated, monkeypatch):
    fields = {"evaluate.agreement": True, "evaluate.features": "pixels"}
    own = evaluated(dataset(), **fields)[0][0]["metrics"]
    assert {"agreement", "closer"} <= own.keys()
    other = Dataset("other", synthetic_split(120), synthetic_split(200), 10)
    against = lambda pictures: lambda config, data, writable: (pictures, "train")
    monkeypatch.setattr(MODULE, "measured_against", against(other))
    found = evaluated(dataset(), **fields)[0][0]["metrics"]
    assert not {"agreement", "closer"} & found.keys() and "frechet" in found
    # The same images by another name are the run's own.
    monkeypatch.setattr(MODULE, "measured_against", against(dataset()))
    assert {"agreement", "closer"} <= evaluated(dataset(), **fields)[0][0]["metrics"].keys()


def test_a_summary_has_what_any_number_of_steps_has():
    """A diagnostic that is not finite is left out of its result, and warned of."""
    results = [
        {
            "data": "x",
            "metric": "",
            "protocol": {
                "sampling": {
                    "method": "scds",
                    "step": 1,
                    "network": "ema",
                    "guidance_scale": 1.0,
                    "steps": steps,
                },
                "measurement": {},
            },
            "metrics": metrics,
            "real": {},
            "warnings": [warning],
        }
        for steps, metrics, warning in (
            (1, {"ess": 0.5}, "few"),
            (4, {"elbo": -1.0, "ess": 0.25}, "elbo is not finite"),
        )
    ]
    lines = summary(results).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["steps", "ess", "elbo"],
        ["1", "0.500", "-"],
        ["4", "0.250", "-1.000"],
    ]
    assert sum("warning" in line for line in lines) == 2
