"""Declares the network inputs and parts that a method needs, beside the method's function.

    @needs(loss_weight=lambda adaptive_weight: adaptive_weight)
    def continuous_training(model, *, adaptive_weight: bool = True, ...) -> Objective

A need is the required value of a field of the config's `model`, or a function that computes this
value. The arguments of that function are fields of the method. A config that leaves such a field
open gets the required value. A network with another value raises an error.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from fewstep.models.model import Model, check_needs
from fewstep.objectives.base import Objective

Factory = Callable[..., Objective]
# Needs of a method that declares none.
NOTHING = {
    "second_time": "none",
    "guidance_input": False,
    "guidance_interval": False,
    "trajectory": 1,
    "loss_weight": False,
}


def needs(**declared: Any) -> Callable[[Factory], Factory]:
    """Decorates a function from (model, *, fields) to an Objective with the needs of its network.

    declared: needs by field of the config's `model`. The decorated function raises ValueError
    unless the model's network has these values.
    """

    def declare(factory: Factory) -> Factory:
        @wraps(factory)
        def checked(model: Model, **fields: Any) -> Objective:
            objective = factory(model, **fields)
            check_needs(model, **network_needs(checked, fields))
            return objective

        checked.needs = declared
        return checked

    return declare


def network_defaults(
    own: Mapping[str, Any], factory: Factory, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Values of network fields that a config leaves open: the method's needs, else defaults.

    own: the network's fields with their defaults. factory, fields: the method and its fields.
    """
    needed = network_needs(factory, fields)
    return {name: needed.get(name, default) for name, default in own.items()}


def network_needs(factory: Factory, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The required value of each field of the config's `model`, for a method with these fields.

    A field of the method that is None or missing has its default.
    """
    parameters = inspect.signature(factory).parameters

    def value(need: Any) -> Any:
        if not callable(need):
            return need
        names = inspect.signature(need).parameters
        given = {name: fields.get(name) for name in names}
        return need(**{n: parameters[n].default if v is None else v for n, v in given.items()})

    return NOTHING | {name: value(need) for name, need in getattr(factory, "needs", {}).items()}
