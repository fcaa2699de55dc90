"""The network of a config: its fields with all defaults, and the network that they describe."""

from ml_collections import ConfigDict

from fewstep.models import NETWORKS
from fewstep.models.network import Architecture, Network
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.needs import network_defaults
from fewstep.training.construct import construct, look_up
from fewstep.training.spaces import build_space


def architecture(config: ConfigDict) -> Architecture:
    """The architecture that a config names. Raises ValueError."""
    return look_up(NETWORKS, config.model.name, "model.name")


def build_network(config: ConfigDict) -> Network:
    """The network of a config whose data fields are resolved. Raises ValueError."""
    builders = {name: kind.build for name, kind in NETWORKS.items()}
    inputs = build_space(config).shape, config.data.num_classes
    return construct(builders, with_network_fields(config).model, "model", *inputs)


def with_network_fields(config: ConfigDict) -> ConfigDict:
    """The config with all fields of its network in `model`, as a run records it.

    A field that is None or missing takes the value that the method needs (objectives/needs.py),
    else the network's own default. Drops fields of other networks that are None. Raises ValueError
    for an unknown network.
    """
    method = look_up(OBJECTIVES, config.objective.name, "objective.name")
    own = network_defaults(architecture(config).fields, method, config.objective)
    config = config.copy_and_resolve_references()
    model = config.model
    with model.unlocked():
        for name in [*model, *own]:
            if model.get(name) is None and name in own:
                model[name] = own[name]
            elif model.get(name) is None:
                del model[name]
    return config


def with_tiny_network(config: ConfigDict) -> ConfigDict:
    """The config with a tiny network that fits its examples. Expects resolved data fields.

    Fields of the network in `debug_keeps` stay.
    """
    config = with_network_fields(config)
    small = architecture(config).shrink(config.model, build_space(config).shape)
    config.model.update({k: v for k, v in small.items() if f"model.{k}" not in config.debug_keeps})
    return config


def network_title(config: ConfigDict) -> str:
    """The usual name of a config's network, such as "dit B/2"."""
    return architecture(config).title(with_network_fields(config).model)
