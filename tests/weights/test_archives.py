import io
import struct
import zipfile

import numpy as np
import pytest

from fewstep.weights import archives
from fewstep.weights.archives import read_arrays


def written(path, records, method=zipfile.ZIP_STORED):
    """A zip file of records, each a name and bytes or an array."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in records:
            if not isinstance(content, bytes):
                np.save(array := io.BytesIO(), content)
                content = array.getvalue()
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_saved(tmp_path, save):
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "empty": np.zeros((0, 3)),
        "scalar": np.float64(0.5),
        "text": np.array("seal"),
        "folder/name": np.array([True]),
    }
    save(tmp_path / "file.npz", **arrays)
    found = read_arrays(tmp_path / "file.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_an_array_may_be_larger_than_its_file_but_not_by_much(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "file.npz", a=np.zeros(10**6))
    assert read_arrays(tmp_path / "file.npz")["a"].size == 10**6
    size = (tmp_path / "file.npz").stat().st_size
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 8 * 10**6 - 1)
    with pytest.raises(ValueError, match=f"its {size} bytes inflate to 8000000"):
        read_arrays(tmp_path / "file.npz")
    monkeypatch.setattr(archives, "LARGEST_RATIO", -(-8 * 10**6 // size))
    assert read_arrays(tmp_path / "file.npz")["a"].size == 10**6


def test_a_header_that_says_more_than_there_is_is_refused(tmp_path):
    np.save(array := io.BytesIO(), np.zeros(4))
    large = array.getvalue().replace(b"(4,), }       ", b"(99999999,), }")
    assert large != array.getvalue()
    path = written(tmp_path / "file.npz", [("a.npy", large)])
    with pytest.raises(ValueError, match=r"a.npy has 160 bytes for float64 \[99999999\]"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([("a.npy", np.zeros(3)), ("a.npy", np.ones(3))], "two of its records"),
        ([("a.txt", np.zeros(3))], "a.txt is not an array"),
        ([("a.npy", b"")], "EOF|expected"),
        ([("a.npy", np.array([None]))], "bytes for object"),
        ([("a.npy", np.empty(2**34, "V0"))], r"bytes for \|V0 \[17179869184\]"),
        ([("a.npy", b"\x93NUMPY\x03\x00")], "a.npy is not an array"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_records_that_are_no_arrays_are_refused(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        read_arrays(written(tmp_path / "file.npz", records))


def test_other_compressions_are_refused(tmp_path):
    path = written(tmp_path / "file.npz", [("a.npy", np.zeros(10**5))], zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="compression 12, not deflate"):
        read_arrays(path)


def test_records_that_overlap_are_refused(tmp_path):
    records = [(f"{name}.npy", np.arange(1000)) for name in "abc"]
    content = bytearray(written(tmp_path / "file.npz", records).read_bytes())
    # The directory has every record where the first one is, under its own name.
    place = 0
    while (place := content.find(b"PK\x01\x02", place)) >= 0:
        content[place + 42 : place + 46] = struct.pack("<I", 0)
        place += 4
    start = content.find(b"PK\x01\x02")
    first = content.find(b"PK\x03\x04", 4)
    (tmp_path / "file.npz").write_bytes(content[:first] + content[start:])
    with pytest.raises((ValueError, zipfile.BadZipFile), match="larger than the file|Overlapped"):
        read_arrays(tmp_path / "file.npz")
