"""--mode=measure and fewstep.evaluate give the numbers of an evaluation, for anybody's samples."""

import json

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

import fewstep
from fewstep.data import load_selection
from fewstep.data.origins import Selection
from fewstep.eval.evaluate import evaluator
from fewstep.modes.measure import measure
from fewstep.modes.request import Request
from fewstep.training.sharding import make_mesh
from tests.eval.test_given import write_pictures
from tests.training.runs import small_experiment


@pytest.fixture(scope="module")
def digits():
    """Noisy digits and their labels, as somebody has made them."""
    read = load_digits()
    noise = np.random.default_rng(0).normal(0, 2, (60, 8, 8))
    images = np.clip((read.images[:60] + noise) * 255 / 16, 0, 255).astype(np.uint8)
    return images[..., None], read.target[:60]


def test_samples_of_a_run_have_the_numbers_of_its_evaluation(tmp_path):
    fields = {"data.name": "digits", "evaluate.steps": (1,), "evaluate.num_samples": 40}
    fields |= {"evaluate.batch_size": 40, "evaluate.reference": "all"}
    config, experiment = small_experiment(**fields)
    params = jax.jit(experiment.model.network.init)(jax.random.key(0))
    made = []
    finish = experiment.space.finish
    space = experiment.space._replace(finish=lambda x: made.append(finish(x)) or made[-1])
    evaluate = evaluator(
        experiment._replace(space=space),
        load_selection(Selection("digits")),
        config,
        make_mesh(),
        tmp_path,
    )
    (expected,) = evaluate(params, 1)
    found = fewstep.evaluate(made[0], "digits", split="all", features="pixels")
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    assert found["real"] == expected["real"]
    ours, theirs = (each["protocol"]["measurement"] for each in (found, expected))
    assert {name for name in ours if ours[name] != theirs[name]} == {"labels", "rounding"}


def test_the_mode_writes_what_python_returns(tmp_path, digits, capsys):
    images, labels = digits
    np.savez(tmp_path / "x.npz", arr_0=images, arr_1=labels)
    measure(Request(samples=tmp_path / "x.npz", reference="digits", split="all"))
    (out,) = tmp_path.glob("x-fd-classifier-60-*.json")
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result == fewstep.evaluate(tmp_path / "x.npz", "digits", split="all")
    named = result | fewstep.evaluate(images, "digits", split="all", labels=labels)
    assert named["metrics"] == result["metrics"]
    assert {"frechet", "agreement", "kernel", "precision", "recall"} <= {*result["metrics"]}
    assert "60 samples of 8 x 8 x 1 (x.npz), fd-classifier-60 against digits, all" in printed
    assert "label agreement" in printed and "warning: 60 samples have fewer directions" in printed
    unlabelled = fewstep.evaluate(images, "digits", split="all")
    assert {*result["metrics"]} - {*unlabelled["metrics"]} == {"agreement"}


def test_two_folders_are_compared_and_equal_ones_are_near(tmp_path, digits):
    images, _ = digits
    first = write_pictures(tmp_path / "first", images)
    same = write_pictures(tmp_path / "same" / "class", images).parent
    far = write_pictures(tmp_path / "far" / "class", 255 - images).parent
    near, apart = (
        fewstep.evaluate(first, other, features="pixels")["metrics"] for other in (same, far)
    )
    assert abs(near["frechet"]) < 1e-3 < 1.0 < apart["frechet"]
    assert near["precision"] == 1.0 and apart["precision"] == 0.0
    np.savez(tmp_path / "far.npz", arr_0=255 - images)
    again = fewstep.evaluate(first, tmp_path / "far.npz", features="pixels")["metrics"]
    assert again["frechet"] == pytest.approx(apart["frechet"], rel=1e-4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"samples": None}, "--samples is missing"),
        ({"reference": ""}, "--reference is missing"),
        ({"reference": "digit"}, "digits"),
        ({"split": "half"}, "--split=half is none of train, test, all"),
        ({"features": "none"}, "measures nothing"),
        ({"features": "points"}, "evaluate.features=points cannot take pixels"),
        ({"features": "inception"}, "needs weights"),
        ({"out": "x.txt"}, "must end in .json"),
        ({"labels": 10}, "labels of x.npz go from 10 to 10, and digits has the classes 0 to 9"),
        ({"shape": (6, 4, 8, 1)}, "data sets have square images"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, asked, message):
    shape = asked.pop("shape", (6, 8, 8, 1))
    labels = np.full(6, asked.pop("labels", 0))
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=images, arr_1=labels)
    if "out" in asked:
        asked["out"] = tmp_path / asked["out"]
    features = {"evaluate.features": asked.pop("features", "pixels")}
    fields = {"samples": tmp_path / "x.npz", "reference": "digits", "fields": features}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        measure(Request(**(fields | asked)))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
