"""The protocol of an evaluation tells samples apart that a field of the objective changes."""

import pytest

from fewstep.eval.new_result import evaluation_protocol
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
