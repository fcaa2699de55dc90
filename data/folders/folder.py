"""A folder of images, or a .zip of one, as a data set; docs/data.md says what is read and how."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fewstep.data.arrays.array_cache import Undecoded
from fewstep.data.arrays.pixels import fit
from fewstep.data.arrays.shards import Source
from fewstep.data.folders.account import Outcome, describe_layout, describe_use
from fewstep.data.folders.class_names import printable
from fewstep.data.folders.decoding import FIRST_DECODING, Decoding
from fewstep.data.folders.file_tree import Tree, read_tree
from fewstep.data.folders.first_decoding import first_folder
from fewstep.data.folders.image_file import Color, read_image
from fewstep.data.folders.layout import Labelled, read_layout
from fewstep.data.folders.unreadable import find_unreadable

CHANNELS = 3  # unless asked for 1


def folder_images(
    path: str, image_size: int, channels: int, decoding: Decoding, root: Path | None = None
) -> Undecoded:
    """The images under `path` as squares of image_size pixels, in RGB unless channels is 1.

    root: where prepared data lie; a list of unreadable files is kept there if any are allowed.
    Raises FileNotFoundError without the folder; ValueError without an image_size, for a layout that
    is not clear, and for more unreadable files than are allowed.
    """
    if not image_size:
        raise ValueError("image_size is required for data of the form folder:PATH; for example 32")
    found = Path(path).expanduser().absolute()
    if not path or not found.exists():
        raise FileNotFoundError(
            f"folder {path!r} is not there; give folder:PATH an existing PATH; if a run's images "
            "were moved, by --config.data.name=folder:PATH"
        )
    channels = channels or CHANNELS
    if decoding.rules == FIRST_DECODING and not found.is_dir():
        raise ValueError(f"{found} is no folder, as data.decoding=1 asks for; leave that out")
    if decoding.rules == FIRST_DECODING:
        return first_folder(found, image_size, channels)
    return tree_images(read_tree(found), image_size, channels, decoding, root)


def tree_images(
    tree: Tree, image_size: int, channels: int, decoding: Decoding, root: Path | None
) -> Undecoded:
    """The images of a tree of files."""
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
    """The readable images by label and path, each once in its class, whatever links lead to it.

    Raises ValueError for a class of which no image is left.
    """
    kept = {}
    for name, images in splits.items():
        readable = [(i, label) for i, label in images if i not in outcome.unreadable]
        lost = {label for _, label in images} - {label for _, label in readable}
        if lost:
            example = next(image for image, label in images if label in lost)
            raise ValueError(
                f"no image beside {tree.top.name}/{printable(example)} can be read; repair some, "
                "or remove the class"
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
    """A split that is not decoded yet; counts which images had what (data.image_file).

    shape: image_size and channels.
    """
    image_size, channels = shape

    def read(i: int) -> tuple[np.ndarray, int]:
        path, label = images[i]
        try:
            decoded = read_image(tree.read(path), channels, background)
            pixels = fit(decoded.image, image_size, channels)
        except Exception as error:  # each of Pillow's decoders has exception types of its own
            raise ValueError(
                f"image {tree.top.name}/{printable(path)} cannot be read ({error}); repair or "
                "remove the file, or set data.unreadable to leave out as many"
            ) from error
        counts.update(decoded.facts)
        return pixels, label

    return Source(len(images), read)
