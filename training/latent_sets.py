"""Data sets of latents without pictures: whether they fit the codec of a config, and its scale.

Nothing in a file says which codec made its latents. Their shape, the identity that --mode=prepare
records, and the deviations of their channels reveal most mistakes.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fewstep.data import Dataset
from fewstep.data.encoded import channel_statistics
from fewstep.latents.codec import Shape
from fewstep.latents.scaling import SCALINGS, Scaling, per_channel
from fewstep.models.codecs import CODECS
from fewstep.training.codec_weights import named_codec
from fewstep.training.codecs import codec_factor, scaling_of

IMAGE_CHANNELS = 3  # of decoded pictures, unless data.channels says another number
CHECKED_ROWS = 1_000  # latents whose statistics are compared with the scale
# Largest ratio between the deviation that a network sees in all channels together and the expected
# one; 0.18215 twice gives 7, and not at all 5.
LARGEST_RATIO = 3.0
# A channel is far from what its method expects if its deviation is this many times larger or
# smaller, or if its mean is this many expected deviations from 0.
FAR = 2.0
EXPECTED = 1.0  # deviation of data, where no field says it
EDM_SIGMA_DATA = 0.5


class Channels(NamedTuple):
    """Statistics of each channel of latents as a network sees them: float64 [c]."""

    mean: np.ndarray
    std: np.ndarray


def picture_shape(config: ConfigDict, dataset: Dataset) -> Shape:
    """The shape of the pictures that a codec decodes from a data set of latents.

    Raises ValueError if the config names no codec, or one that makes other latents.
    """
    name = config.codec.name
    if not name:
        raise ValueError(
            f"data.name={config.data.name} has latents; name the codec that made them, such as "
            "codec.name=sd"
        )
    recorded = dataset.moments.codec.get("codec", name)
    if recorded != name:
        raise ValueError(f"{dataset.name} has latents by codec.name={recorded}, not {name}; set it")
    height, width, channels = dataset.image_shape[-3:]
    sides = [side * codec_factor(name) for side in (height, width)]
    shape = (*sides, config.data.channels or IMAGE_CHANNELS)
    if sides[0] != sides[1] or config.data.image_size not in (0, sides[0]):
        raise ValueError(
            f"data.image_size={config.data.image_size}, but codec.name={name} makes the latents of "
            f"{dataset.name}, {height} x {width}, of pictures of {sides[0]} x {sides[1]}; pictures "
            "are squares of data.image_size, 0 for that of the latents"
        )
    made = named_codec(name, shape).latent_shape
    if made != (height, width, channels):
        moments = "one draw" if dataset.image_shape[1] == 1 else "mean and deviation"
        raise ValueError(
            f"{dataset.name} has latents of {height} x {width} x {channels} ({moments}), and "
            f"codec.name={name} makes {' x '.join(map(str, made))}; name the codec that made them, "
            "or set data.posterior to what the files have (std, logvar or draws)"
        )
    return shape


def check_flips(config: ConfigDict, dataset: Dataset) -> None:
    """Raises ValueError if images shall be mirrored, and there are no latents of mirror images."""
    if config.data.flip and dataset.image_shape[0] < 2:
        raise ValueError(
            f"data.flip=True needs latents of mirrored pictures, which {dataset.name} has not; set "
            "data.flip=False (a mirrored latent is not the latent of the mirrored picture)"
        )


def seen_channels(scaling: Scaling, dataset: Dataset) -> Channels:
    """Statistics of the latents of a data set as a network sees them."""
    mean, std = channel_statistics(dataset.moments.array, CHECKED_ROWS)
    scale, shift = (per_channel(values) for values in scaling)
    return Channels((mean - shift) * scale, std * scale)


def expected_deviation(config: ConfigDict) -> float:
    """The deviation that a config's path and prediction assume of data."""
    if config.prediction.kind == "F":
        return config.prediction.sigma_data or EDM_SIGMA_DATA
    return config.path.sigma_data or EXPECTED


def check_scale(config: ConfigDict, seen: Channels, name: str) -> None:
    """Raises ValueError if the published scale of the codec does not suit these latents at all."""
    published = CODECS[config.codec.name].scaling
    if published is None or scaling_of(config) != SCALINGS[published]:
        return  # a scale of the user's own
    deviation = float(np.sqrt(np.mean(np.square(seen.std))))
    ratio = deviation / EXPECTED
    if 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
        return
    raise ValueError(
        f"{name}: with the scale of codec.name={config.codec.name} the latents have a deviation of "
        f"{deviation:.3g}, and about {EXPECTED:g} is right. So they are of another codec, or not "
        "raw but multiplied by a scale already: name their codec, or divide them by that scale"
    )


def describe_channels(config: ConfigDict, seen: Channels) -> str:
    """The statistics of the channels as the network sees them, in words."""
    mean, std = (", ".join(f"{value:.2f}" for value in values) for values in seen)
    return f"the network sees channels of deviation {std} around {mean}"


def scale_warning(config: ConfigDict, seen: Channels) -> str:
    """What is far from what the method expects, in words; "" if nothing is."""
    expected = expected_deviation(config)
    ratio = np.maximum(seen.std, 1e-12) / expected
    far = (np.maximum(ratio, 1 / ratio) > FAR) | (np.abs(seen.mean) > FAR * expected)
    if not far.any():
        return ""
    return (
        f"{describe_channels(config, seen)}; {config.method or 'the method'} expects deviations of "
        f"about {expected:g} around 0. Set codec.scale and codec.shift (docs/latents.md)"
    )
