"""Networks in pickles of whole modules are read; nothing in such a file is run."""

import os
import time

import numpy as np
import pytest

from fewstep.weights.modules import holds_modules, read_module
from fewstep.weights.tensors import read_tensors
from tests.unets import Raw, called, edm_tensors, encoded, made, module, persistent, write_edm

VALUES = {"model.a": np.arange(6.0).reshape(2, 3), "model.enc.b.c": np.ones(4)}


def write(path, content):
    path.write_bytes(b"\x80\x04" + encoded(content) + b".")
    return path


@pytest.mark.parametrize("name", ["song_unet", "adm_unet"])
def test_a_file_of_edm_has_its_tensors_by_name_and_says_what_it_is(name, tmp_path):
    tensors = edm_tensors(name)
    path = write_edm(tmp_path / "edm.pkl", tensors)
    read = read_module(path)
    assert read.tensors.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(read.tensors[key], array, strict=True)
    assert read.name == "EDMPrecond"
    assert read.fields == {
        "training": False,
        "img_resolution": 8,
        "sigma_max": float("inf"),
        "sigma_data": 0.5,
    }


def test_it_is_known_by_its_first_bytes_and_has_parts(tmp_path, archive):
    path = write_edm(tmp_path / "edm.pkl", VALUES, beside={"net": module("Other", {"a": [1.0]})})
    assert holds_modules(path) and not holds_modules(archive({}, {}))
    assert read_module(path, "net").name == "Other"
    with pytest.raises(ValueError, match=r"edm.pkl cannot.*no module 'loss_fn'; it has ema, net"):
        read_module(path, "loss_fn")
    with pytest.raises(ValueError, match="it holds more than named arrays"):
        read_tensors(path)


def mkdir(marker):
    return called("os", "mkdir", str(marker))


@pytest.mark.parametrize("place", ["beside", "attribute", "state", "parameter", "part", "source"])
def test_nothing_is_called_wherever_it_lies(place, tmp_path):
    marker = tmp_path / "ran"
    call, path = mkdir(marker), tmp_path / "edm.pkl"
    if place == "beside":
        write_edm(path, VALUES, beside={"augment_pipe": call, "numpy": numpy_scalar()})
    elif place == "attribute":
        write_edm(path, VALUES, hook=call, kind=made("builtins", "exec", {"code": "1"}))
    elif place == "source":
        write_edm(path, VALUES)  # whose source code would end this process
    else:
        state = {"_parameters": {}, "_buffers": {}, "_modules": {}}
        wrong = {
            "state": call,
            "parameter": state | {"_parameters": {"a": call}},
            "part": state | {"_modules": {"a": call}},
        }[place]
        write(path, {"ema": persistent("EDMPrecond", wrong)})
        with pytest.raises(ValueError, match="no module 'ema'|a is no tensor|a is no module"):
            read_module(path)
    if place in ("beside", "attribute", "source"):
        np.testing.assert_array_equal(read_module(path).tensors["model.a"], VALUES["model.a"])
    assert not marker.exists()


def numpy_scalar():
    dtype = called("numpy", "dtype", "f8", False, True)
    filled = Raw(dtype + encoded((3, "<", None, None, None, -1, -1, 0)) + b"b")
    return called("numpy.core.multiarray", "scalar", filled, b"\0" * 8)


PLAIN = {"_parameters": {}, "_buffers": {}, "_modules": {}}
SHARED = persistent("A", PLAIN) + b"q\x01"  # is kept as number 1
AGAIN = Raw(b"h\x01")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema": {"a": 1}}, "no module 'ema'; it has none"),
        (["ema"], "no module 'ema'; it has none"),
        (
            {"ema": called("torch_utils.persistence", "_reconstruct_persistent_obj", 3)},
            "a module has no class name",
        ),
        (
            {"ema": called("torch.storage", "_load_from_bytes", "text")},
            "a storage from something other than bytes",
        ),
        ({"ema": called("torch.storage", "_load_from_bytes", b"abc")}, "cannot be read"),
        (
            {"ema": persistent("A", PLAIN | {"_parameters": {"x" * 101: 1}})},
            "name is no short text",
        ),
        (
            {"ema": persistent("A", PLAIN | {"_modules": {"a": Raw(SHARED), "b": AGAIN}})},
            "b is no module of its own|a is no module of its own",
        ),
    ],
)
def test_other_contents_are_refused(content, message, tmp_path):
    path = write(tmp_path / "edm.pkl", content)
    with pytest.raises(ValueError, match=message):
        read_module(path)


def test_deep_and_large_descriptions_are_refused_at_once(tmp_path):
    deep = persistent("A", PLAIN)
    for _ in range(30):
        deep = persistent("A", PLAIN | {"_modules": {"a": deep}})
    start = time.monotonic()
    for content in ({"ema": deep}, {"ema": Raw(b"}" * 2**21)}):
        with pytest.raises(ValueError, match="no module of its own|its header has"):
            read_module(write(tmp_path / "edm.pkl", content))
    assert time.monotonic() - start < 20


def test_no_part_of_a_file_passes_for_the_whole(tmp_path):
    path = write_edm(tmp_path / "edm.pkl", {"a": np.ones(2)})
    content = path.read_bytes()
    assert os.path.getsize(path) == len(content)
    for length in range(1, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="edm.pkl"):
            read_module(path)
