"""Published layouts and our tree: every leaf finds its place and back, and nothing else passes.

tests/parity compares the functions with the publishers' networks.
"""

import jax
import numpy as np
import pytest

from fewstep.models.dit import dit
from fewstep.weights.layouts.blocks import split_blocks, stack_blocks
from fewstep.weights.layouts.diffusers_dit import read_diffusers, write_diffusers
from fewstep.weights.layouts.dit import read_meta, write_meta
from fewstep.weights.layouts.mean_flow import read_mean_flow, write_mean_flow
from tests.published import meta_tensors, positions, small_dit, with_variance

FILE = "published.pt"


def assert_equal(tree, other):
    """Both trees have the same keys, and equal float32 leaves."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), tree, other)


def layouts():
    """By layout: the tensors of a random network, its parameters, and the reader."""
    _, params, sizes = small_dit()
    _, flow_params, _ = small_dit(second_time="interval", time_scale=1.0)
    return {
        "meta": (meta_tensors(params, sizes), params, read_meta),
        "diffusers": (write_diffusers(params, sizes), params, read_diffusers),
        "mean_flow": (write_mean_flow(flow_params, sizes), flow_params, read_mean_flow),
    }


LAYOUTS = layouts()
EACH = pytest.mark.parametrize("layout", LAYOUTS)


@EACH
def test_a_tree_comes_back_from_its_published_names(layout):
    tensors, params, read = LAYOUTS[layout]
    converted = read(tensors, FILE)
    assert_equal(converted.tree, params)
    sizes = small_dit()[2]
    assert converted.sizes == sizes._replace(side=sizes.side if layout == "meta" else None)


def test_tensors_of_the_names_of_meta():
    tensors, params, _ = LAYOUTS["meta"]
    # The patch embedding is a convolution [out, c, p, p], whose pixel (1, 0) of channel 2 is the
    # number 2 * 3 + 2 of a token (p, p, c).
    np.testing.assert_array_equal(
        tensors["x_embedder.proj.weight"][:, 2, 1, 0], params["patch_embedding"]["kernel"][8]
    )
    np.testing.assert_array_equal(
        tensors["blocks.2.attn.qkv.weight"].T, params["block_2"]["attention"]["qkv"]["kernel"]
    )
    assert tensors["pos_embed"].shape == (1, 16, 64)
    assert tensors["y_embedder.embedding_table.weight"].shape == (6, 64)


def test_diffusers_repeats_the_embedders_and_splits_queries_keys_and_values():
    tensors, params, _ = LAYOUTS["diffusers"]
    table = params["conditioning"]["label_table"]
    key = params["block_1"]["attention"]["qkv"]["kernel"][:, 64:128]
    for index in range(3):
        name = f"transformer_blocks.{index}.norm1.emb.class_embedder.embedding_table.weight"
        np.testing.assert_array_equal(tensors[name], table)
    np.testing.assert_array_equal(tensors["transformer_blocks.1.attn1.to_k.weight"].T, key)


def test_copies_of_the_embedders_that_differ_are_refused():
    tensors, _, read = LAYOUTS["diffusers"]
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"
    changed = {**tensors, name: tensors[name] + 1e-6}
    with pytest.raises(ValueError, match=r"published\.pt: the embedders of block_2 differ"):
        read(changed, FILE)


@pytest.mark.parametrize("layout", ["meta", "diffusers"])
def test_the_variance_is_dropped(layout):
    tensors, params, read = LAYOUTS[layout]
    names = {"meta": "final_layer.linear", "diffusers": "proj_out_2"}[layout]
    sizes, meta = small_dit()[2], "final_layer.linear"
    renamed = {f"{meta}.{leaf}": tensors[f"{names}.{leaf}"] for leaf in ("weight", "bias")}
    wide = {
        name.replace(meta, names): array for name, array in with_variance(renamed, sizes).items()
    }
    assert wide[f"{names}.weight"].shape == (24, 64)
    assert_equal(read({**tensors, **wide}, FILE).tree, params)


def test_positions_come_with_the_tree():
    tensors, _, read = LAYOUTS["meta"]
    np.testing.assert_array_equal(read(tensors, FILE).positions, positions(small_dit()[2]))
    with pytest.raises(ValueError, match=r"pos_embed is \[1, 15, 64\], which is no square"):
        read({**tensors, "pos_embed": tensors["pos_embed"][:, 1:]}, FILE)


def test_projectors_of_repa_are_dropped_where_they_may_be():
    tensors, params, read = LAYOUTS["meta"]
    tensors = {**tensors, "projectors.0.0.weight": np.zeros((2, 2), np.float32)}
    assert_equal(read(tensors, FILE, "a REPA network", projectors=True).tree, params)
    with pytest.raises(ValueError, match=r"1 unknown, such as projectors\.0\.0\.weight"):
        read(tensors, FILE)


def test_prefixes_of_wrappers_are_dropped():
    tensors, params, read = LAYOUTS["meta"]
    wrapped = {f"module._orig_mod.{name}": array for name, array in tensors.items()}
    assert_equal(read(wrapped, FILE).tree, params)


@EACH
def test_a_file_with_other_names_or_shapes_is_refused(layout):
    tensors, _, read = LAYOUTS[layout]
    for name in tensors:
        missing = {other: array for other, array in tensors.items() if other != name}
        with pytest.raises(ValueError, match=rf"{FILE}.*(missing|unknown)"):
            read(missing, FILE)
        if "embedding" in name and layout != "diffusers":
            continue  # a longer table has more classes
        longer = {**tensors, name: np.concatenate([tensors[name]] * 3)}
        with pytest.raises(ValueError, match=f"{FILE}"):
            read(longer, FILE)
    with pytest.raises(ValueError, match="1 unknown, such as .*extra"):
        read({**tensors, ("net/" if layout == "mean_flow" else "") + "extra": np.zeros(1)}, FILE)
    one = [*tensors][1]
    with pytest.raises(ValueError, match="not finite"):
        read({**tensors, one: np.full_like(tensors[one], np.inf)}, FILE)


def test_exchanged_blocks_change_the_tree():
    tensors, params, read = LAYOUTS["meta"]
    swap = {"blocks.0.": "blocks.1.", "blocks.1.": "blocks.0."}
    exchanged = {swap.get(name[:9], name[:9]) + name[9:]: a for name, a in tensors.items()}
    tree = read(exchanged, FILE).tree
    assert_equal(tree["block_1"], params["block_0"])


def test_stacked_blocks_are_those_of_the_loop():
    _, params, sizes = small_dit()
    network = dit((8, 8, 3), 5, size="nano", scan=True)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    stacked = stack_blocks(params)
    assert jax.tree.map(np.shape, stacked) == jax.tree.map(np.shape, shapes)
    assert_equal(split_blocks(stacked), params)
    for write in (
        lambda tree: write_meta(tree, sizes, positions(sizes)),
        lambda tree: write_diffusers(tree, sizes),
    ):
        assert_equal(write(stacked), write(params))
