"""Networks of known functions, in place of neural networks."""

import jax.numpy as jnp

from fewstep.diffusion.prediction import KINDS, Endpoints, coefficients
from fewstep.latents.codec import Codec, Moments
from fewstep.models.dit import DiTSize
from fewstep.models.model import Model
from fewstep.models.network import Network
from tests.gaussian import Gaussian

# A DiT of what stands before and after its blocks: what a test of commands, files and processes
# needs of a network, and compiles in half the time.
NO_BLOCKS = DiTSize(64, 0, 1)


def exact_network(function):
    """A Network of `function`, plus the value of its one parameter, "offset".

    The offset is 0 unless a test sets it. It makes the loss differentiable in the parameters.
    """

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        return function(x, t, s, condition) + params["offset"]

    return Network(lambda key: {"offset": jnp.zeros(())}, apply)


def affine_network():
    """u = a x + b + c t + d (t - s) + e[label], elementwise: a small network of every input.

    Its hidden feature is x.
    """

    def init(key):
        return {
            "a": jnp.float32(0.3),
            "b": jnp.float32(-0.2),
            "c": jnp.float32(0.5),
            "d": jnp.float32(0.7),
            "e": jnp.linspace(-1.0, 1.0, 4),
        }

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        row = (
            params["b"] + params["c"] * t + params["d"] * (t - s) + params["e"][condition["label"]]
        )
        return params["a"] * x + row.reshape(-1, *[1] * (x.ndim - 1))

    def features(params, x, t, s, condition, names, **mode):
        return apply(params, x, t, s, condition, **mode), dict.fromkeys(names, x)

    return Network(init, apply, hidden=("input",), features=features)


def affine_codec(shape):
    """A network of a codec: mean = a x + b, std = exp(c), and decoded images d z + e."""

    def init(key):
        encoder = {"a": jnp.float32(0.6), "b": jnp.float32(0.2), "c": jnp.float32(-1.0)}
        return {"encoder": encoder, "decoder": {"d": jnp.float32(1.4), "e": jnp.float32(-0.1)}}

    def encode(params, images):
        own = params["encoder"]
        return Moments(own["a"] * images + own["b"], jnp.full_like(images, jnp.exp(own["c"])))

    def decode(params, latents):
        return params["decoder"]["d"] * latents + params["decoder"]["e"]

    codec = Codec(init, encode, decode, shape, shape)
    return Network(init, lambda params, x, *inputs, **mode: x, shape=shape, codec=codec)


def build_model(network, path, kind="velocity"):
    """The model whose output is a prediction of the kind."""
    return Model(network, path, KINDS[kind])


def finite_ratio(a, b):
    """a / b, or 0 where b is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def exact_denoiser(gaussian, path, kind="velocity"):
    """The model that predicts E[kind | x_t] of Gaussian data, with an offset in x_0."""

    def encoded(x, t, s, condition):
        e = Endpoints(gaussian.x_0(path, x, t), gaussian.eps(path, x, t))
        return KINDS[kind].encode(e, x, coefficients(path, t, x))

    return unscaled_model(exact_network(encoded), path, kind)


def exact_consistency(gaussian, path, kind="velocity"):
    """The model whose consistency function is the flow map to t_min of Gaussian data.

    gaussian: a Gaussian, or a function from a condition to a Gaussian.
    """

    def encoded(x, t, s, condition):
        data = gaussian(condition) if callable(gaussian) else gaussian
        f = data.flow_map(path, x, t, jnp.full_like(t, path.t_min))
        c = coefficients(path, t, x)
        end = coefficients(path, jnp.full_like(t, path.t_min), x)
        # f = alpha_min x_0 + sigma_min (x - alpha x_0) / sigma, solved for x_0.
        ratio = finite_ratio(end.sigma, c.sigma)
        x_0 = finite_ratio(f - ratio * x, end.alpha - c.alpha * ratio)
        e = Endpoints(x_0, finite_ratio(x - c.alpha * x_0, c.sigma))
        return KINDS[kind].encode(e, x, c)

    return unscaled_model(exact_network(encoded), path, kind)


def unscaled_model(network, path, kind):
    """A model that passes x_t and t to the network without scaling, for every path and kind."""
    plain = KINDS[kind]._replace(c_in=lambda c: jnp.ones_like(c.alpha))
    return Model(network, path._replace(clock=lambda t: t), plain)


def gaussian_denoiser(path, mean=0.0, std=1.0):
    """A denoiser of one-dimensional data N(mean, std^2), which are its parameters."""

    def apply(params, x, t, s, condition, *, train=False, rng=None):
        data = Gaussian(params["mean"][None], jnp.exp(2.0 * params["log_std"])[None])
        e = Endpoints(data.x_0(path, x, t), data.eps(path, x, t))
        return KINDS["velocity"].encode(e, x, coefficients(path, t, x))

    def init(key):
        return {"mean": jnp.float32(mean), "log_std": jnp.log(jnp.float32(std))}

    return unscaled_model(Network(init, apply, shape=(1,)), path, "velocity")
