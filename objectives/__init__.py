"""Training methods: one file each, by the name that `objective.name` takes."""

from collections.abc import Callable

from objectives.base import Objective
from objectives.flow_matching import flow_matching
from objectives.shortcut import shortcut

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "flow_matching": flow_matching,
    "shortcut": shortcut,
}
