"""Diagnostics of an objective: made from the noise of the samples, in results like any metric."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.eval.evaluate import evaluator
from fewstep.eval.new_result import evaluation_protocol
from fewstep.eval.sampling import check_sampling
from fewstep.eval.summary import summary
from fewstep.objectives.base import Diagnostics
from fewstep.training.generate import initial_noise
from fewstep.training.sharding import make_mesh
from tests.training.runs import small_experiment

# Of the density exp(-|x - m|^2 / 2) on R, known up to its integral, with eps as proposals.
MEAN, COUNT = 0.5, 24
FIELDS = {"evaluate.steps": (1, 2), "evaluate.num_samples": COUNT, "evaluate.batch_size": 16}


def log_weights(params, eps, condition, keys, *, steps, guidance_scale):
    x = eps.reshape(len(eps), -1)[:, 0] / steps
    return {"log_weight": -0.5 * (x - MEAN) ** 2 + 0.5 * x**2 + 0.5 * jnp.log(2 * jnp.pi)}


def estimates(rows):
    weight = np.exp(np.asarray(rows["log_weight"], np.float64))
    return {
        "log_z": np.log(weight.mean()),
        "effective_share": weight.mean() ** 2 / np.square(weight).mean(),
    }


def diagnosed(rows=log_weights, numbers=estimates, **fields):
    config, experiment = small_experiment(**{**FIELDS, "evaluate.features": "none", **fields})
    objective = experiment.objective._replace(diagnostics=Diagnostics(rows, numbers))
    return config, experiment._replace(objective=objective)


def evaluated(folder, config, experiment):
    params = experiment.model.network.init(jax.random.key(0))
    return evaluator(experiment, None, config, make_mesh(), folder)(params, 7)


def test_numbers_are_those_of_all_samples_at_each_number_of_steps(tmp_path):
    config, experiment = diagnosed()
    results = evaluated(tmp_path, config, experiment)
    eps, keys = initial_noise(config.seed, np.arange(COUNT), (8, 8, 1))
    for result, steps in zip(results, (1, 2), strict=True):
        rows = log_weights(None, eps, None, keys, steps=steps, guidance_scale=1.0)
        expected = estimates(rows)
        assert result["metrics"] == pytest.approx(expected, rel=1e-5)
        assert json.loads((tmp_path / f"eval/{result['id']}.json").read_text()) == result
        assert f"{expected['log_z']:.3f}" in summary(results)


def test_diagnostics_join_metrics_and_the_protocol_has_the_number_of_samples(tmp_path):
    config, experiment = diagnosed()
    plain = experiment._replace(objective=experiment.objective._replace(diagnostics=None))
    of_number = [evaluation_protocol(experiment, config, 1, 2, None, "", n) for n in (24, 25)]
    assert [protocol.sampling["diagnosed"] for protocol in of_number] == [24, 25]
    # Without diagnostics the number of samples is where it was.
    without = [evaluation_protocol(plain, config, 1, 2, None, "", n).id for n in (24, 25)]
    assert without == [evaluation_protocol(plain, config, 1, 2, None).id] * 2


def test_a_diagnostic_that_is_not_finite_is_a_warning(tmp_path):
    config, experiment = diagnosed(numbers=lambda rows: {"log_z": float("nan"), "share": 1.0})
    (first, _) = evaluated(tmp_path, config, experiment)
    assert first["metrics"] == {"share": 1.0} and first["warnings"] == [
        "log_z is not finite, or too large"
    ]


def test_a_diagnostic_cannot_have_the_name_of_a_metric(tmp_path):
    config, experiment = diagnosed(numbers=lambda rows: {"frechet": 0.0})
    with pytest.raises(ValueError, match="names of metrics: frechet"):
        evaluated(tmp_path, config, experiment)


def test_diagnostics_without_a_row_per_sample_are_refused_before_compute():
    def one_number(params, eps, condition, keys, **_):
        return {"log_weight": jnp.mean(eps)}

    config, experiment = diagnosed(rows=one_number)
    with pytest.raises(ValueError, match=r"have the shapes {'log_weight': \(\)}"):
        check_sampling(experiment, config, make_mesh())
    check_sampling(diagnosed()[1], config, make_mesh())
