"""A folder or .zip of images as a data set; docs/data.md describes what is read and how."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fewstep.data.arrays.pixels import fit
from fewstep.data.arrays.shards import Source, each_image
from fewstep.data.arrays.undecoded import Undecoded
from fewstep.data.folders.account import Outcome, describe_layout, describe_use
from fewstep.data.folders.class_names import printable
from fewstep.data.folders.decoding import FIRST_DECODING, Decoding
from fewstep.data.folders.file_tree import Tree, read_tree
from fewstep.data.folders.first_decoding import first_folder
from fewstep.data.folders.image_file import Color, read_image
from fewstep.data.folders.layout import Labelled, read_layout
from fewstep.data.folders.unreadable import find_unreadable

CHANNELS = 3  # unless data.channels is 1


def folder_images(
    path: str, image_size: int, channels: int, decoding: Decoding, root: Path | None = None
) -> Undecoded:
    """The images under `path` as squares of image_size pixels, in RGB unless channels is 1.

    root: the folder of prepared data, which keeps the list of unreadable files if any are allowed.
    Raises FileNotFoundError if the folder is missing, and ValueError without an image_size, for an
    ambiguous layout, and for more unreadable files than allowed.
    """
    if not image_size:
        raise ValueError("data.image_size is required for folder:PATH; set it, for example to 32")
    found = Path(path).expanduser().absolute()
    if not path or not found.exists():
        raise FileNotFoundError(
            f"folder {path!r} does not exist; give the PATH of a folder or .zip in "
            "--config.data.name=folder:PATH"
        )
    channels = channels or CHANNELS
    if decoding.rules == FIRST_DECODING and not found.is_dir():
        raise ValueError(
            f"{found} is not a folder; data.decoding=1 reads only folders, so leave it out"
        )
    if decoding.rules == FIRST_DECODING:
        return first_folder(found, image_size, channels)
    return tree_images(read_tree(found), image_size, channels, decoding, root)


def tree_images(
    tree: Tree, image_size: int, channels: int, decoding: Decoding, root: Path | None
) -> Undecoded:
    """The images of a tree of files, by the newest rules."""
    layout, name = read_layout(tree), f"folder:{tree.top.name}"
    found = [image for images in layout.splits.values() for image, _ in images]
    outcome = Outcome(Counter(), find_unreadable(tree, found, decoding.unreadable, root))
    splits = usable_images(tree, layout.splits, outcome)
    return Undecoded(
        name=name,
        origin={
            "decoding": decoding.rules,
            "background": decoding.background,
            "classes": layout.classes,
            "files": {
                split: [(image, *tree.stamps[image], label) for image, label in images]
                for split, images in splits.items()
            },
        },
        image_shape=(image_size, image_size, channels),
        num_classes=len(layout.classes),
        splits={
            split: image_source(
                tree, images, (image_size, channels), decoding.background, outcome.counts
            )
            for split, images in splits.items()
        },
        classes=tuple(layout.classes),
        files=[(image, *tree.stamps[image]) for images in splits.values() for image, _ in images],
        understood=f"{name}: {describe_layout(layout, splits)}",
        account=lambda: f"{name}: {describe_use(tree, layout, splits, outcome)}",
    )


def usable_images(
    tree: Tree, splits: Mapping[str, Labelled], outcome: Outcome
) -> dict[str, list[tuple[str, int]]]:
    """The readable images, sorted by label and path, without links that repeat one in its class.

    Raises ValueError for a class without a readable image.
    """
    kept = {}
    for name, images in splits.items():
        readable = [(i, label) for i, label in images if i not in outcome.unreadable]
        lost = {label for _, label in images} - {label for _, label in readable}
        if lost:
            example = next(image for image, label in images if label in lost)
            raise ValueError(
                f"the class of {tree.top.name}/{printable(example)} has no readable image; repair "
                "some, or remove the class"
            )
        firsts = {(tree.real_path(i), label): (i, label) for i, label in sorted(readable)[::-1]}
        kept[name] = sorted(firsts.values(), key=lambda pair: pair[::-1])
        outcome.counts["repeated"] += len(readable) - len(firsts)
    return kept


def image_source(
    tree: Tree,
    images: Labelled,
    shape: tuple[int, int],
    background: Color,
    counts: Counter[str],
) -> Source:
    """A split to decode. Counts the facts of its images (data/folders/image_file.py).

    shape: (image_size, channels).
    """
    image_size, channels = shape

    def read(i: int) -> tuple[np.ndarray, int]:
        path, label = images[i]
        try:
            decoded = read_image(tree.read(path), channels, background)
            pixels = fit(decoded.image, image_size, channels)
        except Exception as error:  # each of Pillow's decoders has its own exceptions
            raise ValueError(
                f"image {tree.top.name}/{printable(path)} cannot be read ({error}); repair or "
                "remove the file, or set data.unreadable to the number of files to leave out"
            ) from error
        counts.update(decoded.facts)
        return pixels, label

    return each_image(len(images), read)
