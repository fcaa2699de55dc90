"""The needs of methods: declared once, filled into configs, and checked."""

import pytest

from fewstep.configs.methods import METHODS
from fewstep.diffusion.path import PATHS
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.base import Objective
from fewstep.objectives.needs import NOTHING, needs, network_needs
from fewstep.training.networks import with_network_fields
from tests.networks import affine_network, build_model
from tests.training.runs import small_config

MODEL = build_model(affine_network(), PATHS["linear"]())
OF_METHODS = {
    "shortcut": {"second_time": "step_size"},
    "scds": {"second_time": "step_size"},
    "mean_flow": {"second_time": "interval"},
    "improved_mean_flow": {
        "second_time": "interval",
        "guidance_input": True,
        "guidance_interval": True,
    },
    "dsno": {"second_time": "time", "trajectory": 4},
    **dict.fromkeys(("ctm", "boot"), {"second_time": "time"}),
    **dict.fromkeys(("sct", "scd"), {"loss_weight": True}),
    "lcm": {"guidance_input": True},
    "guidance": {"guidance_input": True},
    "live_reflow": {"second_time": "interval"},
}


@needs(second_time="time", loss_weight=lambda learned, scale: learned and scale > 1.0)
def factory(model, *, learned: bool = True, scale: float = 2.0):
    return Objective({}, {}, None)


@pytest.mark.parametrize("method", METHODS)
def test_a_config_gets_what_its_method_needs(method):
    model = with_network_fields(small_config(method)).model
    if method == "autoencoder":
        assert dict(model) == {"name": "codec", "codec": "f4"}
        return
    found = {name: model[name] for name in NOTHING}
    assert found == NOTHING | OF_METHODS.get(method, {})


@pytest.mark.parametrize(
    ("method", "fields", "needed"),
    [
        ("sct", {"objective.adaptive_weight": False}, {}),
        ("lcm", {"objective.guidance_range": ()}, {}),
        ("cd", {"objective.guidance_range": (1.0, 4.0)}, {"guidance_input": True}),
        ("progressive", {"objective.guidance_range": (1.0, 4.0)}, {"guidance_input": True}),
        (
            "shortcut",
            {"objective.guidance_range": (1.0, 4.0)},
            {"guidance_input": True, "second_time": "step_size"},
        ),
        ("edm", {"model.guidance_input": True}, {"guidance_input": True}),  # as it was given
    ],
)
def test_needs_follow_the_fields_and_given_values_stay(method, fields, needed):
    model = with_network_fields(small_config(method, **fields)).model
    assert {name: model[name] for name in NOTHING} == NOTHING | needed


def test_a_field_that_is_left_open_is_the_method_s_default():
    needed = NOTHING | {"second_time": "time", "loss_weight": True}
    assert network_needs(factory, {}) == network_needs(factory, {"learned": None}) == needed
    assert not network_needs(factory, {"scale": 0.5})["loss_weight"]
    assert network_needs(lambda model: None, {}) == NOTHING


def test_a_network_without_what_is_needed_is_refused():
    with pytest.raises(ValueError, match="needs model.second_time=time, not none"):
        factory(MODEL)
    timed = MODEL._replace(network=MODEL.network._replace(second_time="time"))
    with pytest.raises(ValueError, match="needs model.loss_weight=True, not False"):
        factory(timed)
    assert factory(timed, scale=1.0).followers == {}


def test_every_method_refuses_a_network_with_a_part_that_it_does_not_use():
    unused = MODEL._replace(network=MODEL.network._replace(second_time="interval"))
    with pytest.raises(ValueError, match="needs model.second_time=none, not interval"):
        OBJECTIVES["denoising"](unused)
