"""DINOv2 with few blocks and random weights, against Pillow and closed forms."""

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import ndtr, softmax

from fewstep.eval.features.dinov2 import (
    EPSILON,
    HEAD,
    PATCH,
    BlockParams,
    Linear,
    Norm,
    Params,
    apply,
    resize_bicubic,
)
from fewstep.eval.features.dinov2_weights import (
    cubic_matrix,
    dinov2_params,
    dinov2_shapes,
    resample_positions,
)

WIDTH, DEPTH, TOKENS = 2 * HEAD, 2, 257


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)

    def normal(*shape, scale=0.3):
        return scale * rng.standard_normal(shape, np.float32)

    def affine(before, after, *stack):
        return Linear(normal(*stack, before, after, scale=before**-0.5), normal(*stack, after))

    def norm(*stack):
        return Norm(1.0 + normal(*stack, WIDTH), normal(*stack, WIDTH))

    blocks = BlockParams(
        norm1=norm(DEPTH),
        qkv=affine(WIDTH, 3 * WIDTH, DEPTH),
        projection=affine(WIDTH, WIDTH, DEPTH),
        gamma1=normal(DEPTH, WIDTH),
        norm2=norm(DEPTH),
        expand=affine(WIDTH, 4 * WIDTH, DEPTH),
        contract=affine(4 * WIDTH, WIDTH, DEPTH),
        gamma2=normal(DEPTH, WIDTH),
    )
    patches = affine(PATCH * PATCH * 3, WIDTH)
    return Params(patches, normal(WIDTH), normal(TOKENS, WIDTH), blocks, norm())


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A function that writes a file of ViT-S with changes; a change to None drops the tensor."""
    rng = np.random.default_rng(1)
    shapes = dinov2_shapes(384)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}

    def write(**changes):
        kept = {k: v for k, v in (tensors | changes).items() if v is not None}
        path = tmp_path_factory.mktemp("weights") / "weights.npz"
        np.savez(path, **kept)
        return path, kept

    return write


def test_features_are_one_vector_per_image(params):
    features = jax.jit(apply)(params, random_images(3, 32, 48, 3))
    assert features.shape == (3, WIDTH)
    assert features.dtype == np.float32
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_features_follow_the_equations_in_float64(params):
    images = pictures("noise", (224, 224))
    ours, expected = jax.jit(apply)(params, images), reference(params, images)
    error = np.abs(ours - expected).max() / expected.std()
    print(f"largest difference {error:.1e} of the deviation")
    assert np.abs(expected[0] - expected[1]).mean() > 0.05 * expected.std()
    assert error < 2e-5


def reference(params, images):
    """Features of 224 x 224 images, which need no resize, block by block and head by head."""
    x = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    corners = [(i, j) for i in range(0, 224, 14) for j in range(0, 224, 14)]
    patches = np.stack([x[:, i : i + 14, j : j + 14].reshape(len(x), -1) for i, j in corners], 1)
    tokens = linear(params.patches, patches)
    tokens = np.concatenate([np.tile(params.token, (len(x), 1, 1)), tokens], 1) + params.positions
    for layer in range(DEPTH):
        weights = jax.tree.map(lambda leaf, n=layer: leaf[n].astype(np.float64), params.blocks)
        q, k, v = np.split(linear(weights.qkv, layer_norm(weights.norm1, tokens)), 3, axis=2)
        heads = []
        for channels in (slice(0, 64), slice(64, 128)):
            scores = q[..., channels] @ k[..., channels].swapaxes(1, 2) / 8.0
            heads.append(softmax(scores, axis=2) @ v[..., channels])
        tokens = tokens + weights.gamma1 * linear(weights.projection, np.concatenate(heads, 2))
        hidden = linear(weights.expand, layer_norm(weights.norm2, tokens))
        tokens = tokens + weights.gamma2 * linear(weights.contract, hidden * ndtr(hidden))
    return layer_norm(params.norm, tokens[:, 0])


def linear(weights, x):
    return x @ weights.kernel.astype(np.float64) + weights.bias


def layer_norm(weights, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weights.scale + weights.bias


def test_one_channel_is_repeated(params):
    images = random_images(2, 28, 28, 1)
    ours = jax.jit(apply)(params, images)
    same = jax.jit(apply)(params, images.repeat(3, axis=3))
    np.testing.assert_allclose(ours, same, rtol=0, atol=1e-5)


def test_an_image_does_not_see_the_others(params):
    images = random_images(3, 40, 40, 3)
    together = jax.jit(apply)(params, images)
    alone = [jax.jit(apply)(params, image[None])[0] for image in images]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "must be uint8"),
        (np.zeros((8, 8, 3), np.uint8), "must be uint8"),
        (np.zeros((1, 8, 8, 4), np.uint8), "1 or 3 channels, not 4"),
    ],
)
def test_only_images_are_taken(images, message, params):
    with pytest.raises(ValueError, match=message):
        apply(params, images)


def test_without_gammas_the_class_token_passes_through(params):
    """features = norm(token + positions[0]), whatever the image."""
    nothing = np.zeros((DEPTH, WIDTH), np.float32)
    params = params._replace(blocks=params.blocks._replace(gamma1=nothing, gamma2=nothing))
    x = (params.token + params.positions[0]).astype(np.float64)
    expected = (x - x.mean()) / np.sqrt(x.var() + EPSILON) * params.norm.scale + params.norm.bias
    features = jax.jit(apply)(params, random_images(2, 32, 32, 3))
    np.testing.assert_allclose(features, [expected, expected], rtol=0, atol=1e-5)


def test_the_epsilon_is_inside_the_root(params):
    """A token of values +-1e-3 has the variance of the epsilon: norm gives +-1 / sqrt(2)."""
    nothing = np.zeros((DEPTH, WIDTH), np.float32)
    params = params._replace(
        token=np.tile(np.array([1e-3, -1e-3], np.float32), WIDTH // 2),
        positions=np.zeros_like(params.positions),
        blocks=params.blocks._replace(gamma1=nothing, gamma2=nothing),
        norm=Norm(np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)),
    )
    features = jax.jit(apply)(params, random_images(1, 32, 32, 3))
    np.testing.assert_allclose(np.abs(features), 0.5**0.5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["noise", "edges", "smooth"])
@pytest.mark.parametrize("size", [(28, 28), (64, 48), (224, 100), (256, 300), (640, 480)])
def test_resized_bit_for_bit_as_pillow(size, kind):
    images = pictures(kind, size)
    pillow = [Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC) for x in images]
    np.testing.assert_array_equal(jax.jit(resize_bicubic)(images), np.stack(pillow))


def pictures(kind, size):
    """Noise, blobs with sharp edges, or waves: uint8 [2, *size, 3]."""
    rng = np.random.default_rng(2)
    if kind == "noise":
        return random_images(2, *size, 3)
    rows, columns = (np.linspace(0.0, 6.0, side) for side in size)
    phases = rng.uniform(0.0, 6.0, (2, 2, 1, 1, 3))
    waves = np.sin(rows[:, None, None] + phases[0]) * np.cos(columns[:, None] + phases[1])
    values = np.sign(waves) if kind == "edges" else waves
    return np.round(127.5 * (1.0 + values)).astype(np.uint8)


def test_positions_are_read_where_the_published_code_reads_them():
    """A ramp gives the places that it is read at: a = -3/4 keeps straight lines to 0.048."""
    rows, columns = np.meshgrid(np.arange(37.0), np.arange(37.0), indexing="ij")
    table = np.stack([rows, columns, np.full((37, 37), 5.0)], axis=-1).reshape(-1, 3)
    ours = resample_positions(np.concatenate([[[7.0, 8.0, 9.0]], table]))
    assert ours.shape == (257, 3)
    np.testing.assert_array_equal(ours[0], [7.0, 8.0, 9.0])
    grid = ours[1:].reshape(16, 16, 3)
    places = (np.arange(1, 15) + 0.5) * 37 / 16.1 - 0.5  # the first and the last touch the border
    inside = grid[1:-1, 1:-1]
    np.testing.assert_allclose(inside[..., 0], np.tile(places[:, None], 14), rtol=0, atol=0.049)
    np.testing.assert_allclose(inside[..., 1], np.tile(places, (14, 1)), rtol=0, atol=0.049)
    np.testing.assert_allclose(grid[..., 2], 5.0, rtol=1e-12)


def test_cubic_weights_by_hand():
    """Row 0 is read at 0.5 x 37 / 16.1 - 0.5 = 0.649068; Keys' weights there with a = -3/4.

    Distances to -1, 0, 1, 2 are 1.649068, 0.649068, 0.350932, 1.350932; place -1 repeats place 0.
    """
    outside, near, next_, far = -0.059951, 0.393907, 0.776928, -0.110883
    row = cubic_matrix()[0]
    np.testing.assert_allclose(row[:3], [outside + near, next_, far], atol=2e-6)
    np.testing.assert_array_equal(row[3:], 0.0)


def test_a_file_becomes_the_parameters(published):
    path, tensors = published(mask_token=np.zeros((1, 384), np.float32))
    params = dinov2_params(path)
    leaves = jax.tree.leaves(params)
    assert all(leaf.dtype == np.float32 for leaf in leaves)
    assert params.positions.shape == (257, 384)
    qkv = tensors["blocks.3.attn.qkv.weight"]
    assert params.blocks.qkv.kernel.shape == (12, 384, 1152)
    np.testing.assert_array_equal(params.blocks.qkv.kernel[3], qkv.T)
    np.testing.assert_array_equal(params.blocks.gamma2[11], tensors["blocks.11.ls2.gamma"])
    place = params.patches.kernel.reshape(14, 14, 3, 384)[4, 5, 2, 6]
    assert place == tensors["patch_embed.proj.weight"][6, 2, 4, 5]
    assert jax.eval_shape(apply, params, random_images(2, 8, 8, 3)).shape == (2, 384)


def test_other_tensors_are_refused_by_name(published):
    path, _ = published(
        **{
            "blocks.4.ls1.gamma": None,
            "register_tokens": np.zeros((1, 4, 384), np.float32),
            "pos_embed": np.zeros((1, 257, 384), np.float32),
        }
    )
    with pytest.raises(ValueError) as error:
        dinov2_params(path)
    for part in (
        f"{path} does not hold the tensors of dinov2_vits14_pretrain.pth",
        "1 missing, such as blocks.4.ls1.gamma",
        "1 unknown, such as register_tokens",
        "1 of another shape, such as pos_embed",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("norm", [None, np.zeros(1536, np.float32)])
def test_another_network_is_refused(norm, published):
    path, _ = published(**{"norm.weight": norm})
    with pytest.raises(ValueError, match="weights.npz does not hold.* of dinov2_vitl14_pretrain"):
        dinov2_params(path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.pth.*dinov2_vitl14_pretrain.pth"):
        dinov2_params(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("width", "size"), [(384, 88_283_115), (768, 346_378_731), (1024, 1_217_586_395)]
)
def test_tensors_fill_the_published_files(width, size):
    """Bytes of the published files: four per number, and a few hundred around each tensor."""
    shapes = [*dinov2_shapes(width).values(), (1, width)]  # the mask token, which is ignored
    around = size - 4 * sum(int(np.prod(shape)) for shape in shapes)
    assert 0 < around < 400 * len(shapes)
