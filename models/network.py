"""The contract between the networks and the rest of Fewstep: a pair of pure functions.

`init` makes one parameter tree, `apply` evaluates the architecture on any such tree. One
architecture therefore serves trained, averaged and frozen parameters alike, and derivatives in the
inputs (`jax.jvp`) or in the parameters (`jax.grad`), in any order, act on `apply`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewstep.messages import unknown_choice

Array = jax.Array
Key = jax.Array
Params = Mapping[str, Any]
Condition = Mapping[str, Array]

DTYPES = ("float32", "bfloat16")  # of the matrix products inside a network
# Name of the part of the parameters that has equal layers stacked on a first axis, for a loop.
STACKED = "blocks"


class Network(NamedTuple):
    """A network without its parameters.

    init: key -> parameters, a nested dict of float32 arrays.
    apply: `apply(params, x, t, s, condition, *, train=False, rng=None)` -> float32 array of the
        shape of `x`. `x`: [B, ...] floating; `t`, `s`: [B] floating, with `s <= t`;
        `condition`: {"label": int [B], optionally "guidance_scale": floating [B]}. The label -1
        is the null class. `train=True` turns dropout on, which then needs the key `rng`.
        Raises ValueError for an input of another shape or type, and for a missing condition.
    second_time: what the network makes of `s`, for methods that need it to do something.
    guidance_input: whether it reads the condition's guidance scale.
    log_weight: (params, t: [B]) -> [B], the learned log-weight of a loss at t, or None.
    shape: of one example x, without the batch.
    lines: of tokens in an example, which devices can share out; 1 if they cannot.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]
    second_time: str = "none"
    guidance_input: bool = False
    log_weight: Callable[[Params, Array], Array] | None = None
    shape: tuple[int, ...] = ()
    lines: int = 1


def network(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    training: nn.Module | None = None,
    weight: nn.Module | None = None,
) -> Network:
    """The network of a Linen module that is called as `module(x, t, s, condition)`.

    shape: of one example, without the batch.
    training: the module with dropout, for `train=True`; without it both modes are alike.
    weight: a module t -> [B] whose parameters live beside the network's, as "loss_weight".
    """

    def init(key: Key) -> Params:
        time = jnp.zeros((1,))
        condition = {"label": jnp.zeros((1,), jnp.int32), "guidance_scale": jnp.ones((1,))}
        params = module.init(key, jnp.zeros((1, *shape)), time, time, condition)["params"]
        if weight is None:
            return params
        return {**params, "loss_weight": weight.init(key, time)["params"]}

    def log_weight(params: Params, t: Array) -> Array:
        return weight.apply({"params": params["loss_weight"]}, t)

    def apply(
        params: Params,
        x: Array,
        t: Array,
        s: Array,
        condition: Condition,
        *,
        train: bool = False,
        rng: Key | None = None,
    ) -> Array:
        check_inputs(x, t, s, shape)
        if not train or training is None:
            return module.apply({"params": params}, x, t, s, condition)
        if rng is None:
            raise ValueError("rng is missing: with train=True, dropout needs a key.")
        return training.apply({"params": params}, x, t, s, condition, rngs={"dropout": rng})

    return Network(init, apply, log_weight=None if weight is None else log_weight, shape=shape)


def check_inputs(x: Array, t: Array, s: Array, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless x is [B, *shape], t and s are [B], and all three are floating."""
    if jnp.shape(x)[1:] != shape or jnp.ndim(x) != len(shape) + 1:
        expected = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"x has shape {jnp.shape(x)}; this network takes [{expected}].")
    for name, value in (("t", t), ("s", s)):
        if jnp.shape(value) != jnp.shape(x)[:1]:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}; give one time per example, "
                f"{jnp.shape(x)[:1]}."
            )
    for name, value in (("x", x), ("t", t), ("s", s)):
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"{name} is {jnp.result_type(value)}; convert it to float32.")


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError, naming the nearest choice, unless `value` is one of `choices`."""
    names = list(choices)
    if value not in names:
        raise ValueError(unknown_choice(field, value, names))


def check_integers(minimum: int, **fields: int) -> None:
    """Raises ValueError unless every field is an integer of at least `minimum`."""
    for field, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{field}={value!r} must be an integer of at least {minimum}.")
