"""Pickles of NumPy arrays are read without running them, and refused if they hold anything else."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from flax.core import freeze

from fewstep.weights.tensors import parts_of, read_tensors

ARRAYS = {
    "layer": {
        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bias": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(3, 2)),
    },
    "scale": np.full((), 3, np.float16),
}


@pytest.fixture
def saved(tmp_path):
    """A function that pickles a content and returns the file."""

    def write(content, protocol=4):
        path = tmp_path / "file"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return write


def assert_arrays(found):
    expected = {"layer/kernel": ARRAYS["layer"]["kernel"], "layer/bias": ARRAYS["layer"]["bias"]}
    expected["scale"] = ARRAYS["scale"]
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_dict_of_flax_is_a_dict(saved):
    assert_arrays(read_tensors(saved({**ARRAYS, "layer": freeze(ARRAYS["layer"])})))


@pytest.mark.parametrize("protocol", [4, 5])
def test_nested_arrays_are_named_by_their_keys(saved, protocol):
    assert_arrays(read_tensors(saved(ARRAYS, protocol)))


def test_a_part_is_read_beside_anything_else(saved):
    state = {"params": ARRAYS, "ema": ARRAYS, "opt": (ARRAYS, Exploding()), "step": np.array(3)}
    path = saved({"state": state, "time": 1.5, "note": None})
    assert parts_of(path) == ["state/params", "state/ema"]
    assert_arrays(read_tensors(path, "state/ema"))
    with pytest.raises(ValueError, match="no part 'ema' of arrays; it has state/params, state/ema"):
        read_tensors(path, "ema")
    with pytest.raises(ValueError, match="holds more than named arrays: opt is tuple"):
        read_tensors(path, "state")


class Exploding:
    """Would end the test if it was unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Exploding()}, "a is builtins.exec"),
        ({"a": np.zeros(3, ml_dtypes.bfloat16)}, "a has a shape, a type or bytes"),
        ({"a": np.array(["text"])}, "a has a shape, a type or bytes"),
        ({"a": 1.0}, "a is float"),
        (pickle.dumps(ARRAYS, 4)[:-40], "it has no end|cut short|pickle exhausted|not enough"),
    ],
)
def test_what_is_no_array_is_refused(saved, content, message):
    with pytest.raises(ValueError, match=message):
        read_tensors(saved(content))


def test_dicts_that_hold_each_other_a_billion_times_end(saved):
    content = {"a": ARRAYS["scale"]}
    for _ in range(12):
        content = {str(index): content for index in range(10)}
    with pytest.raises(ValueError, match="its dicts are too many or nested too deeply"):
        read_tensors(saved(content))
