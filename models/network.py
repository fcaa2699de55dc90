"""The contract between networks and the rest of Fewstep: pure functions.

`init` makes a parameter tree, and `apply` evaluates the network with any such tree. One network
therefore serves trained, averaged and frozen parameters alike. Derivatives in the inputs
(`jax.jvp`) or in the parameters (`jax.grad`), in any order, act on `apply`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewstep.latents.codec import Codec
from fewstep.messages import unknown_choice

# Floating entries of a condition, [B], that some networks read.
GUIDANCE = ("guidance_scale", "guidance_start", "guidance_end")

Array = jax.Array
Key = jax.Array
Params = Mapping[str, Any]
Condition = Mapping[str, Array]

DTYPES = ("float32", "bfloat16")  # of the matrix products inside a network
# Entry of the parameters of equal layers, stacked on a first axis for a loop.
STACKED = "blocks"
# Linen's collection of values that a module sows, and the name of its hidden features there.
SOWN, HIDDEN = "intermediates", "hidden"


class Head(NamedTuple):
    """A module beside a network that reads the network's hidden features (models/heads.py).

    name: entry of its parameters in the network's.
    reads: names of the features that it reads.
    apply: (parameters of the network, hidden features by name) -> output of the head, [B, ...].
    """

    name: str
    reads: tuple[str, ...]
    apply: Callable[[Params, Mapping[str, Array]], Array]


class Network(NamedTuple):
    """A network without its parameters.

    init: key -> parameters, a nested dict of float32 arrays.
    apply: `apply(params, x, t, s, condition, *, train=False, rng=None)` -> float32 array of the
        shape of `x`. `x`: [B, ...] floating; `t`, `s`: [B] floating, with `s <= t`, or [1] where
        all rows share them, which embeds them once;
        `condition`: {"label": int [B], optionally "guidance_scale", "guidance_start" and
        "guidance_end": floating [B], and "score": floating [B, ...]}. The label -1 is the null
        class. `train=True` turns dropout on, which then needs the key `rng`. Raises ValueError for
        an input of another shape or type, and for a missing condition.
    second_time: how the network uses `s`: "none", "time", "interval" or "step_size".
    guidance_input: whether it reads the condition's guidance scale.
    guidance_interval: whether it reads the ends of the interval in which it is guided.
    trajectory: rows that it evaluates together, the times of one trajectory; 1 for none.
    log_weight: (params, t: [B]) -> [B], the learned log-weight of a loss at t, or None.
    shape: shape of one example x, without the batch.
    token_rows: token rows per example; devices can split them. 1 if they cannot.
    hidden: names of its hidden features, from the input to the output.
    features: `features(params, x, t, s, condition, names, *, train=False, rng=None)` -> (output of
        `apply`, {name: hidden feature [B, ...]}), both from one evaluation. Raises ValueError as
        `apply` does, and for a name that is not in `hidden`.
    heads: heads that were added to it (models/heads.py).
    codec: the codec whose parameters it has, or None. It then reconstructs images, and is no
        denoiser.
    fit: images as stored [N, ...] -> parameters to start from, a part of those of `init`; None if
        all are random.
    score_input: whether it reads the condition's score, of the density that a run samples.
    score_precision: that of the Gaussian by which this score fades with noise (models/model.py).
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]
    second_time: str = "none"
    guidance_input: bool = False
    guidance_interval: bool = False
    trajectory: int = 1
    log_weight: Callable[[Params, Array], Array] | None = None
    shape: tuple[int, ...] = ()
    token_rows: int = 1
    hidden: tuple[str, ...] = ()
    features: Callable[..., tuple[Array, dict[str, Array]]] | None = None
    heads: tuple[Head, ...] = ()
    codec: Codec | None = None
    fit: Callable[[Any], Params] | None = None
    score_input: bool = False
    score_precision: float = 0.0

    def head(self, name: str) -> Head:
        """The head of that name. Raises KeyError if there is none."""
        return {head.name: head for head in self.heads}[name]


def linen_network(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    training: nn.Module | None = None,
    weight: nn.Module | None = None,
    hidden: tuple[str, ...] = (),
) -> Network:
    """The network of a Linen module that is called as `module(x, t, s, condition)`.

    shape: shape of one example, without the batch.
    training: the module with dropout, for `train=True`; None if both modes are the same.
    weight: a module t: [B] -> [B], the log-weight; its parameters are the entry "loss_weight".
    hidden: keys of the dict of features that the module sows as HIDDEN.
    """

    def init(key: Key) -> Params:
        time = jnp.zeros((1,))
        condition = {"label": jnp.zeros((1,), jnp.int32), **dict.fromkeys(GUIDANCE, time)}
        condition["score"] = jnp.zeros((1, *shape))
        params = module.init(key, jnp.zeros((1, *shape)), time, time, condition)["params"]
        if weight is None:
            return params
        return {**params, "loss_weight": weight.init(key, time)["params"]}

    def log_weight(params: Params, t: Array) -> Array:
        return weight.apply({"params": params["loss_weight"]}, t)

    def evaluate(
        params: Params,
        x: Array,
        t: Array,
        s: Array,
        condition: Condition,
        mutable: Any,
        train: bool = False,
        rng: Key | None = None,
    ) -> Any:
        check_inputs(x, t, s, shape)
        if not train or training is None:
            return module.apply({"params": params}, x, t, s, condition, mutable=mutable)
        if rng is None:
            raise ValueError("rng is missing: with train=True, dropout needs a key.")
        rngs = {"dropout": rng}
        return training.apply({"params": params}, x, t, s, condition, rngs=rngs, mutable=mutable)

    def apply(
        params: Params, x: Array, t: Array, s: Array, condition: Condition, **mode: Any
    ) -> Array:
        return evaluate(params, x, t, s, condition, False, **mode)

    def features(
        params: Params,
        x: Array,
        t: Array,
        s: Array,
        condition: Condition,
        names: Iterable[str],
        **mode: Any,
    ) -> tuple[Array, dict[str, Array]]:
        for name in names:
            check_choice("feature", name, hidden)
        output, sown = evaluate(params, x, t, s, condition, [SOWN], **mode)
        return output, {name: sown[SOWN][HIDDEN][0][name] for name in names}

    return Network(
        init,
        apply,
        log_weight=None if weight is None else log_weight,
        shape=shape,
        hidden=hidden,
        features=features,
    )


class Architecture(NamedTuple):
    """A kind of network, an entry of NETWORKS.

    build: `build(shape, num_classes, **fields)` -> Network for examples x of that shape. The
        arguments after these two have defaults; they are the fields of the config's `model`. Raises
        ValueError for a field out of its range, and for a shape that the network cannot take.
    shrink: (fields, shape) -> the fields that make the network tiny, for a debug run of a minute.
    title: fields -> the usual name of a network with these fields, such as "dit B/2".
    widths: width of the network by value of its field `size`, the smallest first; {} without one.
    """

    build: Callable[..., Network]
    shrink: Callable[[Mapping[str, Any], tuple[int, ...]], Mapping[str, Any]]
    title: Callable[[Mapping[str, Any]], str]
    widths: Mapping[str, int] = {}

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the config's `model` with their defaults."""
        parameters = list(inspect.signature(self.build).parameters.values())
        return {parameter.name: parameter.default for parameter in parameters[2:]}


def check_inputs(x: Array, t: Array, s: Array, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless x is [B, *shape], t and s are [B] or [1], and all are floating."""
    if np.shape(x)[1:] != shape or np.ndim(x) != len(shape) + 1:
        expected = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"x has shape {np.shape(x)}; this network takes [{expected}].")
    for name, value in (("t", t), ("s", s)):
        if np.shape(value) not in (np.shape(x)[:1], (1,)):
            raise ValueError(
                f"{name} has shape {np.shape(value)}; give one time per example, {np.shape(x)[:1]}."
            )
    for name, value in (("x", x), ("t", t), ("s", s)):
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"{name} is {jnp.result_type(value)}; convert it to float32.")


def check_choice(field: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`; the error names the nearest choice."""
    names = list(choices)
    if value not in names:
        raise ValueError(unknown_choice(field, value, names))


def check_integers(minimum: int, **fields: int) -> None:
    """Raises ValueError unless every field is an integer of at least `minimum`."""
    for field, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{field}={value!r} must be an integer of at least {minimum}.")
