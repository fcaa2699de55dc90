import jax
import jax.numpy as jnp
import numpy as np

from fewstep.models.network import Network
from fewstep.objectives.distances import squared_l2
from fewstep.objectives.generators import Generator
from fewstep.objectives.pairs import add_regression


def test_the_loss_and_the_dropout_of_the_regression_draw_from_keys_of_their_own():
    used = {}

    def loss(params, networks, batch, key, step):
        # A loss may split its key into any number of parts.
        used["loss"] = [key, *jax.random.split(key, 4)]
        return jnp.zeros(2), {}

    def generate(params, eps, condition, *, train=False, rng=None):
        used["dropout"] = [rng]
        return eps

    generator = Generator(Network(lambda key: {}, None), generate)
    pairs = {"eps": jnp.ones((2, 3)), "x_0": jnp.zeros((2, 3)), "label": jnp.zeros(2, jnp.int32)}
    key = jax.random.key(0)
    rows, _ = add_regression(loss, generator, 0.5, squared_l2())({}, {}, {"pairs": pairs}, key, 0)
    np.testing.assert_allclose(rows, 0.5)
    data = [tuple(jax.random.key_data(k).tolist()) for k in (*used["loss"], *used["dropout"], key)]
    assert len(set(data)) == len(data)
