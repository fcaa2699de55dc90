"""A run on points is trained, evaluated, sampled and reported like a run on images."""

from importlib import import_module

import jax
import numpy as np
import pytest

from fewstep.configs import mixtures
from fewstep.data import Selection, load_selection, space_of
from fewstep.eval.checks import check_evaluation
from fewstep.eval.metrics.frechet import frechet_distance, statistics
from fewstep.eval.report.page import results_page
from fewstep.eval.report.runs import load_runs
from fewstep.modes.request import Request
from fewstep.modes.resolve import resolve_and_load
from fewstep.training.experiment import build
from fewstep.training.generate import generate
from fewstep.training.inheritance import check_given
from fewstep.training.metrics import LOG, read_rows
from fewstep.training.sharding import make_mesh
from fewstep.training.teacher import check_teacher

TRAIN, SAMPLE = (import_module(f"fewstep.modes.{name}") for name in ("train_run", "sample"))
SAMPLES, STEPS = 48, 2


def small_config(method="flow_matching", **fields):
    config = mixtures.get_config(method)
    config.steps, config.batch_size, config.optimizer.warmup_steps = STEPS, 64, 0
    config.model.width, config.model.depth = 8, 1
    config.evaluate.steps, config.evaluate.num_samples = (1, 2), SAMPLES
    config.evaluate.batch_size = 16
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a trained and evaluated run."""
    folder = tmp_path_factory.mktemp("points")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_DATA", str(folder / "data"))
        TRAIN.train_run(Request(config=small_config(), workdir=folder / "run"))
    return folder / "run"


@pytest.mark.some_days(3)
def test_samples_are_measured_as_the_floats_that_they_are(run):
    logged = {name: value for row in read_rows(run / LOG) for name, value in row.items()}
    real = np.concatenate(
        [s.images for s in load_selection(Selection("mixture:ring")).splits.values()]
    )
    (shown,) = load_runs([run])
    for steps, result in shown.results.items():
        x = shown.images[steps]
        assert x.dtype == np.float32 and x.shape == (SAMPLES, 2)
        # Here the file of shown samples has all samples.
        distance = frechet_distance(statistics(x), statistics(real))
        assert result["metrics"]["frechet"] == pytest.approx(distance, rel=1e-4)
        assert logged[f"evaluate/frechet_{steps}"] == result["metrics"]["frechet"]
        assert {"kernel", "precision", "coverage", "closer"} < result["metrics"].keys()
        measured = result["protocol"]["measurement"]
        assert (measured["features"], measured["rounding"]) == ("points", "none")
        assert result["metric"] == f"fd-points-{SAMPLES}"


def test_the_report_shows_them(run, tmp_path):
    results_page(tmp_path / "page.html", title="points", runs=load_runs([run]))
    page = (tmp_path / "page.html").read_text()
    assert "fd-points-48" in page and "the labels are the same" in page
    assert page.count("data:image/png") >= 2 and "From noise to data" not in page


def test_they_are_sampled_into_one_file_with_a_picture(run, tmp_path):
    SAMPLE.sample(Request(workdir=run, seeds=(3, 1, 4)))
    (arrays,) = (run / "samples").glob("*.npz")
    assert arrays.with_suffix(".png").exists()
    with np.load(arrays) as made:
        assert made["x"].dtype == np.float32 and made["x"].shape == (3, 2)
        np.testing.assert_array_equal(made["seed"], [3, 1, 4])
    with pytest.raises(ValueError, match="makes points; name a file that ends in .npz"):
        SAMPLE.sample(Request(workdir=run, out=tmp_path / "folder"))


def test_nothing_between_the_network_and_the_file_changes_them():
    config, _ = resolve_and_load(small_config())
    experiment = build(config)
    samples = np.linspace(-300.0, 300.0, 32, dtype=np.float32).reshape(16, 2)
    made = generate(lambda *_: jax.device_put(samples), None, np.zeros(16, int), 16)
    np.testing.assert_array_equal(np.concatenate([*map(experiment.space.finish, made)]), samples)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluate.features": "inception"}, "inception cannot take points; use points, none"),
        ({"evaluate.features": "pixels"}, "pixels cannot take points"),
        ({"evaluate.agreement": True}, "needs the classifier, which cannot take points"),
        ({"data.flip": True}, "data.flip is for images"),
        ({"data.on_device": True}, "data.on_device is for images"),
        ({"data.image_size": 8}, "has points; leave both at 0"),
        ({"model.name": "dit"}, r"a DiT takes images .* not \[2\]"),
    ],
)
def test_what_points_cannot_be_is_refused_before_compute(fields, message):
    config = small_config(**fields)
    if "model.name" in fields:
        config.model.width = config.model.depth = None
    with pytest.raises(ValueError, match=message):
        config, dataset = resolve_and_load(config)
        check_evaluation(build(config), dataset, config, make_mesh())


def test_images_have_no_features_of_points():
    assert "points" not in space_of("digits", 8, 1).features


def test_a_teacher_makes_points_of_the_same_dimension(run):
    config, _ = resolve_and_load(small_config("sim_flow", teacher=str(run)))
    teacher, _ = resolve_and_load(small_config())
    check_teacher(config, teacher, build(config))
    other, _ = resolve_and_load(small_config("sim_flow", **{"data.name": "mixture:cube"}))
    with pytest.raises(ValueError, match=r"data \(points of 2 there, points of 3 here\)"):
        check_teacher(other, teacher, build(other))
    config.data.name = "none"
    with pytest.raises(ValueError, match="makes points, no images; set data.name=mixture:ring"):
        check_given(config, teacher, ("data.name",))
