"""Checkpoints of Flax: files and folders, parts, and damage."""

import numpy as np
import pytest
from flax import config
from flax.serialization import msgpack_serialize
from flax.training import checkpoints

from fewstep.weights.flax_checkpoints import find_checkpoint
from fewstep.weights.tensors import parts_of, read_tensors

DENSE = {"bias": np.ones(3), "kernel": np.arange(6.0, dtype="f4").reshape(2, 3)}
PARAMS = {"net": {"dense": DENSE}}
STATE = {"ema": {"net": {"scale": np.full(2, 7.0)}}, "none": None, "params": PARAMS, "step": 3}


def save(path, state=STATE):
    path.write_bytes(msgpack_serialize(state))
    return path


def test_parts_of_a_file(tmp_path):
    path = save(tmp_path / "checkpoint_3")
    assert parts_of(path) == ["ema", "params"]
    found = read_tensors(path, "params")
    assert sorted(found) == ["net/dense/bias", "net/dense/kernel"]
    np.testing.assert_array_equal(found["net/dense/kernel"], DENSE["kernel"])
    assert list(read_tensors(path, "ema/net")) == ["scale"]
    whole = read_tensors(save(tmp_path / "whole", PARAMS))
    assert sorted(whole) == ["net/dense/bias", "net/dense/kernel"]


def test_what_is_no_part_is_refused_and_the_parts_are_named(tmp_path):
    path = save(tmp_path / "checkpoint_3")
    with pytest.raises(ValueError, match="it holds more than named arrays: (step is int|none is)"):
        read_tensors(path)
    with pytest.raises(ValueError, match="no part 'average' of arrays; it has ema, params"):
        read_tensors(path, "average")


def test_what_flax_writes_is_found_in_its_folder(tmp_path, monkeypatch):
    """The newest by number. Orbax of that time wrote the same file into a folder."""
    monkeypatch.setitem(config._values, "flax_use_orbax_checkpointing", False)
    for step in (9, 10):
        checkpoints.save_checkpoint(tmp_path / "run", STATE | {"step": step}, step, keep=2)
    found = find_checkpoint(tmp_path / "run")
    assert "checkpoint_10" in str(found)
    np.testing.assert_array_equal(
        read_tensors(found, "params")["net/dense/kernel"], DENSE["kernel"]
    )
    (tmp_path / "orbax").mkdir()
    save(tmp_path / "orbax" / "checkpoint")
    assert find_checkpoint(tmp_path / "orbax") == tmp_path / "orbax" / "checkpoint"
    (tmp_path / "empty").mkdir()
    assert find_checkpoint(tmp_path / "empty") is None


def test_arrays_in_other_files_are_not_here(tmp_path):
    path = save(tmp_path / "checkpoint", {"params": {"kernel": "PLACEHOLDER://params.kernel"}})
    with pytest.raises(ValueError, match=r"lie in other files.*restore it once by Flax"):
        read_tensors(path, "params")


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:40], lambda b: b"\x85" + b[1:]])
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = save(tmp_path / "checkpoint_3")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        read_tensors(path, "params")
