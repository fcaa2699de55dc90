import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.convnet import LAST_SIDE, convnet, convolutions, feature_maps

CLASSES = 3


def make(shape, batch=4):
    model = convnet(shape, CLASSES)
    x = jax.random.uniform(jax.random.key(1), (batch, *shape), minval=-1.0)
    return model, model.init(jax.random.key(0)), x


def silu(x):
    return x / (1.0 + np.exp(-x))


def convolve(x, layer, stride):
    """3 x 3 convolution in NumPy; an odd padding has its larger part at the end."""
    total = [max((-(-side // stride) - 1) * stride + 3 - side, 0) for side in x.shape[1:3]]
    padding = [(0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, padding), (3, 3), (1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", windows, layer["kernel"]) + layer["bias"]


def test_against_numpy():
    model, params, x = make((14, 14, 3))
    params = jax.tree.map(lambda a: np.asarray(a) + np.float32(0.05), params)
    maps = [silu(convolve(np.asarray(x), params["conv_0"], 2))]
    maps.append(silu(convolve(maps[0], params["conv_1"], 2)))
    for found, expected in zip(feature_maps(params, x), maps, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    h = maps[1].reshape(len(x), -1)
    hidden = h @ params["features"]["kernel"] + params["features"]["bias"]
    expected = np.where(hidden > 0, hidden, 0.2 * hidden)
    features, logits = model.apply(params, x)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    expected = expected @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 9, 16, 28, 32, 33, 64])
def test_every_size_ends_in_features_and_logits(side, channels):
    model = convnet((side, side, channels), CLASSES)
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    features, logits = jax.eval_shape(model.apply, params, x)
    assert features.shape == (2, model.dimension) and logits.shape == (2, CLASSES)
    places, width = LAST_SIDE**2, convolutions(side)[-1].width
    assert places * width // 2 <= params["features"]["kernel"].shape[0] <= places * width


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (8, [(32, 1), (64, 2)]),
        (16, [(32, 2), (64, 2)]),
        (28, [(32, 2), (64, 2), (128, 2)]),
        (64, [(32, 2), (64, 2), (128, 2), (128, 2)]),
    ],
)
def test_layers_halve_down_to_the_last_side(side, expected):
    assert convolutions(side) == tuple(expected)


def test_an_image_is_seen_alone():
    model, params, x = make((8, 8, 1))
    together = model.apply(params, x)
    alone = [model.apply(params, x[i : i + 1]) for i in range(len(x))]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-5)


def test_dropout_only_in_training():
    model, params, x = make((8, 8, 1))
    steady, once, twice = (
        model.apply(params, x)[1],
        model.apply(params, x, train=True, rng=jax.random.key(2))[1],
        model.apply(params, x, train=True, rng=jax.random.key(3))[1],
    )
    np.testing.assert_array_equal(steady, model.apply(params, x)[1])
    assert np.abs(once - steady).min() > 0 and np.abs(once - twice).min() > 0
    with pytest.raises(ValueError, match="rng is missing"):
        model.apply(params, x, train=True)


def test_every_parameter_has_a_gradient():
    model, params, x = make((8, 8, 3))
    gradient = jax.grad(lambda p: jnp.sum(jax.nn.log_softmax(model.apply(p, x)[1])[:, 0]))(params)
    for leaf in jax.tree.leaves(gradient):
        assert np.count_nonzero(leaf) > 0.9 * leaf.size


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 9, 1), r"\[8, 9, 1\]"),
        ((8, 8, 2), r"\[8, 8, 2\]"),
        ((64,), r"\[64\]"),
        ((7, 7, 1), "7 pixels"),
        ((65, 65, 3), "8 to 64"),
    ],
)
def test_other_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        convnet(shape, CLASSES)


def test_other_images_and_too_few_classes_are_refused():
    model, params, x = make((8, 8, 1))
    with pytest.raises(ValueError, match=r"\[8, 8, 3\]; this classifier takes \[8, 8, 1\]"):
        model.apply(params, jnp.concatenate([x] * 3, axis=-1))
    with pytest.raises(ValueError, match="num_classes=1"):
        convnet((8, 8, 1), 1)
