"""EDM's files and our trees: every leaf finds its place and back, and nothing else passes.

tests/parity compares the networks with PyTorch.
"""

import jax
import numpy as np
import pytest

from fewstep.models.song_unet import song_unet
from fewstep.weights.layouts.adm_unet import read_adm_unet, write_adm_unet
from fewstep.weights.layouts.song_unet import NAMES, read_song_unet, write_song_unet
from fewstep.weights.layouts.unet import UNetSizes, filter_names, unet_layout
from tests.unets import edm_tensors, small_unet

CASES = {
    "conditional": ("song_unet", {}),
    "unconditional": ("song_unet", {"classes": 0}),
    "ncsnpp": ("song_unet", {"variant": "ncsnpp", "multipliers": (1, 2, 2)}),
    "adm": ("adm_unet", {"multipliers": (1, 2, 3)}),
    "adm without classes": ("adm_unet", {"classes": 0}),
}
READ = {"song_unet": read_song_unet, "adm_unet": read_adm_unet}
WRITE = {"song_unet": write_song_unet, "adm_unet": write_adm_unet}
FILE = "edm.pkl"


@pytest.mark.parametrize("case", CASES)
def test_a_tree_and_its_sizes_come_back_from_the_published_names(case):
    name, fields = CASES[case]
    _, params, sizes = small_unet(name, **fields)
    tensors = edm_tensors(name, **fields)
    found = READ[name](tensors, FILE)
    assert found.sizes == sizes
    jax.tree.map(np.testing.assert_array_equal, found.tree, params)
    bare = {key.removeprefix("model."): array for key, array in tensors.items()}
    jax.tree.map(np.testing.assert_array_equal, READ[name](bare, FILE).tree, params)


def test_queries_keys_and_values_lie_channel_by_channel_in_a_file():
    tensors, (_, params, _) = edm_tensors(), small_unet()
    ours = params["middle_0"]["attention"]["qkv"]
    theirs = tensors["model.dec.4x4_in0.qkv.weight"][:, :, 0, 0]
    for part in range(3):  # of 8 channels each
        kernel = ours["kernel"][:, 8 * part : 8 * part + 8]
        np.testing.assert_array_equal(theirs[part::3].T, kernel)
    np.testing.assert_array_equal(tensors["model.dec.4x4_in0.qkv.bias"][1::3], ours["bias"][8:16])


def test_cifar10_s_file_has_427_tensors():
    # Karras et al. 2022, class-conditional DDPM++: that many names are in the state dict.
    sizes = UNetSizes(32, 3, 10, 128, (2, 2, 2), 4, (16,), "ddpmpp")
    layout = unet_layout(sizes, NAMES)
    augment = 1
    assert len(layout) + len(filter_names(sizes, NAMES)) + augment == 427
    shapes = jax.eval_shape(song_unet((32, 32, 3), 10).init, jax.random.key(0))
    assert len(layout) == len(jax.tree.leaves(shapes))
    assert layout["enc.32x32_block0.conv0.weight"].shape == (256, 128, 3, 3)


def remove(name):
    return lambda tensors: tensors.pop(name)


def add(name, shape=(1, 1)):
    return lambda tensors: tensors.update({name: np.ones(shape, np.float32)})


def scale_filter(tensors):
    tensors["model.enc.4x4_down.conv0.resample_filter"] = np.full((1, 1, 2, 2), 0.3, np.float32)


def smooth_filter(tensors):
    tensors["model.dec.8x8_up.skip.resample_filter"] = np.ones((1, 1, 4, 4), np.float32)


def cut_level(tensors):
    for name in [name for name in tensors if "enc.4x4" in name]:
        del tensors[name]


def break_bias(tensors):
    tensors["model.dec.4x4_in1.conv1.bias"][0] = np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("model.enc.4x4_block0.qkv.bias"), r"1 missing, such as enc\.4x4_block0\.qkv\.bias"),
        (remove("model.enc.4x4_down.skip.resample_filter"), "1 missing, such as enc.4x4_down.skip"),
        (remove("model.map_layer0.weight"), "1 missing, such as map_layer0.weight"),
        (add("model.enc.4x4_aux_skip.weight"), "1 unknown, such as enc.4x4_aux_skip.weight"),
        (add("model.enc.8x8_conv.resample_filter"), "1 unknown, such as enc.8x8_conv.resample"),
        (add("u"), "1 missing|missing, such as"),
        (add("model.map_label.weight", (4, 9, 1)), "is no matrix"),
        (add("model.out_conv.bias", (2,)), "1 unknown, such as out_conv.bias"),
        (scale_filter, r"enc\.4x4_down\.conv0\.resample_filter is not the filter \[1, 1\]"),
        (smooth_filter, r"1 of another shape, such as dec\.8x8_up\.skip\.resample_filter"),
        (cut_level, r"2 unknown, such as dec\.8x8_up\.conv0\.resample_filter"),
        (break_bias, r"dec\.4x4_in1\.conv1\.bias has values that are not finite"),
        (dict.clear, "missing"),
    ],
)
def test_another_file_is_refused_with_what_is_wrong(change, message):
    tensors = edm_tensors()
    change(tensors)
    with pytest.raises(ValueError, match=f"{FILE}.*{message}"):
        read_song_unet(tensors, FILE)


def test_the_file_of_one_network_is_not_that_of_the_other():
    with pytest.raises(ValueError, match="does not hold the tensors of an ADM network"):
        read_adm_unet(edm_tensors(), FILE)
    with pytest.raises(ValueError, match="does not hold the tensors of a DDPM"):
        read_song_unet(edm_tensors("adm_unet"), FILE)
