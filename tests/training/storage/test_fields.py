import math

import pytest

from fewstep.configs import base
from fewstep.configs.methods import METHODS
from fewstep.training.storage.fields import (
    FIELDS,
    OPTIMIZER,
    check_field_values,
    field_range,
    iterate_fields,
)
from tests.configs.test_configs import FILES, config_of
from tests.training.runs import small_config

NAN, INF = math.nan, math.inf
# field -> values that are refused, and their nearest neighbours that are not
EDGES = {
    "seed": ((-1, 2**32, 1.5, True), (0, 2**32 - 1)),
    "steps": ((0, -3, 2**31), (1, 2**31 - 1, None)),
    "batch_size": ((0, -64, 2**31), (1,)),
    "micro_batches": ((0,), (1,)),
    "steps_per_dispatch": ((0,), (1,)),
    "pairs.count": ((0,), (1,)),
    "pairs.steps": ((0, 2.0), (1,)),
    "data.num_classes": ((-2,), (-1, 0)),
    "data.image_size": ((-1,), (0,)),
    "model.patch_size": ((0,), (1,)),
    "model.dropout": ((1.0, -0.1, NAN), (0.0, 0.999)),
    "path.sigma_max": ((0.0, NAN, INF, "80"), (None, 80.0)),
    "prediction.sigma_data": ((0.0, NAN), (None, 0.5)),
    "optimizer.learning_rate": ((NAN, INF, -1e-3, 1e39, 10**400, "fast"), (0, 0.0, 1e30)),
    "optimizer.b1": ((1.0, -0.1, NAN), (0.0, 0.999)),
    "optimizer.b2": ((1.0, 2.0), (0.0, 0.999)),
    "optimizer.eps": ((0.0, -1e-8, NAN), (1e-30,)),
    "optimizer.weight_decay": ((-0.1, NAN, INF), (0.0,)),
    "optimizer.clip_norm": ((-1.0, NAN), (0.0, 1.0)),
    "optimizer.warmup_steps": ((-1,), (0,)),
    "optimizer.spike_window": ((1,), (2,)),
    "ema.decays": (((1.0,), (-0.1,), (0.9, NAN), 0.999, ("a",)), ((), (0.0, 0.9999))),
    "ema.power_stds": (((0.0,), (NAN,)), ((), (0.1,))),
    "mesh.data": ((0, -2), (-1, 1)),
    "checkpoint.every": ((-1,), (0,)),
    "checkpoint.keep": ((-1,), (0,)),
    "checkpoint.keep_hours": ((-1.0, NAN, INF), (0.0, 0.5)),
    "checkpoint.keep_steps": (((-1,), (2.5,)), ((), (5,))),
    "watchdog.seconds": ((0.0, -1.0, NAN), (0.1,)),
    "watchdog.exit_after": ((-1.0, NAN), (0.0,)),
    "watchdog.disk_speed": ((-1.0, NAN), (0.0,)),
    "log.every": ((-1, 2.5), (0, 1)),
    "log.to": (((3,), "csv", None), ((), ("tensorboard", "csv"))),
    "evaluate.every": ((-1,), (0,)),
    "evaluate.steps": (((0,), (1, -4), (2.0,), (True,), 4, "4"), ((), (1, 4))),
    "evaluate.num_samples": ((0, -5), (1,)),
    "evaluate.final_samples": ((-5,), (0, 50_000)),
    "evaluate.batch_size": ((0,), (1,)),
    "evaluate.guidance_scale": ((NAN, INF, (), (1.0, NAN)), (None, 1.0, (1.0, 2.0))),
    "objective.guidance_scale": ((NAN, INF, 1e39, 10**400, (1.0, 2.0)), (1.0, None)),
    "objective.label_dropout": ((None, NAN, 1.1, -0.1), (0.0, 1.0)),
    "objective.solver": ((3, None, "heun"), ()),
    "objective.solver.name": (({}, 3, None), ("", "heun")),
    "objective.time_sampler.mean": ((2**31, "x", {}, ()), (None, -1.2)),
    "objective.target_decay": ((NAN,), (0.5,)),
    "player_optimizers.network.learning_rate": ((NAN, -1.0), (0.0,)),
    "player_optimizers.network.b1": ((1.0,), (0.0,)),
    "player_optimizers.network": ((3,), ()),
    "data.label_shares": (("", "none", None, 3), ("data", "equal")),
    "debug": (("no", 0), (True,)),
    "method": ((5,), ("",)),
    "data": ((3, None), ()),
}


def with_field(name, value):
    """A config with a field set to a value that ml_collections' own checks might refuse."""
    fields = small_config().to_dict()
    *groups, last = name.split(".")
    group = fields
    for part in groups:
        group = group.setdefault(part, {})
    group[last] = value
    return base.ConfigDict(fields)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (bad, _) in EDGES.items() for value in bad]
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(name, value):
    with pytest.raises(ValueError, match=rf"^{name}=.* must be ") as error:
        check_field_values(with_field(name, value))
    assert len(str(error.value)) < 600


def test_the_nearest_allowed_values_pass():
    for name, (_, good) in EDGES.items():
        for value in good:
            check_field_values(with_field(name, value))


def test_every_field_of_a_config_has_a_range():
    fields = dict(iterate_fields(base.config().to_dict()))
    assert set(fields) == set(FIELDS)
    own = {name.removeprefix("optimizer.") for name in fields if name.startswith("optimizer.")}
    assert own == set(OPTIMIZER)


@pytest.mark.parametrize("file", FILES)
def test_every_config_passes_and_each_of_its_fields_has_a_range(file):
    for method in METHODS:
        config = config_of(file, method)
        check_field_values(config)
        assert [n for n, _ in iterate_fields(config.to_dict()) if field_range(n) is None] == []
