"""Reports on a folder of images: how its layout is read, and which images are used."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fewstep.data.arrays.dataset import NULL_LABEL
from fewstep.data.folders.class_names import SHOWN, join_names, printable
from fewstep.data.folders.file_tree import Tree
from fewstep.data.folders.image_file import DEEP, FRAMES, ROTATED, TRANSPARENT
from fewstep.data.folders.layout import Labelled, Layout

SMALL = "small"  # a fact beside those of data/folders/image_file.py
USE = {"train": "to train on", "test": "held out"}
FACTS = {
    SMALL: "smaller than data.image_size, enlarged",
    TRANSPARENT: "with transparency, composited on data.background",
    ROTATED: "turned upright by their EXIF",
    DEEP: "of 16 bits, scaled to 8",
    FRAMES: "of several frames or pages, the first read",
    "repeated": "links to images of the same class left out",
}


class Outcome(NamedTuple):
    """What reading a folder found.

    counts, sizes: images by fact, and by the (width, height) of their files; complete once all are
    decoded. unreadable: files left out, and why.
    """

    counts: Counter[str]
    sizes: Counter[tuple[int, int]]
    unreadable: Mapping[str, str]


def describe_layout(layout: Layout, splits: Mapping[str, Labelled]) -> str:
    """One line with the layout, the classes and the number of images."""
    sizes = ", ".join(
        f"{image_count_text(len(images))} {USE[name]}" for name, images in splits.items()
    )
    count = len(layout.classes)
    named = f"{count} class{'es' * (count > 1)} ({join_names(layout.classes)}), " if count else ""
    return f"{layout.words}; {named}{sizes}"


def image_count_text(images: int) -> str:
    """A number of images in words: 1 image, 1,200 images."""
    return f"{images:,} image{'s' * (images != 1)}"


def describe_use(
    tree: Tree, layout: Layout, splits: Mapping[str, Labelled], outcome: Outcome
) -> str:
    """One line with images used, class sizes, sizes, conversions, and files passed over.

    It leaves out what decoding finds, sizes and conversions, if the images were decoded earlier.
    """
    used = f"{image_count_text(sum(map(len, splits.values())))} used"
    parts = [used, *class_sizes(layout, splits), *original_sizes(outcome.sizes)]
    parts += [
        f"{outcome.counts[fact]} {text}" for fact, text in FACTS.items() if outcome.counts[fact]
    ]
    if outcome.unreadable:
        parts.append(
            f"{len(outcome.unreadable)} unreadable left out ({join_names([*outcome.unreadable])})"
        )
    shared = count_shared(tree, splits)
    if shared:
        parts.append(f"{shared} in several classes or splits, by links")
    return "; ".join([*parts, tree.passed_over(layout.tables) or "nothing passed over"])


def class_sizes(layout: Layout, splits: Mapping[str, Labelled]) -> Iterator[str]:
    """The images of each class of a split, or of the smallest and largest of many, in words."""
    for name, images in splits.items() if layout.classes else ():
        counts = Counter(label for _, label in images)
        by_class = [counts[label] for label in range(len(layout.classes))]
        plain = f", {counts[NULL_LABEL]:,} without a label" if counts[NULL_LABEL] else ""
        yield f"{name}: {class_counts_text(by_class, layout.classes)}{plain}"


def class_counts_text(counts: Sequence[int], classes: Sequence[str]) -> str:
    """The number of images of each class in words."""
    low, high = min(counts), max(counts)
    if low == high:
        return f"{low:,} in each class"
    if len(classes) <= SHOWN:
        return ", ".join(f"{printable(c)} ({n:,})" for c, n in zip(classes, counts, strict=True))
    small, large = (printable(classes[counts.index(count)]) for count in (low, high))
    return f"{low:,} in the smallest class ({small}) to {high:,} in the largest ({large})"


def original_sizes(sizes: Mapping[tuple[int, int], int]) -> Iterator[str]:
    """The smallest and the largest image by area, before they are resized, in words."""
    if sizes:
        by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        ends = dict.fromkeys(f"{width} x {height}" for width, height in (by_area[0], by_area[-1]))
        yield f"originals of {' to '.join(ends)} pixels"


def count_shared(tree: Tree, splits: Mapping[str, Labelled]) -> int:
    """The number of images that links put into further classes or splits."""
    images = [image for split in splits.values() for image, _ in split]
    return len(images) - len(set(map(tree.real_path, images))) if tree.real else 0
