"""Distances between a prediction and its target."""

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Annotated, Any, NamedTuple

import chex
import jax.numpy as jnp
from jax import Array

from fewstep.models.convnet import feature_maps
from fewstep.models.lpips import BACKBONES, lpips_distance
from fewstep.objectives.base import Params, per_example
from fewstep.parts import DECODER

# c / sqrt(D) of the pseudo-Huber distance (Song & Dhariwal 2023, section 3.3).
HUBER_SCALE = 0.00054
# The frozen network that `features` reads: the classifier of the data set.
CLASSIFIER = "classifier"
# Those that `lpips` reads begin so; after a colon comes where their weights are. OF_LATENTS stands
# before the name of one that compares latents as they are.
LPIPS, OF_LATENTS = "lpips_", "latent_"
# The frozen decoder of a run's codec, as latents become images for a distance.
CODEC = "codec"
# Smallest squared norm. It makes the gradient of a norm 0 at 0, where it would be NaN.
TINY = 1e-24


class Distance(NamedTuple):
    """d(a, b): [B], of two arrays [B, ...].

    name: its name in DISTANCES.
    between: (a, b) -> [B]; with networks, (the parameters of each, a, b) -> [B].
    least_dimensions: number of dimensions of a - b from which autodiff gives the derivative of the
        gradient of d. Autodiff misses the jumps of this gradient. A norm jumps at 0 only, which has
        no effect in two or more dimensions; the l1 norm jumps wherever an entry is 0.
    networks: names of the frozen networks whose parameters it reads, () for none; after a colon,
        where the weights are. Such a distance compares images.
    """

    name: str
    between: Callable[..., Array]
    least_dimensions: float = 1
    networks: tuple[str, ...] = ()

    def given(self, networks: Mapping[str, Params]) -> "Distance":
        """The distance with the parameters that it reads. networks: those that a loss is given."""
        read = (networks[name] for name in self.networks)
        return self._replace(between=partial(self.between, *read))

    def __call__(self, a: Array, b: Array) -> Array:
        """d(a, b): [B]. Raises AssertionError for arrays of different shapes."""
        chex.assert_equal_shape((a, b))
        return self.between(a, b)


def squared_error(prediction: Array, target: Array) -> Array:
    """(prediction - target)^2, elementwise, of two arrays of one shape."""
    chex.assert_equal_shape((prediction, target))
    return jnp.square(prediction - target)


def squared_norm(a: Array, b: Array) -> Array:
    """|| a - b ||^2 over all dimensions, at least TINY: [B]."""
    return jnp.maximum(a[0].size * per_example(squared_error(a, b)), TINY)


def squared_l2() -> Distance:
    """|| a - b ||^2 / D: the mean of the squared error over dimensions."""
    return Distance("squared_l2", lambda a, b: per_example(squared_error(a, b)))


def l1() -> Distance:
    """|| a - b ||_1 / D."""
    return Distance("l1", lambda a, b: per_example(jnp.abs(a - b)), least_dimensions=inf)


def pseudo_huber(c: float | None = None) -> Distance:
    """sqrt(|| a - b ||^2 + c^2) - c, over all dimensions (Song & Dhariwal 2023, eq. 8).

    c: 0.00054 sqrt(D) by default, as in the paper; 0 gives the norm || a - b ||, which ECT uses.
    """
    check_scale(c)

    def between(a: Array, b: Array) -> Array:
        scale = HUBER_SCALE * a[0].size ** 0.5 if c is None else c
        return jnp.sqrt(squared_norm(a, b) + scale**2) - scale

    return Distance("pseudo_huber", between, least_dimensions=2 if c == 0.0 else 1)


def pseudo_huber_elementwise(c: float = 0.001) -> Distance:
    """The mean over dimensions of sqrt((a - b)^2 + c^2) - c, as in LCM's training code."""
    check_scale(c)
    return Distance(
        "pseudo_huber_elementwise",
        lambda a, b: per_example(jnp.sqrt(jnp.maximum(squared_error(a, b) + c**2, TINY)) - c),
        least_dimensions=inf if c == 0.0 else 1,
    )


def norm(power: float = 1.0) -> Distance:
    """|| a - b ||^power over all dimensions, for a power of 1 or more."""
    if power < 1.0:
        raise ValueError(f"distance.power={power} must be 1 or more")
    return Distance(
        "norm",
        lambda a, b: squared_norm(a, b) ** (0.5 * power),
        least_dimensions=2 if power == 1.0 else 1,
    )


def huber(c: float = 1.0) -> Distance:
    """|| a - b ||^2 / 2 up to || a - b || = c, c (|| a - b || - c / 2) beyond."""
    check_scale(c, positive=True)

    def between(a: Array, b: Array) -> Array:
        square = squared_norm(a, b)
        return jnp.where(square <= c**2, 0.5 * square, c * (jnp.sqrt(square) - 0.5 * c))

    return Distance("huber", between)


def log_cosh() -> Distance:
    """The mean over dimensions of log cosh(a - b)."""

    def between(a: Array, b: Array) -> Array:
        return per_example(jnp.logaddexp(a - b, b - a) - jnp.log(2.0))

    return Distance("log_cosh", between)


def exponential(c: float = 1.0) -> Distance:
    """exp(|| a - b ||^2 / c^2) - 1. Its mean is finite only if a - b has light tails."""
    check_scale(c, positive=True)
    return Distance("exponential", lambda a, b: jnp.expm1(squared_norm(a, b) / c**2))


def cauchy(c: float = 1.0) -> Distance:
    """log(1 + || a - b ||^2 / c^2)."""
    check_scale(c, positive=True)
    return Distance("cauchy", lambda a, b: jnp.log1p(squared_norm(a, b) / c**2))


# (parameters of the codec, latents) -> images in [-1, 1]
Decode = Callable[[Params, Array], Array]


def of_decoded(distance: Distance, decode: Decode) -> Distance:
    """The distance of images, of the images that latents decode to."""

    def between(*given: Any) -> Array:
        *own, params, a, b = given
        return distance.between(*own, decode(params, a), decode(params, b))

    return distance._replace(between=between, networks=(*distance.networks, CODEC))


def features(
    pixels: float = 1.0, *, decoded: Annotated[Decode | bool | None, DECODER] = None
) -> Distance:
    """The distance of the maps of the data's classifier, plus `pixels` times the l1 distance.

    sum_l mean_ij || a_lij / || a_lij || - b_lij / || b_lij || ||^2 (Zhang et al. 2018, eq. 1, with
    all weights 1), where a_lij are the channels of convolution l at position ij. The classifier is
    eval/features/classifier.py, which is trained on the data set at first use. It takes images in
    [-1, 1], and not velocities; with `decoded`, the codec's decoder, it takes latents.

    Raises ValueError for a negative weight, and for `decoded=False`.
    """
    if pixels < 0.0:
        raise ValueError(f"distance.pixels={pixels:g} must be 0 or more")

    def between(params: Params, a: Array, b: Array) -> Array:
        maps = zip(feature_maps(params, a), feature_maps(params, b), strict=True)
        apart = sum(
            one[0, 0, 0].size * per_example(squared_error(unit_channels(one), unit_channels(other)))
            for one, other in maps
        )
        return apart + pixels * per_example(jnp.abs(a - b))

    if decoded is False:
        raise ValueError("decoded=False: the classifier of the data takes no latents; set it True")
    distance = Distance("features", between, inf, (CLASSIFIER,))
    return of_decoded(distance, decoded) if decoded else distance


def lpips(
    network: str = "vgg",
    weights: str = "",
    pixels: float = 0.0,
    *,
    decoded: Annotated[Decode | bool | None, DECODER] = None,
) -> Distance:
    """LPIPS (models/lpips.py), plus `pixels` times the l1 distance.

    network: vgg or alex. weights: its files, with commas between them; "" for those that
        $FEWSTEP_LPIPS names.
    decoded: for latents, the codec's decoder, or False to compare latents of 1 or 3 channels as if
        they were images. It takes images in [-1, 1], and not velocities.

    Gradients go through the decoder, whose parameters are frozen. Raises ValueError for another
    network, and for a negative weight.
    """
    if network not in BACKBONES:
        raise ValueError(f"distance.network={network!r} must be vgg or alex")
    if pixels < 0.0:
        raise ValueError(f"distance.pixels={pixels:g} must be 0 or more")

    def between(params: Params, a: Array, b: Array) -> Array:
        return lpips_distance(network, params, a, b) + pixels * per_example(jnp.abs(a - b))

    kind = OF_LATENTS if decoded is False else ""
    distance = Distance("lpips", between, inf, (f"{kind}{LPIPS}{network}:{weights}",))
    return of_decoded(distance, decoded) if decoded else distance


def unit_channels(maps: Array) -> Array:
    """Maps [..., C] whose channels have norm 1 at each position."""
    return maps / jnp.sqrt(jnp.maximum(jnp.sum(maps**2, axis=-1, keepdims=True), TINY))


def check_compares_any(distance: Distance, field: str, compared: str) -> None:
    """Raises ValueError for a distance of images alone. compared: what it would compare."""
    if distance.networks:
        raise ValueError(
            f"{field}.name={distance.name} compares images by a network of them, and here it would "
            f"compare {compared}; use squared_l2 or pseudo_huber"
        )


def check_scale(c: float | None, positive: bool = False) -> None:
    """Raises ValueError for a negative scale, and for 0 where it must be positive."""
    if c is not None and (c < 0.0 or (positive and c == 0.0)):
        raise ValueError(f"distance.c={c} must be {'positive' if positive else '0 or more'}")


DISTANCES: dict[str, Callable[..., Distance]] = {
    function.__name__: function
    for function in (
        squared_l2,
        l1,
        pseudo_huber,
        pseudo_huber_elementwise,
        norm,
        huber,
        log_cosh,
        exponential,
        cauchy,
        features,
        lpips,
    )
}
