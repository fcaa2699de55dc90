"""What becomes a run by --mode=import: a network with the config of its run.

It comes from a published file, whose config follows from its layout and its shapes, or from one in
our own layout, which has the config of its run.
"""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fewstep.data import NEWEST_DECODING, NONE
from fewstep.latents.scaling import SCALINGS
from fewstep.models.codecs import CODECS
from fewstep.training.codec_weights import named_codec
from fewstep.training.codecs import ANY_SIDE, codec_factor
from fewstep.training.exports.own import LAYOUT as OWN
from fewstep.training.exports.own import find_own, read_own
from fewstep.training.published import PUBLISHED, Import, read_published
from fewstep.training.storage.identity import with_all_fields
from fewstep.weights.flax_checkpoints import find_checkpoint
from fewstep.weights.layouts.blocks import stack_blocks

# Codecs of networks with so many channels, unless another is named. Those of the layouts here work
# on latents of Stable Diffusion, times 0.18215.
CODEC_OF = {4: "sd"}
IMAGE_CHANNELS = 3  # of pictures that codecs decode


class Imported(NamedTuple):
    """A network to make a run of.

    layout: a key of PUBLISHED, or that of exports/own.py. title: whose network it is, in words.
    file: that of its parameters. params: with the blocks apart. config: of the run, before the
    user's own fields. step: training steps behind the network. class_counts: images of each class
    of its data, None if unknown.
    """

    layout: str
    title: str
    file: Path
    params: dict[str, Any]
    config: ConfigDict
    step: int = 0
    class_counts: list[int] | None = None


def read_import(
    weights: Path,
    part: str = "",
    layout: str = "",
    image_size: int = 0,
    codec: str | None = None,
) -> Imported:
    """The network in a file, or in a folder that --mode=export wrote.

    part, layout: as for `read_published`. image_size, codec: as for `imported_config`. Raises
    ValueError as these two and `read_own` do.
    """
    own = find_own(weights)
    if own is None:
        weights = (weights.is_dir() and find_checkpoint(weights)) or weights
        found = read_published(weights, part, layout)
        config = imported_config(found, weights, image_size, codec)
        title = f"the network of {PUBLISHED[found.layout].title}"
        return Imported(found.layout, title, weights, found.params, config)
    for flag, given in (("part", part), ("layout", layout)):
        if given:
            raise ValueError(f"--{flag} is not used by {own}, which Fewstep exported; leave it out")
    network = read_own(own)
    config = network.config
    if network.codec is not None:
        config.codec.weights = str(network.codec.absolute())
    title = "an exported network"
    return Imported(OWN, title, own, network.params, config, network.step, network.class_counts)


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
    unlabelled = {} if sizes.classes else {"guidance_scale": 1.0}
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
            "objective": fields["objective"] | unlabelled,
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
    """The parameters as the network of a config has them: with model.scan, blocks are stacked.

    params: with the blocks apart.
    """
    return stack_blocks(params) if config.model.get("scan") else params
