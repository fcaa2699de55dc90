"""Parts by their names in a config: entries of tables, or functions called with the fields."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fewstep.messages import no_choice


def choose(table: Mapping[str, Any], name: str, field: str) -> Any:
    """table[name]; raises ValueError, which names the nearest entry, if it is not there."""
    if name in table:
        return table[name]
    raise ValueError(no_choice(field, name, table))


def construct(
    table: Mapping[str, Callable[..., Any]], fields: Mapping[str, Any], prefix: str, *inputs: Any
) -> Any:
    """table[fields["name"]](*inputs, **the other fields), where a field of None is left out.

    Raises ValueError for an unknown name and for a field that the function does not take.
    """
    function = choose(table, fields["name"], f"{prefix}.name")
    given = {k: v for k, v in fields.items() if k != "name" and v is not None}
    accepted = list(inspect.signature(function).parameters)[len(inputs) :]
    for field in given:
        if field not in accepted:
            raise ValueError(
                f"{prefix}.{field} is not used by {fields['name']}, which takes "
                f"{', '.join(accepted) or 'no field'}; leave it unset"
            )
    return function(*inputs, **given)
