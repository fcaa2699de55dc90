"""Evaluations at several guidance scales."""

from importlib import import_module

import pytest

from fewstep.eval.evaluate import evaluator
from fewstep.eval.new_result import evaluation_protocol
from fewstep.eval.sampling import at_each_scale, check_sampling, guidance_scale
from fewstep.training.sharding import make_mesh
from tests.training.runs import small_experiment

EVALUATE = import_module("fewstep.eval.evaluate")
STEPS = {"evaluate.steps": (1,)}


def several(method="edm", scales=(2.0, 1.0), **fields):
    return small_experiment(method, **{"evaluate.guidance_scale": scales}, **STEPS, **fields)


def test_the_first_of_several_scales_is_evaluated_last_and_returned(monkeypatch, tmp_path):
    config, experiment = several()
    made, run = [], []

    def scale_evaluator(experiment, dataset, config, *given, samples):
        made.append((config.evaluate.guidance_scale, samples))
        scale = config.evaluate.guidance_scale
        return lambda params, step: run.append(scale) or [scale, params, step]

    monkeypatch.setattr(EVALUATE, "scale_evaluator", scale_evaluator)
    evaluate = evaluator(experiment, None, config, make_mesh(), tmp_path, samples=7)
    assert made == [(1.0, 7), (2.0, 7)]
    assert evaluate("parameters", 3) == [2.0, "parameters", 3] and run == [1.0, 2.0]


def test_one_number_has_the_results_that_it_had():
    config, experiment = small_experiment("edm", **STEPS)
    (alone,) = at_each_scale(config)
    assert alone is config and guidance_scale(experiment, config) == 1.0
    names = [evaluation_protocol(experiment, config, 1, 1, None).id]
    for own in at_each_scale(several(scales=(1.0, 3.0))[0]):
        names.append(evaluation_protocol(experiment, own, 1, 1, None).id)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("method", "scales", "fields", "message"),
    [
        ("edm", (1.0, 1.0), {}, "has a scale twice"),
        ("edm", (1.0, 2.0), {"data.num_classes": 0}, "scale 2 needs a network that knows the null"),
        ("edm", (1.0, 2.0), {"objective.label_dropout": 0.0}, "scale 2 needs a network"),
        ("shortcut", (1.0, 2.0), {}, "trained with guidance scale 1"),
    ],
)
def test_scales_that_cannot_be_sampled_are_one_error(method, scales, fields, message):
    config, experiment = several(method, scales, **fields)
    with pytest.raises(ValueError, match=message):
        check_sampling(experiment, config, make_mesh())
