import pytest

from tests.training.runs import small_config, small_experiment
from training.experiment import build


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path.name": "liner"}, r"path.name='liner' .* did you mean 'linear'"),
        ({"path.sigma_data": 0.5}, "path.sigma_data is not used by linear"),
        (
            {"objective.time_sampler.mean": 0.0},
            "time_sampler.mean is not used by uniform",
        ),
        ({"optimizer.name": "adamx"}, "optimizer.name='adamx'"),
        ({"optimizer.schedule": "cosinus"}, "did you mean 'cosine'"),
        ({"ema.sample_with": "ema_0.99"}, "did you mean 'ema_0.999'"),
        ({"model.size": "nanos"}, "'nano'"),
        ({"model.second_time": "none"}, "model.second_time"),
        ({"objective.guidance_scale": 2.0, "objective.label_dropout": 0.0}, "null class"),
        ({"objective.guidance_scale": 2.0, "data.num_classes": 0}, "null class"),
        ({"teacher": "runs/x"}, "teacher is not used"),
    ],
)
def test_bad_fields_are_named_with_the_nearest(fields, message):
    with pytest.raises(ValueError, match=message):
        build(small_config(**fields))


def test_unknown_player_optimizer():
    config = small_config()
    config.player_optimizers = {"fake_score": {"b1": 0.0}}
    with pytest.raises(ValueError, match="player_optimizers='fake_score'"):
        build(config)
    config.player_optimizers = {"network": {"learnig_rate": 0.0}}
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        build(config)


def test_a_player_s_own_optimizer_fields():
    config = small_config()
    config.player_optimizers = {"network": {"learning_rate": 0.5}}
    assert build(config).optimizers["network"].learning_rate(0) == 0.5


def test_several_averages_and_the_one_that_samples():
    fields = {"ema.decays": (0.9, 0.99), "ema.power_stds": (0.1,)}
    _, experiment = small_experiment(**fields)
    assert set(experiment.objective.followers) == {"target", "ema_0.9", "ema_0.99", "power_0.1"}
    assert experiment.sample_with == "ema_0.9"
    assert small_experiment(**fields, **{"ema.sample_with": "network"})[1].sample_with == "network"
