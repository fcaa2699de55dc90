"""The network of a config: its fields written out, and the network that they describe."""

from ml_collections import ConfigDict

from fewstep.models import NETWORKS
from fewstep.models.network import Architecture, Network
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.needs import network_needs
from fewstep.training.construct import choose, construct
from fewstep.training.spaces import build_space


def architecture(config: ConfigDict) -> Architecture:
    """The kind of network that a config names. Raises ValueError."""
    return choose(NETWORKS, config.model.name, "model.name")


def build_network(config: ConfigDict) -> Network:
    """The network of a config whose data fields are resolved. Raises ValueError."""
    builders = {name: kind.build for name, kind in NETWORKS.items()}
    inputs = build_space(config).shape, config.data.num_classes
    return construct(builders, written_out(config).model, "model", *inputs)


def written_out(config: ConfigDict) -> ConfigDict:
    """The config with all fields of its network in `model`, as a run records it.

    A field that is None or missing is what the method needs (objectives/needs.py), else the
    network's own default. A None of another network's field is left out. Raises ValueError for an
    unknown network.
    """
    own = architecture(config).fields
    method = choose(OBJECTIVES, config.objective.name, "objective.name")
    needed = network_needs(method, config.objective)
    own |= {name: value for name, value in needed.items() if name in own}
    config = config.copy_and_resolve_references()
    model = config.model
    with model.unlocked():
        for name in [*model, *own]:
            if model.get(name) is None and name in own:
                model[name] = own[name]
            elif model.get(name) is None:
                del model[name]
    return config


def shrunk(config: ConfigDict) -> ConfigDict:
    """The config with a tiny network, for examples of its resolved data fields."""
    config = written_out(config)
    config.model.update(architecture(config).shrink(config.model, build_space(config).shape))
    return config


def title(config: ConfigDict) -> str:
    """What people call the network of a config, such as "dit B/2"."""
    return architecture(config).title(written_out(config).model)
