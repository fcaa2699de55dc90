"""LPIPS: its formula on small networks, its sizes, and its published files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models import lpips
from fewstep.models.lpips import (
    BACKBONES,
    Conv,
    compared_maps,
    convolutions,
    lpips_distance,
    lpips_init,
    smallest_side,
)
from fewstep.weights.layouts.lpips import read_lpips, write_lpips

KEY = jax.random.key(0)
SMALL = (Conv(0, 4, stride=2, tapped=True), Conv(3, 5, side=5, padding=2, pool=3, tapped=True))


@pytest.fixture
def small(monkeypatch):
    """Parameters of a backbone of two convolutions."""
    monkeypatch.setitem(BACKBONES, "small", SMALL)
    return lpips_init("small", (12, 12, 3))(KEY)


def images(seed, channels=3):
    return jax.random.uniform(jax.random.key(seed), (3, 12, 12, channels), minval=-1.0)


def test_it_is_the_weighted_distance_of_unit_channels(small):
    a, b = images(1), images(2)
    one, other = (compared_maps(SMALL, small, x) for x in (a, b))
    assert {name: x.shape for name, x in one.items()} == {
        "head_0": (3, 6, 6, 4),
        "head_3": (3, 2, 2, 5),
    }
    expected = 0.0
    for name in one:
        x, y = np.asarray(one[name], float), np.asarray(other[name], float)
        lengths = np.linalg.norm(x, axis=-1)
        assert ((np.abs(lengths - 1.0) < 1e-4) | (lengths == 0.0)).all()
        expected += ((x - y) ** 2 @ np.asarray(small[name], float)).mean((1, 2))
    np.testing.assert_allclose(lpips_distance("small", small, a, b), expected, rtol=1e-4)
    np.testing.assert_array_equal(lpips_distance("small", small, a, a), np.zeros(3))


def test_a_grey_image_counts_as_three_equal_channels(small):
    a, b = images(1, channels=1), images(2, channels=1)
    three = (jnp.repeat(x, 3, axis=-1) for x in (a, b))
    grey = lpips_distance("small", small, a, b)
    np.testing.assert_allclose(grey, lpips_distance("small", small, *three), rtol=1e-5)


def test_its_gradient_is_finite_at_equal_images_and_where_no_unit_is_active(small):
    dark = jax.tree.map(lambda leaf: leaf - 9.0, {**small, "head_0": small["head_0"] + 9.0})
    gradient = jax.grad(lambda a, params: lpips_distance("small", params, a, images(1)).sum())
    for params in (small, dark):
        assert jnp.isfinite(gradient(images(1), params)).all()


@pytest.mark.parametrize(("name", "side"), [("vgg", 16), ("alex", 31)])
def test_the_smallest_image_has_one_last_position(name, side):
    backbone = BACKBONES[name]
    assert smallest_side(backbone) == side
    for own, last in ((side, 1), (side - 1, 0)):
        shape = jax.eval_shape(lpips.lpips_init(name, (64, 64, 3)), KEY)
        x = jax.ShapeDtypeStruct((1, own, own, 3), jnp.float32)
        maps = jax.eval_shape(lambda p, x: compared_maps(backbone, p, x), shape, x)
        assert maps[f"head_{backbone[-1].place}"].shape[1] == last
    with pytest.raises(ValueError, match=f"{name} takes images of {side} x {side} pixels or more"):
        lpips_init(name, (side - 1, 64, 3))


def test_other_channels_than_those_of_pictures_are_refused():
    with pytest.raises(ValueError, match="images of 1 or 3 channels, not 32 x 32 x 4"):
        lpips_init("vgg", (32, 32, 4))


@pytest.mark.parametrize("sliced", [False, True])
def test_files_become_parameters_and_back(small, tmp_path, sliced):
    tensors = write_lpips(jax.device_get(small), convolutions("small"), sliced)
    names = {name for name in tensors if name.endswith("weight")}
    first, second = ("net.slice1.0", "net.slice2.3") if sliced else ("features.0", "features.3")
    assert names == {
        f"{first}.weight",
        f"{second}.weight",
        "lin0.model.1.weight",
        "lin1.model.1.weight",
    }
    files = tmp_path / "backbone.npz", tmp_path / "heads.npz"
    heads = {name for name in tensors if name.startswith("lin")}
    np.savez(files[0], **{k: v for k, v in tensors.items() if k not in heads})
    np.savez(files[1], **{k: tensors[k] for k in heads}, **{"scaling_layer.shift": np.ones(3)})
    found = read_lpips(files, convolutions("small"))
    assert jax.tree.structure(found) == jax.tree.structure(small)
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(small))
    with pytest.raises(ValueError, match="lin0.model.1.weight"):
        read_lpips(files[:1], convolutions("small"))
    with pytest.raises(FileNotFoundError, match="no file .*gone.pth. LPIPS needs torchvision"):
        read_lpips([tmp_path / "gone.pth"], convolutions("small"))
