"""Forward-mode derivatives of networks in their inputs."""

from collections.abc import Callable
from typing import Any

import jax


def forward_derivative(function: Callable[..., Any], inputs: tuple, directions: tuple) -> Any:
    """(function(*inputs), its derivative along the directions), as `jax.jvp` has them.

    Raises ValueError if the function has an operation without a forward derivative.
    """
    try:
        return jax.jvp(function, inputs, directions)
    # JAX raises these for an operation without forward derivative, the second inside jax.grad.
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            "this method needs a network that jax.jvp can differentiate; this one has an operation "
            f"without a forward derivative ({str(error).splitlines()[0]}); for a DiT use "
            "model.attention=xla"
        ) from error
