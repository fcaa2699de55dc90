"""Samples that others have made: an array, an .npz or .npy file, a folder or .zip of pictures.

They are measured as they are, so their pixels are bytes already: nothing here converts or resizes.
"""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fewstep.data.arrays.dataset import NULL_LABEL
from fewstep.data.folders.class_names import printable
from fewstep.data.folders.decoding import NEWEST
from fewstep.data.folders.file_tree import Tree, read_tree
from fewstep.data.folders.image_file import DEEP, FRAMES, ROTATED, TRANSPARENT, read_image
from fewstep.eval.published import shape_text
from fewstep.files import read_npz
from fewstep.training.storage.workdir import is_run

FEWEST_SAMPLES = 5
# Names of the images in an .npz: ours, and those of ADM. Others are taken if they are the only one.
IMAGES, LABELS = ("x", "arr_0"), ("y", "arr_1", "label", "labels")
WANTED = "samples are uint8 [N, H, W, C] with C 1 or 3"
# Of a file of --mode=sample, such as 000005-label_3.png.
LABELLED = re.compile(r"-label_(\d+)\.png$")
# Ranges of floats -> how they become bytes.
AS_BYTES = {
    (0.0, 1.0): "np.round(255 * x).astype(np.uint8)",
    (-1.0, 1.0): "np.round(127.5 * (x + 1)).astype(np.uint8)",
    (0.0, 255.0): "np.round(x).astype(np.uint8)",
}
GREY = ("1", "L", "LA", "La")  # Pillow's modes
# What reading a picture changes.
CHANGED = {
    TRANSPARENT: "transparent pixels",
    DEEP: "16 bits",
    ROTATED: "a tag that turns it",
    FRAMES: "several frames",
}
CHECKED = 1000  # first samples whose values are looked at
SLACK = 1e-3  # by which floats may leave a range


class Given(NamedTuple):
    """Samples, and what is known of them.

    name: of the file or folder. images: uint8 [N, H, W, C], an array or what reads the pictures of
    a slice. labels: int32 [N], requested of whatever made them; None if unknown.
    """

    name: str
    images: Any
    labels: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (height, width, channels)."""
        return tuple(self.images.shape[1:])


class Pictures:
    """The pictures of a folder or .zip, like an array uint8 [N, H, W, C]; a slice reads files."""

    def __init__(self, tree: Tree, paths: Sequence[str]) -> None:
        self.tree, self.paths = tree, paths
        self.channels = 3
        first = self.read(paths[0])
        self.channels = 1 if self.is_grey(paths[0]) else 3
        self.shape = (len(paths), first.height, first.width, self.channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """The pictures of a slice. Raises ValueError for one of another size or colour."""
        return np.stack([self.pixels(path) for path in self.paths[rows]])

    def pixels(self, path: str) -> np.ndarray:
        """The pixels of a file, in the shape of the first."""
        image = self.read(path)
        there = (image.height, image.width, 1 if self.is_grey(path) else 3)
        if there[:2] != self.shape[1:3] or there[2] > self.channels:
            raise ValueError(
                f"{self.where(path)} is {shape_text(there)}, and the first picture is "
                f"{shape_text(self.shape[1:])}; samples must be alike: resizing or converting "
                "changes what is measured"
            )
        return np.asarray(image, np.uint8).reshape(self.shape[1:])

    def read(self, path: str) -> Image.Image:
        """The picture in a file, in mode L or RGB. Raises ValueError for `CHANGED`."""
        try:
            found = read_image(self.tree.read(path), self.channels, NEWEST.background)
        except Exception as error:  # each of Pillow's decoders has its own exceptions
            fault = f"{self.where(path)} cannot be read ({error}); repair or remove it"
            raise ValueError(fault) from error
        changed = [words for fact, words in CHANGED.items() if fact in found.facts]
        if changed:
            raise ValueError(
                f"{self.where(path)} has {' and '.join(changed)}, which reading it would change; "
                "save samples in 8 bits, grey or RGB"
            )
        return found.image

    def is_grey(self, path: str) -> bool:
        """Whether a file has no colours."""
        file = self.tree.read(path)
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.mode in GREY

    def where(self, path: str) -> str:
        """A file in words."""
        return f"{self.tree.top.name}/{printable(path)}"


def read_samples(given: Any, labels: Any = None) -> Given:
    """Samples from an array or a path. labels: [N], requested of what made them; None if unknown.

    Raises FileNotFoundError, or ValueError that says what is wrong with them and the remedy.
    """
    if isinstance(given, str | Path):
        found = read_place(Path(given).expanduser())
    else:
        found = Given("an array", as_images(np.asarray(given), "samples"))
    if labels is not None:
        found = found._replace(labels=np.asarray(labels))
    if len(found.images) < FEWEST_SAMPLES:
        raise ValueError(
            f"{found.name} has {len(found.images)} sample(s); measure {FEWEST_SAMPLES} or more"
        )
    return found._replace(labels=as_labels(found))


def read_place(path: Path) -> Given:
    """The samples in a file or folder."""
    if not path.exists():
        raise FileNotFoundError(f"--samples={path} does not exist; check the path")
    if is_run(path):
        raise ValueError(
            f"--samples={path} is a run and not samples; use --mode=evaluate --workdir={path}"
        )
    read = READERS.get(path.suffix, read_pictures if path.is_dir() else None)
    if read is None:
        raise ValueError(f"--samples={path} is none of a folder of pictures, {', '.join(READERS)}")
    return read(path)


def read_arrays(path: Path) -> Given:
    """The samples in an .npz, with their labels if it has any."""
    arrays = read_npz(path, WANTED)
    pictures = [name for name, array in arrays.items() if array.ndim == 4]
    names = [name for name in IMAGES if name in arrays] or (pictures if len(pictures) == 1 else [])
    if not names:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"{path} has {shapes or 'no arrays'}; name its samples arr_0: {WANTED}")
    labels = next((arrays[name] for name in LABELS if name in arrays), None)
    return Given(path.name, as_images(arrays[names[0]], f"{names[0]} of {path}"), labels)


def read_array(path: Path) -> Given:
    """The samples in a .npy, which stay on disk."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {WANTED}") from error
    return Given(path.name, as_images(array, str(path)))


def read_pictures(path: Path) -> Given:
    """The pictures of a folder or .zip at any depth, in the order of their names."""
    tree = read_tree(path)
    names = tree.top.all_images()
    if not names:
        passed = tree.passed_over()
        raise ValueError(f"{path} has no pictures" + (f"; {passed}" if passed else ""))
    found = [LABELLED.search(name) for name in names]
    labels = np.array([int(label[1]) for label in found]) if all(found) else None
    return Given(path.name, Pictures(tree, names), labels)


READERS: dict[str, Callable[[Path], Given]] = {
    ".npz": read_arrays,
    ".npy": read_array,
    ".zip": read_pictures,
}


def as_images(array: np.ndarray, name: str) -> np.ndarray:
    """An array of images as it is. Raises ValueError that says what it should be instead."""
    shape = list(array.shape)
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        raise ValueError(f"{name} is [N, C, H, W], {shape}; use x.transpose(0, 2, 3, 1)")
    if array.ndim == 3:
        raise ValueError(f"{name} is {shape}; use x[..., None] for grey images: {WANTED}")
    if array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise ValueError(f"{name} is {array.dtype} {shape}; {WANTED}")
    if array.dtype != np.uint8:
        raise ValueError(f"{name} is {array.dtype}{range_in_words(array[:CHECKED])}; {WANTED}")
    if array[:CHECKED].max() <= 1:
        raise ValueError(
            f"{name} has no value above 1, so it is black; bytes go up to 255: use x * 255 for "
            "black and white"
        )
    return array


def range_in_words(array: np.ndarray) -> str:
    """The range of an array that is not uint8, and how it becomes bytes."""
    if array.dtype.kind not in "fiu":
        return ""
    if not np.isfinite(array).all():
        return " with values that are not finite: remove these samples, or look why they diverged"
    low, high = float(array.min()), float(array.max())
    for (least, most), code in AS_BYTES.items():
        if low >= least - SLACK and high <= most + SLACK:
            return f" in [{least:g}, {most:g}]: use {code}"
    return f" in [{low:.3g}, {high:.3g}]: scale it to bytes"


def as_labels(given: Given) -> np.ndarray | None:
    """The labels of samples as int32 [N]; None if no sample has one.

    Raises ValueError for another shape or type.
    """
    labels = given.labels
    if labels is None:
        return None
    if labels.ndim != 1 or len(labels) != len(given.images) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels of {given.name} are {labels.dtype} {list(labels.shape)}; give a whole number "
            f"for each of the {len(given.images)} samples"
        )
    return None if np.all(labels == NULL_LABEL) else labels.astype(np.int32)
