"""Sharded safetensors, types that are not read, and files that are larger than the memory."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from fewstep.weights.tensors import file_hashes, read_tensors
from tests.weights.formats import VALUES, entry, safetensors

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    """Two shards and their index; returns the index and a function that writes it anew."""
    safetensors(tmp_path / "one.safetensors", {"a": entry("F32", [3, 4], 0, 48)}, VALUES.tobytes())
    header = {"b": entry("F32", [4], 0, 16), "c": entry("F32", [4], 16, 32)}
    safetensors(tmp_path / "two.safetensors", header, VALUES[1:].tobytes())

    def write(places):
        content = {"metadata": {"total_size": 80}, "weight_map": places}
        (tmp_path / INDEX).write_text(json.dumps(content, indent=2))
        return tmp_path / INDEX

    return write


PLACES = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}


def test_shards_are_read_by_their_index(sharded):
    tensors = read_tensors(sharded(PLACES))
    assert list(tensors) == ["a", "b", "c"]
    np.testing.assert_array_equal(tensors["a"], VALUES, strict=True)
    np.testing.assert_array_equal(tensors["c"], VALUES[2], strict=True)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (PLACES | {"d": "three.safetensors"}, r"three\.safetensors is not beside it"),
        (PLACES | {"d": "two.safetensors"}, r"two\.safetensors has other tensors than it says: d"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "other tensors than it says: c"),
        (PLACES | {"d": "../one.safetensors"}, r"d is in '\.\./one\.safetensors', no file beside"),
        (PLACES | {"d": "/etc/passwd"}, "d is in '/etc/passwd', no file beside it"),
        (PLACES | {"d": 5}, "d is in '5', no file beside it"),
        (PLACES | {"d": ".."}, r"\.\. is not beside it"),
        ({}, "no index of safetensors: it has no weight_map"),
    ],
    ids=str,
)
def test_an_index_that_does_not_fit_is_refused(places, message, sharded):
    path = sharded(places)
    with pytest.raises(ValueError, match=rf"{INDEX} cannot be read.*{message}"):
        read_tensors(path)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', "{", '{"a": 1, "a": 2}'])
def test_other_json_is_refused(text, tmp_path):
    path = tmp_path / INDEX
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{INDEX} cannot be read"):
        read_tensors(path)


def test_an_index_has_no_parts(sharded):
    with pytest.raises(ValueError, match="it has tensors and no parts"):
        read_tensors(sharded(PLACES), "ema")


def test_hashes_are_of_the_index_and_of_its_shards(sharded):
    path = sharded(PLACES)
    hashes = file_hashes(path)
    assert list(hashes) == [INDEX, "one.safetensors", "two.safetensors"]
    for name, digest in hashes.items():
        assert digest == hashlib.sha256((path.parent / name).read_bytes()).hexdigest()
    one = path.parent / "one.safetensors"
    assert file_hashes(one) == {one.name: hashes[one.name]}


def test_numbers_of_8_bits_are_refused_in_a_sentence(tmp_path):
    for kind in ("F8_E4M3", "F8_E5M2"):
        path = safetensors(tmp_path / "file", {"x.scale": entry(kind, [4], 0, 4)}, bytes(4))
        message = rf"x\.scale has type {kind}, which is not read: .* use the file of float16"
        with pytest.raises(ValueError, match=message):
            read_tensors(path)
    path = safetensors(tmp_path / "file", {"x": entry("C64", [1], 0, 8)}, bytes(8))
    with pytest.raises(ValueError, match="x has type C64, which is not read: the types are F64"):
        read_tensors(path)


READ_LARGE = """
import resource, sys
from fewstep.weights.tensors import read_tensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tensors = read_tensors(sys.argv[1])
assert tensors["b"][-1] == 3.0 and tensors["a"].shape == (2**28,)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_file_is_mapped_and_not_copied(tmp_path):
    # A hole of 1 GiB, which takes no space on the disk, then a tensor of data.
    path, size = tmp_path / "large.safetensors", 2**30
    header = {
        "a": entry("F32", [2**28], 0, size),
        "b": entry("F32", [4], size, size + 16),
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(size, 1)
        file.write(np.array([0, 1, 2, 3], np.float32).tobytes())
    grown = subprocess.run(
        [sys.executable, "-c", READ_LARGE, path], capture_output=True, text=True, check=True
    ).stdout
    assert int(grown) < 64 * 1024  # KiB


def test_arrays_are_read_only_views(tmp_path):
    header = {"a": entry("F32", [3, 4], 0, 48)}
    array = read_tensors(safetensors(tmp_path / "file", header, VALUES.tobytes()))["a"]
    assert not array.flags.writeable and not array.flags.owndata
