"""Small folders of latents as other programs write them, sound and damaged."""

import io
import json

import numpy as np

from fewstep.files import write_npz
from tests.weights.formats import entry, safetensors

COUNT, CHANNELS, SIDE = 7, 4, 2
RNG = np.random.default_rng(0)
SHAPE = (COUNT, CHANNELS, SIDE, SIDE)
# Raw latents of the deviation and the mean that those of Stable Diffusion have.
MEAN = RNG.normal(0.0, 5.0, SHAPE).astype(np.float32)
DEVIATION = RNG.uniform(0.01, 0.1, SHAPE).astype(np.float32)
FLIPPED = RNG.normal(0.0, 5.0, SHAPE).astype(np.float32)
MOMENTS = np.concatenate([MEAN, DEVIATION], axis=1)
LABELS = np.array([2, 0, 1, 2, 2, 0, 1])
TYPES = {"float32": "F32", "int64": "I64"}


def write_torch(folder, moments=MOMENTS, labels=LABELS):
    """MeanFlow's folder. The reader knows a format by its content, and .npz needs no PyTorch."""
    for i, moment in enumerate(moments):
        own = {} if labels is None else {"label": labels[i]}
        write_npz(folder / "train" / f"n{i:02}.pt", image=moment, **own)
    return folder


def write_numpy(folder, moments=MOMENTS, labels=LABELS):
    """EDM2's and REPA's folder."""
    names = [f"0000{i % 2}/img-mean-std-{i:08}.npy" for i in range(len(moments))]
    for name, moment in zip(names, moments, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, moment)
    pairs = [[name, int(label)] for name, label in zip(names, labels, strict=True)][::-1]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return folder


def write_shard(path, **arrays):
    """A safetensors file."""
    header, content = {}, b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        kind = TYPES[array.dtype.name]
        header[name] = entry(kind, list(array.shape), len(content), len(content) + len(raw))
        content += raw
    path.parent.mkdir(parents=True, exist_ok=True)
    return safetensors(path, header, content)


def write_shards(folder, latents=MEAN, flipped=FLIPPED, labels=LABELS):
    """LightningDiT's folder, of two shards."""
    for i, rows in enumerate((slice(4), slice(4, None))):
        arrays = {"latents": latents, "latents_flip": flipped, "labels": labels}
        own = {name: array[rows] for name, array in arrays.items() if array is not None}
        write_shard(folder / f"latents_rank00_shard{i:03}.safetensors", **own)
    write_npz(folder / "latents_stats.pt", mean=MEAN.mean((0, 2, 3)), std=MEAN.std((0, 2, 3)))
    return folder


def write_records(folder, moments=MOMENTS, labels=LABELS):
    """A folder of two ArrayRecord files."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    for i, rows in enumerate((range(3), range(3, len(moments)))):
        writer = ArrayRecordWriter(str(folder / f"train-0000{i}.array_record"), "group_size:1")
        for row in rows:
            np.savez(content := io.BytesIO(), image=moments[row], label=labels[row])
            writer.write(content.getvalue())
        writer.close()
    return folder


FORMS = {
    "torch": write_torch,
    "numpy": write_numpy,
    "shards": write_shards,
    "records": write_records,
}


def posteriors(form):
    """What is stored of a sound folder: float16 [N, V, M, h, w, c]."""
    views = [MEAN, FLIPPED] if form == "shards" else [MEAN]
    views = np.stack(views, axis=1)[:, :, None]
    if form != "shards":
        views = np.concatenate([views, DEVIATION[:, None, None]], axis=2)
    return views.transpose(0, 1, 2, 4, 5, 3).astype(np.float16)


def changed(array, index, value):
    """A copy of an array with one part replaced."""
    array = array.copy()
    array[index] = value
    return array


def cut(folder, name, by=20):
    """Cut the end off a file."""
    (file,) = folder.rglob(name)
    file.write_bytes(file.read_bytes()[:-by])


def flip_bit(folder, name, place):
    """Flip a bit of a file."""
    (file,) = folder.rglob(name)
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def after(write, damage, **arrays):
    """A folder that is damaged after it was written."""

    def make(folder):
        damage(write(folder, **arrays))

    return make


def torch_with(index, value, **more):
    """MeanFlow's folder with other numbers in one file."""
    return lambda folder: write_torch(folder, changed(MOMENTS, index, value), **more)


STD_PART, LOG = (3, slice(CHANNELS, None)), 2 * np.log(DEVIATION)
# name -> (writer of a folder, other fields of data, what the refusal says)
FAULTS = {
    "log-variances as deviations": (
        lambda folder: write_torch(folder, np.concatenate([MEAN, LOG], axis=1)),
        {},
        r"n00.pt has standard deviations down to -8.*data.posterior=logvar",
    ),
    "deviations as log-variances": (
        write_torch,
        {"posterior": "logvar"},
        "n00.pt has no log-variance below 0.*data.posterior=std",
    ),
    "log-variances in one file": (
        torch_with(STD_PART, LOG[3]),
        {},
        r"n03.pt has standard deviations down to",
    ),
    "draws as moments": (
        lambda folder: write_torch(folder, MEAN),
        {"posterior": "std"},
        r"n00.pt has standard deviations down to -.*or draws if",
    ),
    "moments as draws": (
        write_torch,
        {"posterior": "draws"},
        r"2 x 2 x 8 \(one draw\), and codec.name=sd makes 2 x 2 x 4; .*data.posterior",
    ),
    "an odd number of channels": (
        lambda folder: write_torch(folder, MOMENTS[:, :5]),
        {},
        "n00.pt has 5 channels.*data.posterior=draws",
    ),
    "channels last": (
        lambda folder: write_torch(folder, MOMENTS.transpose(0, 2, 3, 1)),
        {},
        r"latents of 2 x 8 x 1|standard deviations down to",
    ),
    "another shape in one file": (
        after(
            write_numpy,
            lambda f: np.save(f / "00001/img-mean-std-00000003.npy", MOMENTS[3, :, :1]),
        ),
        {},
        r"00000003.npy has a latent of \[1, 2, 1, 2, 4\], and",
    ),
    "not finite": (torch_with((2, 0, 0, 0), np.nan), {}, "n02.pt has values that are not finite"),
    "too large": (torch_with((2, 0, 0, 0), 1e6), {}, "n02.pt has values that float16 cannot hold"),
    "whole numbers": (
        lambda folder: write_torch(folder, MOMENTS.astype(np.int32)),
        {},
        r"n00.pt has int32 \[8, 2, 2\], no floating",
    ),
    "a .pt cut short": (
        after(write_torch, lambda f: cut(f, "n04.pt")),
        {},
        "n04.pt cannot be read",
    ),
    "a bit of a .pt": (
        after(write_torch, lambda f: flip_bit(f, "n04.pt", 300)),
        {},
        "n04.pt cannot be read",
    ),
    "an empty .pt": (
        after(write_torch, lambda f: (f / "train/n04.pt").write_bytes(b"")),
        {},
        "n04.pt cannot be read",
    ),
    "a .npy cut short": (
        after(write_numpy, lambda f: cut(f, "*02.npy")),
        {},
        "00000002.npy cannot be read",
    ),
    "a .npy missing": (
        after(write_numpy, lambda f: (f / "00000/img-mean-std-00000002.npy").unlink()),
        {},
        r"dataset.json and the files beside it differ: 00000/.*02.npy \(7 labels, 6 files\)",
    ),
    "a label missing": (
        after(
            write_numpy,
            lambda f: (f / "dataset.json").write_text('{"labels": [["00000/a.npy", 1]]}'),
        ),
        {},
        "dataset.json and the files beside it differ",
    ),
    "labels cut short": (
        after(write_numpy, lambda f: cut(f, "dataset.json")),
        {},
        "dataset.json cannot be read",
    ),
    "a negative label": (
        lambda folder: write_torch(folder, labels=changed(LABELS, 5, -3)),
        {},
        "n05.pt cannot be read .its label is",
    ),
    "other tensors": (
        after(write_torch, lambda f: write_npz(f / "train/n06.pt", z=MEAN[0])),
        {},
        "n06.pt cannot be read .it has z; it should have image",
    ),
    "a shard cut short": (
        after(write_shards, lambda f: cut(f, "*001.safetensors")),
        {},
        "shard001.safetensors cannot be read",
    ),
    "a shard with fewer labels": (
        lambda folder: write_shards(folder, labels=LABELS[:6]),
        {},
        "shard001.safetensors has .*labels.: 2. rows; each latent needs one of each",
    ),
    "mirrored latents as latents of mirrored pictures": (
        lambda folder: write_shards(folder, flipped=MEAN[..., ::-1]),
        {},
        "shard000.safetensors: latents_flip has mirrored latents.*without data.flip",
    ),
    "statistics of other latents": (
        after(
            write_shards,
            lambda f: write_npz(f / "latents_stats.pt", mean=np.full(4, 20.0), std=np.full(4, 5.0)),
        ),
        {},
        "latents_stats.pt belongs to other latents than the files beside it",
    ),
    "the same latents as mirrored ones": (
        lambda folder: write_shards(folder, flipped=MEAN),
        {},
        "latents_flip has the latents once more",
    ),
    "an ArrayRecord cut short": (
        after(write_records, lambda f: cut(f, "*0001.array_record", 70_000)),
        {},
        "train-00001.array_record has no records, so it is damaged",
    ),
    "a bit of an ArrayRecord": (
        after(write_records, lambda f: flip_bit(f, "*0001.array_record", 300)),
        {},
        "train-00001.array_record, record 0 cannot be read|00001.array_record .* damaged",
    ),
    "two forms in a folder": (
        after(write_torch, lambda f: write_numpy(f / "more")),
        {},
        "has 7 .npy, 7 .pt|has 7 .pt, 7 .npy",
    ),
    "no latents": (after(write_torch, lambda f: None, moments=()), {}, "no files of latents|exist"),
    "flips that are not there": (write_torch, {"flip": True}, "needs latents of mirrored pictures"),
    "another size": (
        write_torch,
        {"image_size": 32},
        "data.image_size=32, but codec.name=sd makes",
    ),
    "a codec of other channels": (
        write_torch,
        {"codec.name": "flux"},
        "2 x 2 x 4 .*codec.name=flux makes 2 x 2 x 16; name the codec",
    ),
    "no codec": (write_torch, {"codec.name": ""}, "has latents; name the codec that made them"),
    "latents that are scaled already": (
        lambda folder: write_torch(folder, 0.18215 * MOMENTS),
        {},
        r"scale of codec.name=sd the latents have a deviation of 0\.1.*divide them",
    ),
    "latents of another codec of the same shape": (
        write_torch,
        {"codec.name": "taesd"},
        r"scale of codec.name=taesd .* deviation of [45]\..*another codec",
    ),
}
