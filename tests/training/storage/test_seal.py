import json

import numpy as np
import pytest

from fewstep.files import write_npz
from fewstep.training.cluster.processes import warn_once
from fewstep.training.storage.seal import read_sealed, warn_if_unwritable, write_sealed

ARRAYS = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.array(()), "n": 3}
SOURCE = {"run": "a", "shape": (2, 3), "scale": 1.5, "id": None}
REMEDY = "make it again"


@pytest.fixture
def path(tmp_path):
    write_sealed(tmp_path / "file.npz", SOURCE, **ARRAYS)
    return tmp_path / "file.npz"


def test_arrays_return_as_they_were_written(path):
    for source in (SOURCE, {}, {"run": None, "id": "later", "other": 1}):
        found = read_sealed(path, source, REMEDY)
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize(
    "change",
    [
        {"x": ARRAYS["x"] + np.eye(2, 3, dtype=np.float32)},
        {"x": ARRAYS["x"].reshape(3, 2)},
        {"x": ARRAYS["x"].view(np.int32)},
        {"more": np.zeros(1)},
        {"n": None},
    ],
    ids=str,
)
def test_a_change_is_noticed(path, change):
    with np.load(path) as file:
        arrays = dict(file) | change
    write_npz(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=r"file.npz was changed after .*; make it again"):
        read_sealed(path, SOURCE, REMEDY)


def test_the_source_in_a_seal_cannot_be_changed_alone(path):
    with np.load(path) as file:
        arrays = dict(file)
    seal = json.loads(str(arrays["seal"]))
    seal["source"]["run"] = "b"
    write_npz(path, **arrays | {"seal": json.dumps(seal)})
    with pytest.raises(ValueError, match="was changed"):
        read_sealed(path, {"run": "b"}, REMEDY)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"run": "b"}, r"run \(a there, b here\)\. make it again"),
        ({"shape": [3, 2], "scale": 2.0}, r"scale \(1.5 there, 2.0 here\); shape"),
    ],
)
def test_a_file_made_from_something_else_is_refused(path, source, message):
    with pytest.raises(ValueError, match=f"file.npz was made from something else: {message}"):
        read_sealed(path, source, REMEDY)


@pytest.mark.parametrize(
    "seal", ["", "[]", "null", '{"sha256": 1}', '{"sha256": "", "source": 3}', 5, 9000 * "[", [1]]
)
def test_a_seal_that_cannot_be_read_is_an_error(path, seal):
    write_npz(path, x=np.zeros(3), seal=np.array(seal))
    with pytest.raises(ValueError, match="file.npz has a seal that cannot be read; make it again"):
        read_sealed(path, SOURCE, REMEDY)


def test_files_of_an_older_version_are_read_with_one_warning(path, capsys):
    warn_once.cache_clear()
    write_npz(path, **ARRAYS)
    for _ in range(2):
        assert read_sealed(path, SOURCE, REMEDY).keys() == ARRAYS.keys()
    assert capsys.readouterr().err.count(f"warning: {path.parent} has a file without a seal") == 1


def test_a_file_that_can_be_made_again_need_not_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "classifiers" / "a.npz"
    with warn_if_unwritable(path):
        write_sealed(path, {}, x=np.zeros(3))
    said = capsys.readouterr().err
    assert f"warning: {path.parent} cannot be written to" in said
    assert "data.dir or $FEWSTEP_DATA" in said
    with warn_if_unwritable(tmp_path / "b.npz"):
        write_sealed(tmp_path / "b.npz", {}, x=np.zeros(3))
    assert (tmp_path / "b.npz").exists() and capsys.readouterr().err == ""
