"""The config of the run of an imported network, and its parameters as that config has them."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fewstep.data import NEWEST_DECODING, NONE
from fewstep.latents.scaling import SCALINGS
from fewstep.models.codecs import CODECS
from fewstep.training.codec_weights import named_codec
from fewstep.training.codecs import ANY_SIDE, codec_factor
from fewstep.training.published import PUBLISHED, Import
from fewstep.training.storage.identity import with_all_fields
from fewstep.weights.layouts.blocks import stack_blocks

# Codecs of networks with so many channels, unless another is named. Those of the layouts here work
# on latents of Stable Diffusion, times 0.18215.
CODEC_OF = {4: "sd"}
IMAGE_CHANNELS = 3  # of pictures that codecs decode


def imported_config(
    found: Import, path: Path, image_size: int = 0, codec: str | None = None
) -> ConfigDict:
    """The config of the run of an imported network, with data.name=none.

    image_size: of the images of a file that does not say it. codec: name of the codec in whose
    latents the network works, "" for pixels, None for that of CODEC_OF. Raises ValueError if the
    size of the network is not one of model.size, if the size of images is not known, or not that of
    the file, and for a codec of other channels.
    """
    sizes, fields = found.sizes, PUBLISHED[found.layout].fields
    codec = CODEC_OF.get(sizes.channels, "") if codec is None else codec
    factor = codec_factor(codec) if codec else 1
    own = factor * sizes.input_side or image_size
    if not own or own % (factor * sizes.unit):
        raise ValueError(
            f"{path} does not say the size of its images: set it by --config.data.image_size, a "
            f"multiple of {factor * sizes.unit}, such as 256 for a DiT of 256 x 256 pixels"
        )
    if image_size not in (0, own):
        raise ValueError(
            f"data.image_size={image_size}, but the network in {path} is for images of "
            f"{own} x {own}; leave it out"
        )
    data = {
        "name": NONE,
        "image_size": own,
        "channels": IMAGE_CHANNELS if codec else sizes.channels,
        "num_classes": sizes.classes,
        "decoding": NEWEST_DECODING,
        "label_shares": "data",
    }
    prediction = fields.get("prediction", {})
    if found.sigma_data is not None:
        prediction = {**prediction, "sigma_data": found.sigma_data}
    return with_all_fields(
        {
            **fields,
            "steps": 1,
            "data": data,
            "codec": codec_fields(codec, sizes, path) if codec else {},
            "model": {
                **PUBLISHED[found.layout].model(sizes, path),
                **fields.get("model", {}),
            },
            "prediction": prediction,
            "objective": {"name": "denoising", **fields.get("objective", {})},
            "ema": {"decays": []},
        }
    )


def codec_fields(name: str, sizes: Any, path: Path) -> dict[str, Any]:
    """The fields of a codec with the scale that it was published with. Raises ValueError."""
    channels = named_codec(name, (ANY_SIDE, ANY_SIDE, IMAGE_CHANNELS)).latent_shape[-1]
    if channels != sizes.channels:
        raise ValueError(
            f"the network in {path} has {sizes.channels} channels, and latents of "
            f"codec.name={name} have {channels}; name the codec that it was trained with"
        )
    scale, shift = SCALINGS[CODECS[name].scaling or "none"]
    return {"name": name, "scale": list(scale), "shift": list(shift)}


def tree_for(config: ConfigDict, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the network of a config has them: with model.scan, blocks are stacked."""
    return stack_blocks(params) if config.model.get("scan") else params
