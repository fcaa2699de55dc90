"""One part of a training checkpoint is read; what lies beside it is neither read nor run."""

import argparse
import os
import pickle
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from fewstep.weights.tensors import parts_of, read_tensors
from tests.weights.formats import VALUES, Call, whole


class Holder:
    """An object of a class that nobody who reads the file has."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


class Recorder(dict):
    """A dict of a class of its own, which a pickle fills item by item."""


def checkpoint(**changes):
    """What DiT's and SiT's code saves, and more; tensors of "ema" lie on storage 0."""
    return {
        "model": OrderedDict(a=whole(key="1")),
        "ema": OrderedDict(a=whole(), b=whole(offset=4, shape=(4,), strides=(1,))),
        "opt": {
            "state": {0: {"step": 7, "exp_avg": whole(key="2")}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}],
        },
        "args": argparse.Namespace(model="SiT-XL/2", epochs=1400, path=None, seed=-3),
        "callbacks": {Holder: 1, (1, 2): 3},
        "holder": Holder(inner=Holder(), names=["x"]),
        "recorder": Recorder(a=1, b=[2]),
        "numbers": np.arange(3),
        "scalar": np.float64(2.5),
        "bytes": b"abc",
    } | changes


STORAGES = {key: (VALUES + int(key)).tobytes() for key in "012"}


@pytest.fixture(params=["archive", "stream"])
def write(request):
    """A function that writes a checkpoint in each of PyTorch's formats and returns its path."""
    make = request.getfixturevalue(request.param)

    def file(content):
        lengths = {key: (12, raw) for key, raw in STORAGES.items()}
        return make(content, STORAGES if request.param == "archive" else lengths)

    return file


def test_a_part_is_read_and_the_rest_is_not(write):
    path = write(checkpoint())
    ema = read_tensors(path, "ema")
    assert list(ema) == ["a", "b"]
    np.testing.assert_array_equal(ema["a"], VALUES, strict=True)
    np.testing.assert_array_equal(ema["b"], VALUES[1], strict=True)
    np.testing.assert_array_equal(read_tensors(path, "model")["a"], VALUES + 1, strict=True)


def test_the_parts_of_a_checkpoint_are_listed(write):
    assert parts_of(write(checkpoint())) == ["model", "ema"]


def test_a_checkpoint_is_no_state_dict(write):
    with pytest.raises(ValueError, match="cannot be read"):
        read_tensors(write(checkpoint()))


def test_a_part_that_is_not_there_is_named_with_those_that_are(write):
    with pytest.raises(ValueError, match=r"no part 'average' of tensors; it has model, ema"):
        read_tensors(write(checkpoint()), "average")
    with pytest.raises(ValueError, match=r"no part 'opt' of tensors"):
        read_tensors(write(checkpoint()), "opt")


@pytest.mark.parametrize("content", [OrderedDict(a=whole()), [whole()], whole()])
def test_a_file_without_parts_has_none(content, archive):
    path = archive(content, STORAGES)
    assert parts_of(path) == []
    with pytest.raises(ValueError, match="no part 'ema' of tensors; it has none"):
        read_tensors(path, "ema")


@pytest.mark.parametrize("name", ["file.npz", "file.safetensors", "other.bin"])
def test_other_formats_have_no_parts(name, tmp_path):
    path = tmp_path / name
    with path.open("wb") as file:
        if name == "file.npz":
            np.savez(file, a=VALUES)
        else:
            header = b'{"a":{"dtype":"F32","shape":[12],"data_offsets":[0,48]}}'
            start = b"" if name == "other.bin" else len(header).to_bytes(8, "little")
            file.write(start + header + VALUES.tobytes())
    assert parts_of(path) == []
    if name != "other.bin":
        with pytest.raises(ValueError, match="tensors and no parts, so none is called 'ema'"):
            read_tensors(path, "ema")


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_nothing_is_called_wherever_it_lies(place, write, tmp_path):
    marker = tmp_path / "ran"
    call = Call(os.mkdir, str(marker))
    if place == "beside":
        path = write(checkpoint(args=call))
        np.testing.assert_array_equal(read_tensors(path, "ema")["a"], VALUES)
        assert parts_of(path) == ["model", "ema"]
    else:
        path = write(checkpoint(ema={"a": whole(), "b": call}))
        with pytest.raises(ValueError, match=f"part ema asks for {os.name}.mkdir, which no tensor"):
            read_tensors(path, "ema")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"a": whole(), "b": argparse.Namespace(x=1)}, "part ema asks for argparse.Namespace"),
        ({"a": whole(), "b": np.arange(3)}, "part ema asks for numpy"),
        ({"a": whole(), (1, 2): whole()}, "part ema asks for keys that are neither"),
        ({"a": whole(), "step": 3}, r"more than named tensors: \['step'\]"),
        ({"a": whole(), 5: whole()}, r"more than named tensors: \[5\]"),
        (Recorder(a=whole()), "no part 'ema' of tensors; it has model"),
    ],
    ids=["object", "array", "pair as key", "number", "number as key", "other class"],
)
def test_a_part_has_tensors_alone(part, message, archive):
    with pytest.raises(ValueError, match=message):
        read_tensors(archive(checkpoint(ema=part), STORAGES), "ema")


def test_a_storage_of_another_kind_stays_outside(archive, pickled):
    # Of a kind that has no element type here, or a view of a part of another.
    odd = whole("ObjectStorage", key="1")
    path = archive(checkpoint(model={"a": odd}), STORAGES)
    np.testing.assert_array_equal(read_tensors(path, "ema")["a"], VALUES)
    with pytest.raises(ValueError, match="no part 'model' of tensors"):
        read_tensors(path, "model")


def test_objects_of_newer_protocols_stay_outside(tmp_path):
    content = {"set": {1, 2}, "frozen": frozenset("ab"), "bytes": b"a" * 300, "holder": Holder(x=1)}
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(content, protocol=4))
    with pytest.raises(ValueError, match="no part 'ema' of tensors; it has none"):
        read_tensors(path, "ema")


DOUBLED = b")" + b"q\x00h\x00\x86" * 60  # a pair of a pair of ...: 2^60 parts in 300 bytes


@pytest.mark.parametrize(
    "instructions",
    [
        b"}" + DOUBLED + b"Ns.",
        b"carg\nf\n" + DOUBLED + b"\x81.",
        b"carg\nf\n" + DOUBLED + b"R.",
        b"carg\nf\n)\x81" + DOUBLED + b"b.",
        b"}" * 5 * 10**6 + b".",
        b"carg\nf\n" + b")\x85" * 10**5 + b"\x81.",
        b"R.",
        b"\x81.",
        b"}b.",
        b"(\x90.",
    ],
    ids=lambda part: str(part[:20]),
)
def test_hostile_checkpoints_are_refused_at_once(instructions, tmp_path):
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + instructions)
    start = time.monotonic()
    with pytest.raises(ValueError, match="archive.pth cannot be read") as failure:
        read_tensors(path, "ema")
    assert time.monotonic() - start < 20 and len(str(failure.value)) < 1000


@pytest.mark.parametrize("format_", ["archive", "stream"])
def test_no_part_of_a_file_passes_for_the_whole(format_, request):
    small = {"ema": {"a": whole()}, "args": argparse.Namespace(x=1)}
    raw = {"archive": VALUES.tobytes(), "stream": (12, VALUES.tobytes())}[format_]
    path = request.getfixturevalue(format_)(small, {"0": raw})
    content = path.read_bytes()
    np.testing.assert_array_equal(read_tensors(path, "ema")["a"], VALUES)
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=path.name):
            read_tensors(path, "ema")
