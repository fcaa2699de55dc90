"""A KL-regularised autoencoder, the codec of latent diffusion (Rombach et al. 2022).

    q(z | x) = N(m, s^2),  (m, s) = encode(x),    z = m + s eps,    eps ~ N(0, 1)
    L = d(decode(z), x) + kl_weight KL(q(z | x) || N(0, 1))        (both mean over dimensions)
    KL = (m^2 + s^2 - 1) / 2 - log s                               (per dimension of z)

Rombach et al. sum both terms over dimensions (their appendix G) and weigh KL by 1e-6. In means over
dimensions this is kl_weight = 1e-6 dim(z) / dim(x), 2e-8 for the codec of Stable Diffusion. Their
d is l1 plus a perceptual distance, as `features` is here with the classifier of the data. They also
have a discriminator, which is not here. Nothing is detached.

The network samples nothing: evaluation reconstructs held-out images from the posterior's mean.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from fewstep.diffusion.guidance import Condition
from fewstep.latents.codec import Codec, Moments, sample_posterior
from fewstep.models.model import Model
from fewstep.objectives.base import (
    Batch,
    Diagnostics,
    Key,
    LossFn,
    Metrics,
    Objective,
    Params,
    Player,
    SampleFn,
    mean_metric,
    per_example,
)
from fewstep.objectives.distances import DISTANCES, Distance, l1
from fewstep.objectives.needs import needs
from fewstep.parts import Part
from fewstep.samplers.grids import StepsError

WHITE = 2.0  # range of a pixel in [-1, 1], the peak of PSNR
LEAST_ERROR = 1e-10  # of a perfect reconstruction: PSNR is at most 106 dB


@needs(reconstructs=True)
def autoencoder(
    model: Model,
    *,
    distance: Annotated[Distance | None, Part(DISTANCES)] = None,
    kl_weight: float = 1e-4,
) -> Objective:
    """The objective that trains a codec.

    distance: between an image and its reconstruction, l1 by default.
    kl_weight: of the mean KL per dimension of the latent; it is at least 0.

    Raises ValueError for a negative weight, and for a network that is no codec.
    """
    codec = model.network.codec
    if codec is None:
        raise ValueError("this method trains a codec; set model.name=codec")
    if kl_weight < 0.0:
        raise ValueError(f"kl_weight={kl_weight:g} must be at least 0")
    distance = distance or l1()
    return Objective(
        players={"network": Player(model.network, autoencoder_loss(codec, distance, kl_weight))},
        followers={},
        sample=round_trip(codec),
        fixed=distance.networks,
        reconstructs=True,
        diagnostics=Diagnostics(reconstruction_rows(codec), reconstruction_numbers),
    )


def autoencoder_loss(codec: Codec, distance: Distance, kl_weight: float) -> LossFn:
    """The loss of the reconstruction from a draw of the posterior."""

    def loss(
        params: Params, networks: Mapping[str, Params], batch: Batch, key: Key, step: Array
    ) -> tuple[Array, Metrics]:
        x = batch["x"]
        moments = codec.encode(params, x)
        decoded = codec.decode(params, sample_posterior(key, moments))
        error = distance.given(networks)(decoded, x)
        kl = kl_to_standard_normal(moments)
        metrics = {"reconstruction": mean_metric(error), "kl": mean_metric(kl)}
        return error + kl_weight * kl, metrics

    return loss


def kl_to_standard_normal(moments: Moments) -> Array:
    """KL(N(mean, std^2) || N(0, 1)), the mean over the dimensions of each latent: [B]."""
    mean, std = moments
    return per_example(0.5 * (mean**2 + std**2 - 1.0) - jnp.log(std))


def round_trip(codec: Codec) -> SampleFn:
    """Reconstructs images, which stand in place of noise, from the mean of their posterior."""

    def sample(
        params: Params,
        eps: Array,
        condition: Condition,
        keys: Array,
        *,
        steps: int,
        guidance_scale: float,
    ) -> Array:
        if steps != 1:
            raise StepsError(f"an autoencoder reconstructs in 1 step, not in {steps}")
        return codec.decode(params, codec.encode(params, eps).mean)

    return sample


def reconstruction_rows(codec: Codec) -> Any:
    """For each image, the squared error of its reconstruction in [-1, 1], and the KL."""
    reconstruct = round_trip(codec)

    def rows(params: Params, eps: Array, *inputs: Any, **fields: Any) -> dict[str, Array]:
        image = jnp.clip(reconstruct(params, eps, *inputs, **fields), -1.0, 1.0)
        kl = kl_to_standard_normal(codec.encode(params, eps))
        return {"squared_error": per_example((image - eps) ** 2), "kl": kl}

    return rows


def reconstruction_numbers(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean over images of PSNR = 10 log10(2^2 / squared error), in dB, and of the KL."""
    psnr = 10.0 * np.log10(WHITE**2 / np.maximum(rows["squared_error"], LEAST_ERROR))
    return {"psnr": float(psnr.mean()), "kl": float(rows["kl"].mean())}
