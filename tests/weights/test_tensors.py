import hashlib
import json
import os
import pickle
import time
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from fewstep.weights import archives, pickles
from fewstep.weights.tensors import file_sha256, parts_of, read_tensors
from tests.weights.formats import MAGIC, VALUES, VERSION, Call, entry, safetensors, whole


def test_slices_of_one_storage_are_read(archive):
    tensors = OrderedDict(
        whole=whole(),
        transposed=whole(shape=(4, 3), strides=(1, 4)),
        row=whole(offset=4, shape=(4,), strides=(1,)),
        every_second=whole(offset=1, shape=(3, 2), strides=(4, 2)),
        expanded=whole(shape=(5, 4), strides=(0, 1)),
        empty=whole(shape=(0, 4)),
        scalar=whole("LongStorage", "1", 1, 0, (), ()),
    )
    storages = {"0": VALUES.tobytes(), "1": np.int64(-7).tobytes()}
    ours = read_tensors(archive(tensors, storages))
    expected = {
        "whole": VALUES,
        "transposed": VALUES.T,
        "row": VALUES[1],
        "every_second": VALUES[:, 1::2],
        "expanded": np.broadcast_to(VALUES[0], (5, 4)),
        "empty": VALUES[:0],
        "scalar": np.array(-7),
    }
    assert list(ours) == list(expected)
    for name, values in expected.items():
        assert ours[name].dtype == values.dtype
        np.testing.assert_array_equal(ours[name], values, strict=True)


def program(tmp_path, instructions):
    """An archive whose pickle is these instructions."""
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", instructions)
        file.writestr("archive/data/0", VALUES.tobytes())
    return path


REBUILD, ORDERED = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"
DOUBLED = b")" + b"q\x00h\x00\x86" * 60  # a pair of a pair of ...: 2^60 parts in 300 bytes


def test_attributes_of_a_state_dict_are_left_out(archive):
    tensors = OrderedDict(a=whole())
    tensors._metadata = OrderedDict({"": {"version": 1}})
    assert pickle.loads(pickle.dumps(tensors, 2))._metadata
    ours = read_tensors(archive(tensors, {"0": VALUES.tobytes()}))
    assert list(ours) == ["a"] and not hasattr(ours, "_metadata")


def test_python_2_gives_a_dict_its_pairs_at_once(archive):
    tensors = Call(OrderedDict, [["a", whole()]])
    ours = read_tensors(archive(tensors, {"0": VALUES.tobytes()}))
    np.testing.assert_array_equal(ours["a"], VALUES, strict=True)


@pytest.mark.parametrize(
    "target",
    [REBUILD, ORDERED, b"]", b"X\x01\x00\x00\x00a", b"ctorch\nFloatStorage\n", b"K\x01"],
    ids=["function", "class", "list", "text", "type", "number"],
)
def test_a_pickle_sets_no_attributes(target, tmp_path):
    state = b"}X\x07\x00\x00\x00hostileK\x01s"
    path = program(tmp_path, b"\x80\x02" + target + state + b"b.")
    with pytest.raises(ValueError, match="archive.pth cannot be read.*it adds items to a"):
        read_tensors(path)
    assert not hasattr(pickles.rebuild_tensor, "hostile")


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (ORDERED + b")\x81.", "NEWOBJ"),
        (b"(" + ORDERED[:1].replace(b"c", b"i") + ORDERED[1:] + b".", "INST"),
        (b"(" + ORDERED + b"o.", "OBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"\x8b\x01\x00\x00\x00\x01.", "LONG4"),
        (b"\x8e" + (2**60).to_bytes(8, "little") + b".", "expected 1152921504606846976"),
        (b"C\x01a.", "SHORT_BINBYTES"),
        (b"\x8f.", "EMPTY_SET"),
        (b"Pname\n.", "PERSID"),
        (b"}2.", "DUP"),
        (b"X\x04\x00\x00\x00mainX\x01\x00\x00\x00f\x93.", "asks for main.f"),
        (b"K\x01K\x01\x93.", "whose name is not text"),
        (b"X\x01\x00\x00\x00a)R.", "not a function of tensors"),
        (REBUILD + b"}R.", "not a function of tensors"),
        (ORDERED + b"(}}tR.", "something other than a list"),
        (b"}" + DOUBLED + b"Ns.", "neither text nor small numbers"),
        (b"}J\xff\xff\xff\x7fNs.", "neither text nor small numbers"),
        (DOUBLED + b"Q.", "not a whole storage"),
        (b"}X\x01\x00\x00\x00a" + DOUBLED + b"s.", r"more than named tensors: \['a'\]"),
        (b"}X\x01\x00\x00\x00a)" + b"\x85" * 10**5 + b"s.", "more than named tensors"),
        (b"]" + b"q\x00h\x00a" * 10**5 + b".", "holds a list"),
        (b"0.", "POP"),
        (b"(\x85.", "takes a value from an empty stack"),
        (b"t.", "ends a group"),
        (b"}" * 5 * 10**6 + b".", "header has 5000003 bytes"),
        (b"}h\x01.", "KeyError"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_no_tensor_needs_is_refused_at_once(instructions, message, tmp_path):
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"archive.pth cannot be read.*{message}") as failure:
        read_tensors(program(tmp_path, b"\x80\x02" + instructions))
    assert time.monotonic() - start < 20 and len(str(failure.value)) < 1000


def test_a_tensor_has_few_axes(archive):
    storages = {"0": VALUES.tobytes()}
    saved = whole(shape=(1,) * 32, strides=(1,) * 32)
    assert read_tensors(archive({"a": saved}, storages))["a"].ndim == 32
    # A list of a million sizes that many tensors share is small, and what is made of it is not.
    for shape, strides in (((1,) * 33, (1,) * 33), ((1,), (1,) * 10**5)):
        with pytest.raises(ValueError, match="offset, shape or strides that are not sizes"):
            read_tensors(archive({"a": whole(shape=shape, strides=strides)}, storages))


def test_the_names_of_storages_are_text(tmp_path, pickled):
    path, facts = tmp_path / "stream.pth", {"little_endian": True}
    parts = [pickled(part) for part in (MAGIC, VERSION, facts, {"a": whole()})]
    keys = b"\x80\x02]" + DOUBLED + b"a."
    path.write_bytes(b"".join([*parts, keys, (12).to_bytes(8, "little"), VALUES.tobytes()]))
    with pytest.raises(ValueError, match="storages are not those of its tensors"):
        read_tensors(path)


def test_a_storage_is_as_large_as_its_tensor_says(stream):
    path = stream({"a": whole()}, {"0": (2**40, VALUES.tobytes())})
    with pytest.raises(ValueError, match="of 12 numbers has 1099511627776 in the file"):
        read_tensors(path)
    path = stream({"a": whole(size=2**40)}, {"0": (2**40, VALUES.tobytes())})
    with pytest.raises(ValueError, match=r"4398046511104 bytes .* 48 are left"):
        read_tensors(path)


def test_a_compressed_archive_is_refused(tmp_path, pickled):
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled({"a": whole(size=10**6, shape=(10**6,))}))
        file.writestr("archive/data/0", bytes(4 * 10**6))
    with pytest.raises(ValueError, match="a record of a PyTorch archive is compressed"):
        read_tensors(path)


def test_a_small_npz_that_inflates_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 10**5)
    np.savez_compressed(tmp_path / "file.npz", a=np.zeros(10**6))
    with pytest.raises(ValueError, match="inflate to 8000000"):
        read_tensors(tmp_path / "file.npz")


def test_bytes_of_the_other_order_are_swapped(archive):
    tensors = {"float": whole(), "short": whole("BFloat16Storage", "1", 3, 0, (3,), (1,))}
    halves = np.array([1.5, -2.0, 0.25], ml_dtypes.bfloat16)
    storages = {
        "0": VALUES.astype(">f4").tobytes(),
        "1": halves.view(np.uint16).astype(">u2").tobytes(),
    }
    ours = read_tensors(archive(tensors, storages, byteorder=b"big"))
    np.testing.assert_array_equal(ours["float"], VALUES)
    np.testing.assert_array_equal(ours["short"], halves, strict=True)


def test_the_older_format_is_read(stream):
    tensors = OrderedDict(b=whole(key="20"), a=whole("LongStorage", "3", 2, 0, (2,), (1,)))
    numbers = np.array([5, -6])
    ours = read_tensors(
        stream(tensors, {"20": (12, VALUES.tobytes()), "3": (2, numbers.tobytes())})
    )
    assert list(ours) == ["b", "a"]
    np.testing.assert_array_equal(ours["b"], VALUES, strict=True)
    np.testing.assert_array_equal(ours["a"], numbers, strict=True)


@pytest.mark.parametrize("format_", ["archive", "stream"])
def test_a_pickle_that_calls_is_refused_and_did_not_run(format_, tmp_path, request):
    marker = tmp_path / "ran"
    write = request.getfixturevalue(format_)
    with pytest.raises(ValueError, match=f"{format_}.pth.*asks for {os.name}.mkdir"):
        read_tensors(write({"a": Call(os.mkdir, str(marker))}, {}))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "OrderedDict"])
def test_builtins_are_refused(name, tmp_path):
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", f"cbuiltins\n{name}\n.".encode())
    with pytest.raises(ValueError, match=f"asks for builtins.{name}"):
        read_tensors(path)


@pytest.mark.parametrize(
    "saved",
    [
        whole(offset=1),
        whole(offset=-1),
        whole(shape=(3, 5)),
        whole(strides=(4, -1)),
        whole(shape=(4,)),
        whole(size=13),
        whole(key="9"),
        whole(shape=(2**62, 2**62), strides=(0, 0)),
        whole(shape="ab"),
    ],
    ids=lambda saved: str(saved.where),
)
def test_a_tensor_outside_its_storage_is_refused(saved, archive):
    with pytest.raises(ValueError, match="archive.pth cannot be read"):
        read_tensors(archive({"a": saved}, {"0": VALUES.tobytes()}))


def test_a_tensor_on_an_empty_storage_is_refused(archive):
    empty = whole(size=0, shape=(2,), strides=(1,))
    with pytest.raises(ValueError, match="archive.pth cannot be read.*0 bytes"):
        read_tensors(archive({"a": empty}, {"0": b""}))


def test_bytes_never_become_pointers(archive):
    pointers = whole("ObjectStorage", size=6, shape=(6,), strides=(1,))
    with pytest.raises(ValueError, match="not a whole storage of numbers"):
        read_tensors(archive({"a": pointers}, {"0": VALUES.tobytes()}))


def test_a_view_of_a_storage_is_refused(tmp_path, pickled):
    path = tmp_path / "archive.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled({"a": whole()}, tail=(("1", 0, 12),)))
        file.writestr("archive/data/0", VALUES.tobytes())
    with pytest.raises(ValueError, match="not a whole storage of numbers"):
        read_tensors(path)


def test_a_slice_is_read_just_if_it_lies_within_its_storage(archive):
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(300):
        size, offset, *rest = map(int, rng.integers(0, [13, 4, 5, 5, 5, 5]))
        shape, strides = tuple(rest[:2]), tuple(rest[2:])
        rows, columns = (np.arange(n) * step for n, step in zip(shape, strides, strict=True))
        places = offset + rows[:, None] + columns
        if not places.size:
            continue
        saved = whole("FloatStorage", "0", size, offset, shape, strides)
        path = archive({"a": saved}, {"0": VALUES.tobytes()[: 4 * size]})
        outcomes.append(bool(places.max() < size))
        if outcomes[-1]:
            np.testing.assert_array_equal(read_tensors(path)["a"], VALUES.ravel()[places])
        else:
            with pytest.raises(ValueError, match="cannot be read"):
                read_tensors(path)
    assert 20 < sum(outcomes) < len(outcomes) - 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 3, "b": whole()}, r"more than named tensors: \['a'\]"),
        ({5: whole()}, r"more than named tensors: \[5\]"),
        ([1], "holds a list"),
        (whole(), "holds a Slice"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message, archive):
    with pytest.raises(ValueError, match=message):
        read_tensors(archive(content, {"0": VALUES.tobytes()}))


@pytest.mark.parametrize("length", [0x0480, 0x0580])
def test_a_length_of_safetensors_may_look_like_the_start_of_a_pickle(tmp_path, length):
    header = {"__metadata__": {"pad": ""}, "a": entry("F32", [3, 4], 0, 48)}
    header["__metadata__"]["pad"] = "x" * (length - len(json.dumps(header)))
    file = safetensors(tmp_path / "file", header, VALUES.tobytes())
    assert file.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05")
    np.testing.assert_array_equal(read_tensors(file)["a"], VALUES, strict=True)
    assert parts_of(file) == []


def test_safetensors_are_read(tmp_path):
    halves = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry("F32", [3, 4], 0, 48),
        "b": entry("BF16", [2], 48, 52),
        "c": entry("I64", [], 52, 60),
        "d": entry("U8", [0, 2], 60, 60),
    }
    data = VALUES.tobytes() + halves.tobytes() + np.int64(9).tobytes()
    ours = read_tensors(safetensors(tmp_path / "file", header, data))
    assert list(ours) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(ours["a"], VALUES, strict=True)
    np.testing.assert_array_equal(ours["b"], halves, strict=True)
    np.testing.assert_array_equal(ours["c"], np.array(9), strict=True)
    assert ours["d"].shape == (0, 2) and ours["d"].dtype == np.uint8


@pytest.mark.parametrize(
    "wrong",
    [
        entry("F32", [3, 4], 4, 52),
        entry("F32", [3, 4], -48, 0),
        entry("F32", [3, 4], 0, 44),
        entry("F32", [3, 5], 0, 48),
        entry("F32", [-3, -4], 0, 48),
        entry("C64", [6], 0, 48),
        {"shape": [3, 4]},
        entry("U8", [9] * 10**6, 0, 48),
        entry("F32", [3.0, 4.0], 0, 48),
        entry("F32", [3, 4], "0", "48"),
        entry(["F32"], [3, 4], 0, 48),
        None,
    ],
    ids=lambda entry: str(entry)[:60],
)
def test_a_safetensors_header_that_does_not_fit_is_refused(wrong, tmp_path):
    path = safetensors(tmp_path / "file", {"a": wrong}, VALUES.tobytes())
    with pytest.raises(ValueError, match="file cannot be read"):
        read_tensors(path)


def test_tensors_of_safetensors_share_neither_bytes_nor_names(tmp_path):
    shared = {"a": entry("F32", [2, 4], 0, 32), "b": entry("F32", [2, 4], 16, 48)}
    with pytest.raises(ValueError, match="share bytes"):
        read_tensors(safetensors(tmp_path / "file", shared, VALUES.tobytes()))
    one = json.dumps({"a": entry("F32", [3, 4], 0, 48)})
    twice = f"{one[:-1]}, {one[1:]}".encode()
    (tmp_path / "file").write_bytes(len(twice).to_bytes(8, "little") + twice + VALUES.tobytes())
    with pytest.raises(ValueError, match="the same name"):
        read_tensors(tmp_path / "file")


def test_a_safetensors_header_longer_than_its_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="header has 1152921504606846976 bytes"):
        read_tensors(path)
    path.write_bytes((10**6).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="cut short: 1000000 bytes are needed and 2 are left"):
        read_tensors(path)


def test_npz_files_are_read(tmp_path):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        np.savez(file, a=VALUES, b=np.arange(3))
    ours = read_tensors(path)
    np.testing.assert_array_equal(ours["a"], VALUES, strict=True)
    np.testing.assert_array_equal(ours["b"], np.arange(3), strict=True)


def test_objects_in_npz_files_are_refused_and_did_not_run(tmp_path):
    path, marker = tmp_path / "file.npz", tmp_path / "ran"
    np.savez(path, a=np.array([Call(os.mkdir, str(marker))], object))
    with pytest.raises(ValueError, match="file.npz cannot be read"):
        read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize("format_", ["archive", "stream", "safetensors", "npz"])
def test_no_part_of_a_file_passes_for_the_whole(format_, tmp_path, request):
    path = tmp_path / "file"
    if format_ == "npz":
        with open(path, "wb") as file:
            np.savez(file, a=VALUES)
    elif format_ == "safetensors":
        safetensors(path, {"a": entry("F32", [3, 4], 0, 48)}, VALUES.tobytes())
    else:
        raw = {"archive": VALUES.tobytes(), "stream": (12, VALUES.tobytes())}[format_]
        path = request.getfixturevalue(format_)({"a": whole()}, {"0": raw})
    content = path.read_bytes()
    np.testing.assert_array_equal(read_tensors(path)["a"], VALUES)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=path.name):
            read_tensors(path)


def test_flipped_bits_in_an_archive_are_noticed(archive):
    path = archive({"a": whole()}, {"0": VALUES.tobytes()})
    content = path.read_bytes()
    path.write_bytes(content.replace(VALUES.tobytes(), (VALUES + 1).tobytes()))
    with pytest.raises(ValueError, match="archive.pth cannot be read.*CRC"):
        read_tensors(path)


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}, 2), b"", b"text", b"\x89HDF\r\n\x1a\n"])
def test_other_formats_are_refused_with_a_remedy(content, tmp_path):
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="other.bin is not a PyTorch.*weights_only=True"):
        read_tensors(path)


def test_other_zip_files_are_refused(tmp_path):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match="other.zip .*neither a PyTorch archive nor"):
        read_tensors(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "absent")


def test_sha256_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
