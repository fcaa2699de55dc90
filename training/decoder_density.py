"""The posterior of a decoder as a density: `data.name=density:RUN`, of a run of `autoencoder`.

It is that of the code of one image, the first that the codec was not trained on, under a prior
N(0, I) of codes (densities/posteriors.py). The run's folder is read, and no code in it.
"""

import hashlib
from functools import cache, partial

import jax
import numpy as np
from jax import Array

from fewstep.data import load_selection, selection_of
from fewstep.densities.density import Density, check_density
from fewstep.densities.posteriors import decoder_posterior
from fewstep.densities.table import read_runs_by
from fewstep.latents.codec import Codec, Params, as_floats
from fewstep.training.codec_weights import (
    TRAINING,
    fingerprint,
    image_shape,
    named_codec,
    read_run,
)
from fewstep.training.location import parse_location
from fewstep.training.storage import restore, workdir


def run_density(name: str) -> Density:
    """The density of RUN[@STEP]. Raises ValueError for a folder that holds no run of a codec."""
    folder, step = parse_location(name)
    if not workdir.is_run(folder):
        raise ValueError(
            f"data.name=density:{name}: {folder} is no run; name a density, a file, or the folder "
            "of a run of autoencoder"
        )
    return _posterior(name, str(folder), restore.saved_step(folder, step))


@cache
def _posterior(name: str, folder: str, step: int) -> Density:
    place = f"{folder}@{step}"
    config = workdir.load_config(parse_location(folder).folder, step)
    if config.objective.name != TRAINING:
        raise ValueError(
            f"data.name=density:{name} is a run of {config.method}, which has no decoder; name one "
            "of autoencoder"
        )
    codec = named_codec(config.model.codec, image_shape(config))
    params = read_run(place, config.model.codec, codec)
    image = held_out_image(config.data)
    total = hashlib.sha256(fingerprint(params).encode())
    total.update(np.ascontiguousarray(image).tobytes())
    return check_density(
        decoder_posterior(
            name,
            partial(decode_one, codec, params),
            int(np.prod(codec.latent_shape)),
            np.asarray(as_floats(image)),
            digest=total.hexdigest(),
        )
    )


def decode_one(codec: Codec, params: Params, code: Array) -> Array:
    """The image of one code: [D] -> [H, W, C]."""
    return codec.decode(
        jax.tree.map(jax.numpy.asarray, params), code.reshape(1, *codec.latent_shape)
    )[0]


def held_out_image(fields: object) -> np.ndarray:
    """The first held-out image of a run's data set, or of all without any. uint8 [H, W, C]."""
    dataset = load_selection(selection_of(fields))
    split = dataset.train if dataset.test is None else dataset.test
    return np.asarray(split.images[0])


read_runs_by(run_density)
