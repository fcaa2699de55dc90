"""Folders and .zips of images as a data set; docs/data.md describes what is read and how."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from fewstep.data.arrays.pixels import fit
from fewstep.data.arrays.shards import Source, each_image
from fewstep.data.arrays.undecoded import Undecoded
from fewstep.data.folders.account import SMALL, Outcome, describe_layout, describe_use
from fewstep.data.folders.class_names import printable
from fewstep.data.folders.decoding import FIRST_DECODING, Decoding
from fewstep.data.folders.file_tree import Tree, read_tree
from fewstep.data.folders.first_decoding import first_folder
from fewstep.data.folders.image_file import Color, read_image
from fewstep.data.folders.layout import Labelled, Layout, read_layout
from fewstep.data.folders.several import SEPARATOR, check_apart, join_folders, split_paths
from fewstep.data.folders.unreadable import find_unreadable

CHANNELS = 3  # unless data.channels is 1


class Wanted(NamedTuple):
    """How the images of files are read: as squares of image_size pixels.

    channels: 0 is RGB. root: the folder of prepared data, which keeps the list of unreadable files
    if any are allowed.
    """

    image_size: int
    channels: int
    decoding: Decoding
    root: Path | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(image_size, channels) of a decoded image."""
        return self.image_size, self.channels or CHANNELS

    def check(self, form: str) -> None:
        """Raises ValueError without an image_size. form: of the data set's names."""
        if not self.image_size:
            raise ValueError(f"data.image_size is required for {form}; set it, for example to 32")


def folder_images(text: str, wanted: Wanted) -> Undecoded:
    """The images under the path in `text`, or under several with commas between them.

    Raises FileNotFoundError if a folder is missing, and ValueError without an image_size, for an
    ambiguous layout, and for more unreadable files than allowed.
    """
    wanted.check("folder:PATH")
    paths = sorted(map(existing_path, split_paths(text) or [""]))
    if wanted.decoding.rules == FIRST_DECODING:
        return first_images(paths, wanted)
    check_apart(paths)
    folders = [(tree, read_layout(tree)) for tree in map(read_tree, paths)]
    tree, layout = folders[0] if len(folders) == 1 else join_folders(folders)
    return tree_images(f"folder:{SEPARATOR.join(map(str, paths))}", tree, layout, wanted)


def existing_path(path: str) -> Path:
    """The absolute path of a folder or file. Raises FileNotFoundError if there is none."""
    found = Path(path).expanduser().absolute()
    if not path or not found.exists():
        raise FileNotFoundError(
            f"folder {path!r} does not exist; give the path of a folder or .zip as folder:PATH"
        )
    return found


def first_images(paths: Sequence[Path], wanted: Wanted) -> Undecoded:
    """The images by the first rules. Raises ValueError for anything but one folder."""
    if len(paths) > 1 or not paths[0].is_dir():
        raise ValueError(
            f"{SEPARATOR.join(map(str, paths))} is not a folder; data.decoding=1 reads only "
            "folders, so leave it out"
        )
    return first_folder(paths[0], *wanted.shape)


def tree_images(name: str, tree: Tree, layout: Layout, wanted: Wanted) -> Undecoded:
    """The images of a tree of files in a layout, by the newest rules. name: of the data set.

    Raises ValueError for more unreadable files than allowed.
    """
    decoding, (image_size, channels) = wanted.decoding, wanted.shape
    found = [image for images in layout.splits.values() for image, _ in images]
    outcome = Outcome(
        Counter(), Counter(), find_unreadable(tree, found, decoding.unreadable, wanted.root)
    )
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
            split: image_source(tree, images, wanted.shape, decoding.background, outcome)
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
    outcome: Outcome,
) -> Source:
    """A split to decode. Counts the sizes and the facts of its images in the outcome.

    shape: (image_size, channels).
    """
    image_size, channels = shape
    one_thread = Lock()

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
        small = (SMALL,) if min(decoded.size) < image_size else ()
        with one_thread:
            outcome.counts.update((*decoded.facts, *small))
            outcome.sizes[decoded.size] += 1
        return pixels, label

    return each_image(len(images), read)
