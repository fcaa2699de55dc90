"""What a method needs of its network, declared once beside the function that makes the objective.

    @needs(loss_weight=lambda adaptive_weight: adaptive_weight)
    def continuous_training(model, *, adaptive_weight: bool = True, ...) -> Objective

A need is a field of the config's `model`: its value, or a function of the method's fields that its
arguments name. A config that leaves such a field open gets the need's value; a network that differs
from it is refused.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from fewstep.models.model import Model, check_needs
from fewstep.objectives.base import Objective

Factory = Callable[..., Objective]
# What a method needs that declares nothing.
NOTHING = {"second_time": "none", "guidance_input": False, "loss_weight": False}


def needs(**declared: Any) -> Callable[[Factory], Factory]:
    """A decorator of a function from (model, *, fields) to an Objective; declared: its needs.

    The function then raises ValueError for a model whose network does not have just these.
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


def network_needs(factory: Factory, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a method with these fields needs of its network, by field of the config's `model`.

    A field of the method that is None or missing is its default.
    """
    parameters = inspect.signature(factory).parameters

    def value(need: Any) -> Any:
        if not callable(need):
            return need
        names = inspect.signature(need).parameters
        given = {name: fields.get(name) for name in names}
        return need(**{n: parameters[n].default if v is None else v for n, v in given.items()})

    return NOTHING | {name: value(need) for name, need in getattr(factory, "needs", {}).items()}
