"""Small U-Nets with random parameters, and pickles of whole modules made of them."""

import pickle
import struct
from functools import cache

import numpy as np

from fewstep.models import NETWORKS
from fewstep.weights.layouts.adm_unet import write_adm_unet
from fewstep.weights.layouts.song_unet import write_song_unet
from fewstep.weights.layouts.unet import UNetSizes
from tests.published import random_params
from tests.weights.formats import MAGIC, VERSION

SOURCE = "raise SystemExit('the source code of a file was run')"
BUFFERS = ("resample_filter", "freqs")


@cache
def small_unet(name="song_unet", variant="ddpmpp", classes=10, multipliers=(1, 2), seed=0):
    """A U-Net of 8 x 8 x 1, its random parameters, and its sizes."""
    variant = variant if name == "song_unet" else ""
    sizes = UNetSizes(8, 1, classes, 4, multipliers, 1, (4,), variant)
    fields = {"width": 4, "multipliers": multipliers, "depth": 1, "attention_sides": (4,)}
    fields |= {"variant": variant} if variant else {}
    network = NETWORKS[name].build((8, 8, 1), classes, **fields)
    return network, random_params(network, seed), sizes


def edm_tensors(name="song_unet", **fields):
    """The tensors of a file of EDM, with the matrix of augmentations."""
    _, params, sizes = small_unet(name, **fields)
    write = {"song_unet": write_song_unet, "adm_unet": write_adm_unet}[name]
    augment = np.ones((sizes.features, 9), np.float32)
    tensors = write(params, sizes) | {"model.map_augment.weight": augment}
    return {key: array.copy() for key, array in tensors.items()}


class Raw(bytes):
    """Instructions of a pickle that leave one value."""


def encoded(value):
    """The instructions of a value."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, dict):
        return b"}(" + b"".join(encoded(part) for pair in value.items() for part in pair) + b"u"
    return b"(" + b"".join(map(encoded, value)) + b"t"


def called(module, name, *arguments):
    """A call of a function of a package."""
    return Raw(encoded(module) + encoded(name) + b"\x93" + encoded(arguments) + b"R")


def made(module, name, state):
    """An object of a class, with attributes."""
    return Raw(encoded(module) + encoded(name) + b"\x93" + b")\x81" + encoded(state) + b"b")


def storage_bytes(array):
    """A storage in PyTorch's older format."""
    kind = Raw(b"ctorch\nFloatStorage\n")
    storage = encoded(("storage", kind, "0", "cpu", array.size, None)) + b"Q."
    parts = [pickle.dumps(one, 2) for one in (MAGIC, VERSION, {"little_endian": True})]
    parts += [b"\x80\x02" + storage, pickle.dumps(["0"], 2), struct.pack("<q", array.size)]
    return b"".join([*parts, array.astype("<f4").tobytes()])


def tensor(array):
    """A tensor whose bytes lie in the pickle."""
    array = np.ascontiguousarray(array, np.float32)
    storage = called("torch.storage", "_load_from_bytes", storage_bytes(array))
    strides = tuple(step // 4 for step in array.strides)
    hooks = called("collections", "OrderedDict")
    return called(
        "torch._utils", "_rebuild_tensor_v2", storage, 0, array.shape, strides, False, hooks
    )


def parameter(array):
    return called("torch._utils", "_rebuild_parameter", tensor(array), False, {})


def module(name, tensors, **fields):
    """A module as EDM pickles it, of tensors by dotted name; its parts are modules too."""
    own = {key: array for key, array in tensors.items() if "." not in key}
    inner = {}
    for key, array in tensors.items():
        first, dot, rest = key.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = array
    state = {
        "training": False,
        "_parameters": {k: parameter(a) for k, a in own.items() if k not in BUFFERS} | {"no": None},
        "_buffers": {k: tensor(a) for k, a in own.items() if k in BUFFERS},
        "_modules": {k: module(k, part) for k, part in inner.items()},
        **fields,
    }
    if name in ("enc", "dec"):
        return made("torch.nn.modules.container", "ModuleDict", state)
    return persistent(name, state)


def persistent(name, state):
    """A module as EDM pickles it, with the source code of its class."""
    described = {
        "type": "class",
        "version": 6,
        "module_src": SOURCE,
        "class_name": name,
        "state": state,
    }
    return called("torch_utils.persistence", "_reconstruct_persistent_obj", described)


def write_edm(path, tensors, name="EDMPrecond", beside=None, **fields):
    """Write a pickle as EDM saves it. beside: what it has beside the network. Returns the path."""
    fields = {"img_resolution": 8, "sigma_max": float("inf"), "sigma_data": 0.5} | fields
    loss = persistent("EDMLoss", {"P_mean": -1.2})
    content = {"ema": module(name, tensors, **fields), "loss_fn": loss} | (beside or {})
    path.write_bytes(b"\x80\x04" + encoded(content) + b".")
    return path
