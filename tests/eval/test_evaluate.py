import json

import jax
import numpy as np
import pytest

from data import Dataset, Split
from eval.evaluate import check_sampling, evaluator, measure, real_row, reference, summary
from tests.training.runs import small_experiment, synthetic_split
from training.sharding import make_mesh

FIELDS = {"evaluate.steps": (1, 2), "evaluate.num_samples": 24, "evaluate.batch_size": 16}


def dataset(classes=10):
    return Dataset("synthetic", synthetic_split(200), synthetic_split(50), classes)


def test_an_evaluation_writes_what_it_returns(tmp_path):
    config, experiment = small_experiment(**FIELDS)
    mesh = make_mesh()
    params = experiment.model.network.init(jax.random.key(0))
    results = evaluator(experiment, dataset(), config, mesh, tmp_path)(params, 7)
    folder = tmp_path / "eval"
    assert json.loads((folder / "step_00000007.json").read_text()) == results
    assert results["images_seen"] == 7 * 64
    assert set(results["by_steps"]) == {"1", "2"}
    names = {p.name for p in folder.glob("*.png")}
    assert names == {
        "step_00000007_1_steps.png",
        "step_00000007_2_steps.png",
        "step_00000007_comparison.png",
    }
    table = [line.split() for line in summary(results).splitlines()]
    assert table[1][:2] == ["steps", "frechet"] and len(table[2]) == len(table[1])


def test_real_images_measured_against_themselves():
    real = reference(dataset(), 10, 125)
    split = dataset().train
    metrics = measure(split.images, split.labels, real)
    # 200 of the 250 reference images, exactly: nothing is missed but sampling error.
    assert metrics["precision"] == metrics["recall"] == 1.0
    assert metrics["frechet"] < real.floor
    assert metrics["kernel"] < 3.0 * metrics["kernel_error"]
    assert metrics["coverage"] == 1.0 and "closer" not in metrics
    noise = np.zeros_like(split.images)
    noise[:, :4] = 255
    far = measure(noise, split.labels, real)
    assert far["frechet"] > 10 * real.floor
    assert far["kernel"] > 30.0 * far["kernel_error"] and far["coverage"] == 0.0


def test_copies_of_training_images_are_nearer_than_held_out_ones():
    images = synthetic_split(400)
    train, held_out = (
        Split(images.images[part], images.labels[part]) for part in (slice(250), slice(250, 400))
    )
    real = reference(Dataset("synthetic", train, held_out, 10), 10, 125)
    assert measure(train.images, train.labels, real)["closer"] == 1.0
    assert measure(held_out.images, held_out.labels, real)["closer"] < 0.02


def test_large_images_say_what_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.evaluate.LARGEST_DIMENSION", 63)
    config, experiment = small_experiment(**FIELDS)
    params = experiment.model.network.init(jax.random.key(0))
    results = evaluator(experiment, dataset(), config, make_mesh(), tmp_path)(params, 1)
    assert results["by_steps"] == {"1": {}, "2": {}}
    assert "skipped metrics" in summary(results)


def test_data_without_classes(tmp_path):
    config, experiment = small_experiment(**FIELDS, **{"data.num_classes": 0})
    params = experiment.model.network.init(jax.random.key(0))
    split = synthetic_split(200)
    unlabelled = Dataset("x", split._replace(labels=np.full(200, -1, np.int32)), None, 0)
    results = evaluator(experiment, unlabelled, config, make_mesh(), tmp_path)(params, 1)
    measured = {"frechet", "kernel", "kernel_error", "precision", "recall", "density", "coverage"}
    assert set(results["by_steps"]["1"]) == measured
    assert "classifier_accuracy" not in results


def test_real_row_has_the_labels_of_the_samples():
    row = real_row(dataset(), 12)["real"]
    train = dataset().train
    for i, image in enumerate(row):
        position = next(j for j, other in enumerate(train.images) if (other == image).all())
        assert train.labels[position] == i % 10
    assert real_row(dataset(), 1000) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluate.batch_size": 20}, "evaluate.batch_size=20"),
        ({"evaluate.num_samples": 2}, "evaluate.num_samples=2"),
        ({"evaluate.steps": (1, 3)}, "power of two"),
        ({"evaluate.guidance_scale": 2.0}, "trained with guidance scale"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_compute(fields, message):
    config, experiment = small_experiment(**{**FIELDS, **fields})
    with pytest.raises(ValueError, match=message):
        check_sampling(experiment, config, make_mesh())
