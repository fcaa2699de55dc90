"""Networks by name. Outside this folder a network is a `Network`: two pure functions."""

import inspect
from collections.abc import Callable
from typing import Any

from fewstep.models.dit import dit
from fewstep.models.mlp import mlp
from fewstep.models.network import Network, check_choice

NETWORKS: dict[str, Callable[..., Network]] = {"dit": dit, "mlp": mlp}


def build(name: str, **fields: Any) -> Network:
    """The network `NETWORKS[name](**fields)`.

    Raises ValueError for an unknown name or field, naming the nearest, for a missing field, and
    for a field out of its range.
    """
    check_choice("network", name, NETWORKS)
    parameters = inspect.signature(NETWORKS[name]).parameters
    for field in fields:
        check_choice(f"{name} field", field, parameters)
    for field, parameter in parameters.items():
        if parameter.default is parameter.empty and field not in fields:
            raise ValueError(f"{field} is missing: the network {name!r} needs it.")
    return NETWORKS[name](**fields)
