"""The jump of a network that looks from t to s: a DDIM step to the endpoints that it predicts.

    G(x_t, t, s) = alpha_s x_0 + sigma_s eps,   (x_0, eps) predicted from (x_t, t, s)

So G(x, t, t) = x for any network.
"""

from jax import Array

from fewstep.diffusion.guidance import Condition, Predict
from fewstep.diffusion.prediction import endpoints
from fewstep.models.model import Model


def decode_jump(model: Model, raw: Array, x: Array, t: Array, s: Array) -> Array:
    """G(x, t, s) of the network's output at (x, t, s): [B, ...]."""
    return model.path.interpolate(*endpoints(model.kind, raw, x, t, model.path), s)


def jump(
    model: Model, predict: Predict, x: Array, t: Array, s: Array, condition: Condition
) -> Array:
    """G(x, t, s) of a prediction function: [B, ...]."""
    return decode_jump(model, predict(x, t, s, condition), x, t, s)
