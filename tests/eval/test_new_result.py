"""The protocol of an evaluation tells samples apart that a field of the objective changes.

Numbers that a result may not have are left out of it with a warning.
"""

import pytest

from fewstep.eval.new_result import add_numbers, add_rows, evaluation_protocol
from fewstep.training.experiment import build
from tests.training.runs import small_config


@pytest.mark.parametrize(
    ("method", "field", "values"),
    [
        ("edm", "ends_at", ("data", "path")),
        ("ctm", "gamma", (0.0, 0.5)),
        ("improved_mean_flow", "guidance_interval", ((0.0, 1.0), (0.2, 0.8))),
        ("flow_matching", "spacing.name", ("uniform", "quadratic")),
        ("ct", "sample_times", ((), (0.5,))),
        ("flow_matching", "guided_channels", (None, 1)),
    ],
)
def test_what_changes_samples_changes_the_id(method, field, values):
    ids = []
    for value in values:
        config = small_config(method, **{f"objective.{field}": value})
        ids.append(evaluation_protocol(build(config), config, 5, 1, None).id)
    assert len({*ids}) == 2


def test_numbers_that_are_not_finite_are_left_out_with_a_warning():
    result = {"metrics": {}, "warnings": [], "real": {}}
    add_numbers(result, {"elbo": -1.0, "ess": float("nan")})
    add_rows(
        result, {"weighted": {"log_z": float("-inf"), "weightless": 0.25}, "hmc": {"bad": 1e16}}
    )
    assert result["metrics"] == {"elbo": -1.0}
    assert result["rows"] == {"weighted": {"weightless": 0.25}, "hmc": {}}
    assert result["warnings"] == [
        "ess is not finite, or too large",
        "importance-weighted: log_z is not finite, or too large",
        "importance-weighted: 25% of the samples have no finite weight; they got 0",
        "after ten HMC steps: bad is not finite, or too large",
    ]
