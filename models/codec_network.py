"""A codec as a network that is trained: its parameters, and the round trip of an image.

Its losses read `Network.codec`. The output is the reconstruction from the mean of the posterior; it
depends neither on times nor on labels.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from fewstep.latents.codec import Array
from fewstep.models.codecs import CODECS, codec_by_name, fit_codec
from fewstep.models.network import (
    Architecture,
    Condition,
    Network,
    Params,
    check_choice,
    check_inputs,
)

SMALLEST = "f4"


def codec_network(shape: tuple[int, ...], num_classes: int, *, codec: str = SMALLEST) -> Network:
    """The network that reconstructs images of that shape by a codec.

    codec: key of CODECS, one that is trained. Raises ValueError for another, and for a shape that
    the codec cannot take.
    """
    check_choice("codec", codec, [name for name, named in CODECS.items() if named.trained])
    built = codec_by_name(codec, shape)

    def apply(
        params: Params, x: Array, t: Array, s: Array, condition: Condition, **mode: Any
    ) -> Array:
        check_inputs(x, t, s, shape)
        return built.decode(params, built.encode(params, x).mean)

    fit = None if CODECS[codec].fit is None else partial(fit_codec, codec)
    return Network(built.init, apply, shape=shape, codec=built, fit=fit)


def shrink(fields: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The smallest codec."""
    return {"codec": SMALLEST}


def title(fields: Mapping[str, Any]) -> str:
    """The name of the codec, such as "codec f4"."""
    return f"codec {fields['codec']}"


CODEC = Architecture(codec_network, shrink, title)
