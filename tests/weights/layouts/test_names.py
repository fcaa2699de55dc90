"""Tables of names: arrays go to their places and back without a change, and nothing else passes."""

import numpy as np
import pytest

from fewstep.weights.layouts.names import (
    affine,
    below,
    convolution,
    flatten,
    norm,
    read_layout,
    unwrapped,
    without,
    write_layout,
)

LAYOUT = (
    convolution("a.conv", "a/conv", 2, 3)
    | affine("b.0", "b/first", 4, 5)
    | affine("b.1", "b/second", 4, 5, pointwise=True, bias=False)
    | norm("n", "norm", 6)
)


def draw(layout=LAYOUT):
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(place.shape).astype(np.float32) for name, place in layout.items()
    }


def read(tensors):
    return read_layout(tensors, LAYOUT, "some.pth", "a test")


def test_arrays_go_to_their_places():
    tensors = draw()
    tree = read(tensors)
    kernel = tree["a"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 2, 3)
    assert kernel[0, 1, 1, 2] == tensors["a.conv.weight"][2, 1, 0, 1]
    assert tree["b"]["first"]["kernel"][3, 4] == tensors["b.0.weight"][4, 3]
    assert tree["b"]["second"] == {"kernel": tree["b"]["second"]["kernel"]}
    assert tree["b"]["second"]["kernel"][3, 4] == tensors["b.1.weight"][4, 3, 0, 0]
    np.testing.assert_array_equal(tree["norm"]["scale"], tensors["n.weight"])
    np.testing.assert_array_equal(tree["norm"]["bias"], tensors["n.bias"])


def test_a_round_trip_is_exact():
    tensors = draw()
    back = write_layout(read(tensors), LAYOUT)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)


def test_half_types_become_float32():
    tensors = {name: array.astype(np.float16) for name, array in draw().items()}
    tree = read(tensors)
    assert {leaf.dtype for leaf in flatten(tree).values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(tree["norm"]["scale"], tensors["n.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("n.bias"), r"some\.pth .* a test: 1 missing, such as n\.bias"),
        (lambda t: t.update(extra=t["n.bias"]), "1 unknown, such as extra"),
        (lambda t: t.update({"n.bias": np.zeros(7)}), r"of another shape, such as n\.bias"),
        (lambda t: t["n.bias"].fill(np.nan), r"some\.pth: n\.bias has values that are not finite"),
    ],
)
def test_other_files_are_refused(change, message):
    tensors = draw()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        read(tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["norm"].pop("bias"), "the tree lacks norm/bias"),
        (lambda t: t["norm"].update(mean=np.zeros(6)), "the tree has unknown norm/mean"),
        (lambda t: t["norm"].update(bias=np.zeros(7)), r"norm/bias is \[7\].* not \[6\]"),
    ],
)
def test_other_trees_are_refused(change, message):
    tree = read(draw())
    change(tree)
    with pytest.raises(ValueError, match=message):
        write_layout(tree, LAYOUT)


def test_wrappers_are_taken_off_only_from_all_names():
    assert unwrapped({"module._orig_mod.a": 1, "module._orig_mod.b": 2}) == {"a": 1, "b": 2}
    assert unwrapped({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}
    assert unwrapped({}) == {}


def test_parts_of_a_file():
    tensors = {"vae.a": 1, "vae.b": 2, "text.a": 3}
    assert below(tensors, "vae.") == {"a": 1, "b": 2}
    assert without(tensors, ("vae.", "x")) == {"text.a": 3}
