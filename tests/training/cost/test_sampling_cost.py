import pytest

from fewstep.training.cost.sampling_cost import evaluations_per_sample
from tests.training.runs import small_config


@pytest.mark.parametrize(
    ("method", "scale", "evaluations"),
    [
        ("edm", 1.0, {1: 1, 4: 7, 18: 35}),  # Heun: two a step, one in the last
        ("flow_matching", 1.0, {1: 1, 4: 4}),  # Euler
        ("flow_matching", 2.0, {1: 2, 4: 8}),  # with and without the condition
        ("shortcut", 1.0, {1: 1, 4: 4, 128: 128}),
        ("cd", 1.0, {1: 1, 4: 4}),
        ("sim", 1.0, {1: 1}),
    ],
)
def test_a_sample_takes_the_evaluations_of_its_sampler(method, scale, evaluations):
    assert evaluations_per_sample(small_config(method), evaluations, scale) == evaluations


def test_a_number_of_steps_that_a_method_cannot_make_is_refused():
    with pytest.raises(ValueError, match="in 1 step, not in 4"):
        evaluations_per_sample(small_config("sim"), (4,), 1.0)
