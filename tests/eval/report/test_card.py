"""The card of an exported network has its data, its figures with their protocol, and no others."""

import pytest

from fewstep.eval.report.card import evaluations_of, model_card
from fewstep.training.exports.exported import Contents, Exported
from fewstep.training.storage.identity import Identity
from tests.eval.evaluated import MEASUREMENT, evaluated_run
from tests.training.runs import small_experiment

SPLITS = {"train": {"count": 1437, "images_sha256": "a", "labels_sha256": "b"}}
DATA = {"image_shape": [8, 8, 1], "classes": ["0", "1"], "splits": SPLITS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    evaluated_run(folder, "shortcut", steps=(4, 1))
    other = {**MEASUREMENT, "samples": 5000}
    evaluated_run(folder, "shortcut", steps=(1,), measurement=other, frechet=0.25)
    evaluated_run(folder, "shortcut", steps=(2,), sampling={"network": "network"}, frechet=0.75)
    evaluated_run(folder, "shortcut", steps=(2,), sampling={"step": 1000}, frechet=0.875)
    return folder


def exported(step=3000, **identity):
    config, experiment = small_experiment("shortcut")
    return Exported(config, experiment, {}, step, Identity("5eed", {}, **identity), None)


def card(folder, left_out=(), **fields):
    return model_card(exported(**fields), Contents({}, "LOAD IT SO", left_out), folder)


def test_it_has_the_figures_of_this_network_and_step_alone(folder):
    text = card(folder, data=DATA)
    rows = [line.split(" | ") for line in text.splitlines() if " | heun | " in line]
    assert sorted((row[0].strip("| "), row[3]) for row in rows) == [
        ("1", "0.250"),
        ("1", "0.500"),
        ("4", "0.435"),
    ]
    assert "fd-classifier-1k: 1,000 samples" in text and "fd-classifier-5k: 5,000 samples" in text
    assert text.count("\n\nWarning: 1,000 samples are few") == 2
    found = evaluations_of(exported(), folder)
    assert sorted(evaluation.steps for evaluation in found) == [1, 1, 4]


def test_it_says_what_the_network_is_and_how_to_load_it(folder):
    text = card(folder, left_out=("A part is not there",), data=DATA)
    assert text.startswith("# shortcut: dit nano/2 on digits\n")
    assert "Network: ema_0.999 after training step 3000 of 10, run 5eed" in text
    assert "(1,437 train)" in text and "LOAD IT SO" in text
    assert "## Not in these files\n\nA part is not there.\n" in text
    assert '"objective.max_steps": 128' in text


def test_a_run_without_evaluation_says_so(tmp_path, folder):
    assert "The run has no evaluation of this network at this step." in card(tmp_path)
    text = card(folder, step=2000)
    assert "no evaluation of this network" in text and "## Not in these files" not in text
    assert "of which the run recorded no identity" in text
