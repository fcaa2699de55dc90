"""The codec of a config: its functions, its parameters, and encoding and decoding on this host.

Its parameters are found by codec_weights.py.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from fewstep.latents.codec import Codec, Params, Shape
from fewstep.latents.scaling import Scaling, scaled
from fewstep.training.codec_weights import image_shape, load_codec, named_codec

# Pixels that a device encodes or decodes at once: 4 images of 256 x 256, or one on CPUs. The
# decoder of Stable Diffusion takes 224 MiB for each, so 0.9 GiB beside the state of a run, and 0.6
# TFLOP for each, so few images keep an accelerator busy.
CPU_PIXELS, PIXELS = 2**16, 2**18
# Of small images. Eight devices then take the 512 views of 256 images, which are encoded together.
MOST_ROWS = 64
ANY_SIDE = 256  # that all codecs divide
EXHAUSTED = "RESOURCE_EXHAUSTED"  # in the errors of XLA if the memory is not enough

# Functions of (parameters, rows) on devices, and of rows on the host.
Apply = Callable[[Params, jax.Array], jax.Array]
HostFunction = Callable[[np.ndarray], np.ndarray]


def build_codec(config: ConfigDict) -> Codec:
    """The codec that a config names, of its images. Raises ValueError."""
    return named_codec(config.codec.name, image_shape(config))


def codec_factor(name: str) -> int:
    """How many times shorter the sides of latents are than those of images. Raises ValueError."""
    return ANY_SIDE // named_codec(name, (ANY_SIDE, ANY_SIDE, 3)).latent_shape[0]


def scaling_of(config: ConfigDict) -> Scaling:
    """The scaling between latents and what the network sees."""
    fields = config.codec
    return Scaling(tuple(fields.scale) or (1.0,), tuple(fields.shift) or (0.0,))


def network_codec(config: ConfigDict) -> Codec:
    """The codec whose latents are scaled for the network. Raises ValueError."""
    try:
        return scaled(build_codec(config), scaling_of(config))
    except ValueError as error:
        raise ValueError(f"codec.{error}") from error


def network_encoder(config: ConfigDict) -> HostFunction:
    """Pictures, uint8 [N, H, W, C] -> the means of their latents as the network sees them."""
    codec = network_codec(config)
    return on_first_call(
        lambda params, pictures: codec.encode(params, pictures).mean,
        lambda: {"encoder": load_codec(config).params["encoder"]},
        codec.shape,
    )


def network_decoder(config: ConfigDict) -> HostFunction:
    """Latents as the network sees them -> pictures in [-1, 1]."""
    codec = network_codec(config)
    return on_first_call(
        codec.decode, lambda: {"decoder": load_codec(config).params["decoder"]}, codec.shape
    )


def on_first_call(function: Apply, params: Callable[[], Params], shape: Shape) -> HostFunction:
    """`on_this_host` with parameters that the first call reads and puts on the devices."""

    @functools.cache
    def prepared() -> HostFunction:
        return on_this_host(function, params(), shape)

    return lambda rows: prepared()(rows)


def on_this_host(function: Apply, params: Params, shape: Shape) -> HostFunction:
    """`function(params, .)` of any number of rows, in batches of one size over this host's devices.

    The size depends on the pictures and devices alone. So one program computes every row, and its
    bits do not depend on the number of rows. shape: of a picture.

    The function raises ValueError if the memory of the devices is not enough.
    """
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("rows",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
    each = rows_at_once(shape, devices[0].platform)
    count = each * len(devices)
    compiled = jax.jit(function, in_shardings=(whole, split), out_shardings=split)
    params = jax.device_put(params, whole)

    def apply(rows: np.ndarray) -> np.ndarray:
        made = []
        for start in range(0, len(rows), count):
            batch = rows[np.arange(start, start + count) % len(rows)]
            with codec_memory_in_words(each, shape):
                made.append(np.asarray(compiled(params, jax.device_put(batch, split))))
        return np.concatenate(made)[: len(rows)]

    return apply


def rows_at_once(shape: Shape, platform: str) -> int:
    """The pictures of a shape that a device encodes or decodes at once."""
    pixels = CPU_PIXELS if platform == "cpu" else PIXELS
    return min(max(pixels // (shape[0] * shape[1]), 1), MOST_ROWS)


@contextmanager
def codec_memory_in_words(rows: int, shape: Shape) -> Iterator[None]:
    """Raises ValueError that names the codec in place of XLA's error if the memory was too little.

    rows: pictures that each device computes at once. shape: of one.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if EXHAUSTED not in str(error):
            raise
        raise ValueError(
            f"the memory of the devices is not enough for the codec ({str(error).splitlines()[0]}),"
            f" which computes {rows} picture(s) of {shape[0]} x {shape[1]} pixels at once on each; "
            "use devices with more memory, or free some: end other programs on them, and in "
            "training set a smaller model.size or a larger mesh.fsdp"
        ) from error
