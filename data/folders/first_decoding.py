"""Decoding 1: reads a folder of images as versions before data.decoding did.

    PATH/train/CLASS/*.png and, if there is one, PATH/test/CLASS/*.png
    PATH/CLASS/*.png          all for training
    PATH/*.png                all for training, without labels; also PATH/train/*.png

Classes are numbered in the string order of their names, "10" before "2". Pillow converts pixels:
16 bits saturate, transparent pixels show their hidden color, and orientation tags are ignored. Runs
that started with these rules keep them, so nothing here may change what is read. New runs use
data/folders/folder.py.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.data.arrays.array_cache import file_stamps
from fewstep.data.arrays.dataset import NULL_LABEL
from fewstep.data.arrays.pixels import fit
from fewstep.data.arrays.shards import Source, each_image
from fewstep.data.arrays.undecoded import Undecoded

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def first_folder(root: Path, image_size: int, channels: int) -> Undecoded:
    """The images under `root` as squares of image_size pixels.

    Raises ValueError for a folder (or a class) without images, for images beside class folders,
    and for a test class that is not a training class.
    """
    classes, splits = list_splits(root)
    files = [file for split in splits.values() for file, _ in split]
    return Undecoded(
        name=f"folder:{root}",
        origin=(stamps := file_stamps(files, root)),
        image_shape=(image_size, image_size, channels),
        num_classes=len(classes),
        splits={name: _file_source(split, image_size, channels) for name, split in splits.items()},
        classes=tuple(classes),
        files=stamps,
        understood=f"folder:{root} is decoded by the rules of earlier versions (data.decoding=1)",
    )


def list_splits(root: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """Class names, and the (file, label) pairs of `train` and, if it exists, of `test`."""
    train, test = root / "train", root / "test"
    if not train.is_dir():
        classes = _class_names(root)
        return classes, {"train": _labelled_files(root, classes)}
    classes = _class_names(train)
    splits = {"train": _labelled_files(train, classes)}
    if test.is_dir():
        test_classes = _class_names(test)
        strange = sorted(set(test_classes) - set(classes))
        if strange or bool(test_classes) != bool(classes):
            raise ValueError(
                f"{test} has other classes than {train}: {', '.join(strange) or 'none at all'}; "
                "sort its images into the same class folders, or move it away"
            )
        splits["test"] = _labelled_files(test, classes)
    return classes, splits


def _class_names(root: Path) -> list[str]:
    visible = (entry for entry in root.iterdir() if not entry.name.startswith("."))
    return sorted(entry.name for entry in visible if entry.is_dir())


def _labelled_files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    loose = sorted(file for file in root.iterdir() if _is_image(file))
    if loose and classes:
        raise ValueError(
            f"{root} has both images ({loose[0].name}) and class folders ({classes[0]}); "
            "move one of them away"
        )
    labelled = [(file, NULL_LABEL) for file in loose]
    for label, name in enumerate(classes):
        found = sorted(file for file in (root / name).rglob("*") if _is_image(file))
        if not found and (root / name).is_dir():
            raise ValueError(f"class folder {root / name} has no images; remove it or fill it")
        labelled += [(file, label) for file in found]
    if not labelled:
        raise ValueError(f"folder {root} has no images ({', '.join(sorted(SUFFIXES))})")
    return labelled


def _is_image(file: Path) -> bool:
    # Other programs keep companions of images, whose names start with a dot.
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _file_source(files: list[tuple[Path, int]], image_size: int, channels: int) -> Source:
    def read(i: int) -> tuple[np.ndarray, int]:
        file, label = files[i]
        return _read_image(file, image_size, channels), label

    return each_image(len(files), read)


def _read_image(file: Path, image_size: int, channels: int) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return fit(image, image_size, channels)
    except Exception as error:  # each of Pillow's decoders has its own exceptions
        raise ValueError(
            f"image {file} cannot be read ({error}); repair or remove the file"
        ) from error
