"""The network of a config: its fields with defaults, its tiny version, and its name."""

import pytest

from fewstep.configs import overrides
from fewstep.configs.base import UNETS
from fewstep.models import NETWORKS
from fewstep.training.networks import (
    build_network,
    network_title,
    with_network_fields,
    with_tiny_network,
)
from tests.training.runs import small_config


def config_with(name, **fields):
    """A small config whose network the command line replaced. fields: those given there."""
    config = small_config("flow_matching")
    given = {f"model.{field}": value for field, value in {"name": name, **fields}.items()}
    before = {field: config.model[field.removeprefix("model.")] for field in given}
    config.update_from_flattened_dict(given)
    overrides.forget_replaced(config, given, before)
    return config


@pytest.mark.parametrize("name", NETWORKS)
def test_a_record_has_the_fields_of_its_network_and_no_other(name):
    model = with_network_fields(config_with(name)).model.to_dict()
    # A U-Net keeps the time scale of flow_matching, whose path is not `ve`.
    own = {"dit": {"size": "nano"}} | dict.fromkeys(UNETS, {"time_scale": 1000.0})
    own = own.get(name, {})
    assert model == {"name": name, **NETWORKS[name].fields, **own}


def test_a_given_field_stays_and_those_of_the_file_do_not():
    config = config_with("mlp", width=24, time_scale=7.0)
    assert (config.model.size, config.model.dropout) == (None, None)
    model = with_network_fields(config).model
    assert (model.width, model.depth, model.time_scale) == (24, 3, 7.0)
    assert build_network(config).shape == (8, 8, 1)


def test_a_record_without_a_field_of_today_has_its_default():
    config = small_config("flow_matching")
    with config.model.unlocked():
        del config.model["adaln_zero"]
    assert with_network_fields(config).model.adaln_zero is True


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mlp", {"patch_size": 4}, "model.patch_size is not used by mlp, which takes width, depth"),
        ("dit", {"width": 4}, "model.width is not used by dit, which takes size, patch_size"),
        ("dot", {}, "model.name='dot' .* did you mean 'dit'"),
    ],
)
def test_a_field_that_the_network_does_not_have_is_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        build_network(config_with(name, **fields))


@pytest.mark.parametrize(
    ("name", "fields", "small"),
    [
        ("dit", {"size": "B"}, {"size": "nano", "patch_size": 2}),
        ("mlp", {"width": 512, "depth": 8}, {"width": 64, "depth": 2}),
        ("mlp", {"width": 8, "depth": 1}, {"width": 8, "depth": 1}),
        ("song_unet", {}, {"width": 16, "depth": 1, "multipliers": (1, 1)}),
        ("adm_unet", {"width": 8}, {"width": 8, "depth": 1, "multipliers": (1, 1)}),
    ],
)
def test_a_tiny_network_is_the_same_otherwise(name, fields, small):
    config = config_with(name, **fields)
    assert (
        with_tiny_network(config).model.to_dict()
        == with_network_fields(config).model.to_dict() | small
    )


def test_networks_are_called_by_their_sizes():
    assert network_title(config_with("dit", size="XL")) == "dit XL/2"
    assert network_title(config_with("mlp", width=24)) == "mlp 3 x 24"
    assert network_title(config_with("adm_unet")) == "adm_unet 192 x 1-2-3-4"
    smooth = config_with("song_unet", variant="ncsnpp", multipliers=(1, 2))
    assert network_title(smooth) == "song_unet ncsnpp 128 x 1-2"
