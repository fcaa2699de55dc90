"""Reports on a folder of images: how its layout is read, and which images are used."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fewstep.data.folders.class_names import join_names, printable
from fewstep.data.folders.file_tree import Tree
from fewstep.data.folders.image_file import DEEP, FRAMES, ROTATED, TRANSPARENT
from fewstep.data.folders.layout import Labelled, Layout

USE = {"train": "to train on", "test": "held out"}
FACTS = {
    TRANSPARENT: "with transparency, composited on data.background",
    ROTATED: "turned upright by their EXIF",
    DEEP: "of 16 bits, scaled to 8",
    FRAMES: "of several frames or pages, the first read",
    "repeated": "links to images of the same class left out",
}


class Outcome(NamedTuple):
    """What reading a folder found.

    counts: images by fact, complete once all are decoded. unreadable: files left out, and why.
    """

    counts: Counter[str]
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
    """One line with images used, class sizes, conversions of pixels, and files passed over.

    It leaves out conversions if the images were decoded earlier.
    """
    used = f"{image_count_text(sum(map(len, splits.values())))} used"
    parts = [used, *class_sizes(layout, splits)]
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
    """The smallest and the largest class of each split, in words."""
    for name, images in splits.items():
        counts = Counter(label for _, label in images)
        by_class = {c: counts[label] for label, c in enumerate(layout.classes)}
        if by_class:
            least, most = min(by_class, key=by_class.get), max(by_class, key=by_class.get)
            (low, small), (high, large) = (
                (f"{by_class[name]:,}", printable(name)) for name in (least, most)
            )
            spread = f"{low} in the smallest class ({small}) to {high} in the largest ({large})"
            yield f"{name}: {low} in each class" if low == high else f"{name}: {spread}"


def count_shared(tree: Tree, splits: Mapping[str, Labelled]) -> int:
    """The number of images that links put into further classes or splits."""
    images = [image for split in splits.values() for image, _ in split]
    return len(images) - len(set(map(tree.real_path, images))) if tree.real else 0
