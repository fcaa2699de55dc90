"""Writers of PyTorch's two formats."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import pytest

from tests.weights.formats import MAGIC, VERSION, Saved


@pytest.fixture
def pickled(monkeypatch):
    """A function that pickles under PyTorch's names, which a stand-in for it provides."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "BFloat16Storage", "LongStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    torch.ObjectStorage = "O"  # NumPy's type of pointers

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
    )
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Pickler(pickle.Pickler):
        def __init__(self, file, tail):
            super().__init__(file, protocol=2)
            self.tail = tail

        def persistent_id(self, obj):
            if not isinstance(obj, tuple) or len(obj) != 3 or not hasattr(torch, str(obj[0])):
                return None
            kind, key, size = obj
            return ("storage", getattr(torch, kind), key, "cpu", size, *self.tail)

        def reducer_override(self, obj):
            if not isinstance(obj, Saved):
                return NotImplemented
            arguments = (obj.storage, *obj.where, False, OrderedDict())
            return _rebuild_tensor_v2, arguments

    def dump(obj, tail=()):
        file = io.BytesIO()
        Pickler(file, tail).dump(obj)
        return file.getvalue()

    return dump


@pytest.fixture
def archive(tmp_path, pickled):
    """A function that writes PyTorch's zip format and returns its path."""

    def write(obj, storages, byteorder=b"little"):
        path = tmp_path / "archive.pth"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", pickled(obj))
            file.writestr("archive/byteorder", byteorder)
            for key, raw in storages.items():
                file.writestr(f"archive/data/{key}", raw)
        return path

    return write


@pytest.fixture
def stream(tmp_path, pickled):
    """A function that writes PyTorch's older format and returns its path."""

    def write(obj, storages):
        path = tmp_path / "stream.pth"
        facts = {"protocol_version": VERSION, "little_endian": True}
        parts = [pickled(part) for part in (MAGIC, VERSION, facts)]
        parts += [pickled(obj, tail=(None,)), pickled(list(storages))]
        for size, raw in storages.values():
            parts += [size.to_bytes(8, "little"), raw]
        path.write_bytes(b"".join(parts))
        return path

    return write
