import pytest

from fewstep.configs.base import use_network
from fewstep.training.cost.sampling_cost import counts_per_sample, evaluations_per_sample
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


@pytest.mark.parametrize(
    ("method", "fields", "counts"),
    [
        ("dis", {}, {1: (1, 1), 4: (7, 7)}),
        ("dis", {"objective.solver.name": "euler_maruyama"}, {4: (4, 4)}),
        ("dds", {"objective.solver.name": "exponential"}, {4: (4, 4)}),
        ("dis", {"model.score_input": False}, {4: (7, 0)}),
        ("scds", {}, {1: (1, 1), 4: (4, 4)}),
    ],
)
def test_gradients_of_a_density_are_counted_beside_evaluations(method, fields, counts):
    assert counts_per_sample(small_config(method, **fields), counts, 1.0) == counts


def test_what_samples_by_features_or_a_codec_is_counted():
    assert evaluations_per_sample(small_config("genie"), (1, 4), 1.0) == {1: 1, 4: 4}
    assert evaluations_per_sample(small_config("autoencoder"), (1,), 1.0) == {}


def test_a_student_without_the_score_takes_no_gradient():
    fields = {"data.name": "density:gmm9", "data.num_classes": 0, "data.image_size": 0}
    fields |= {"data.channels": 0, "model.score_input": True, "model.size": None}
    config = small_config("consistency_sampler")
    use_network(config, "mlp")
    config.update_from_flattened_dict({k: v for k, v in fields.items() if v is not None})
    assert counts_per_sample(config, (1, 2), 1.0) == {1: (1, 0), 2: (2, 0)}
    config.objective.reads_score = True
    assert counts_per_sample(config, (1, 2), 1.0) == {1: (1, 1), 2: (2, 2)}
