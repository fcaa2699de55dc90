"""Images that are records of larger files, with labels beside them: their classes and splits.

Shards of tar files (data/folders/tar_shards.py) and saved Arrow files (data/folders/saved_arrow.py)
become a tree of files, whose top folders are splits.
"""

from collections.abc import Mapping
from typing import NamedTuple

from fewstep.data.arrays.dataset import NULL_LABEL
from fewstep.data.folders.class_names import printable, sort_naturally
from fewstep.data.folders.decoding import FIRST_DECODING, Decoding
from fewstep.data.folders.file_tree import Tree
from fewstep.data.folders.label_table import LARGEST_LABEL
from fewstep.data.folders.layout import Layout
from fewstep.data.folders.splits import TRAIN, choose_held_out, find_splits


class RecordLabels(NamedTuple):
    """The class index of each labelled image, the class names, and what holds the labels."""

    by_image: Mapping[str, int]
    classes: list[str]
    source: str


def check_rules(decoding: Decoding, form: str) -> None:
    """Raises ValueError for the first rules, which know only folders. form: of the names."""
    if decoding.rules == FIRST_DECODING:
        raise ValueError(f"data.decoding=1 does not read {form}; leave it out")


def number_labels(found: Mapping[str, int | str], source: str, where: str) -> RecordLabels:
    """Labels from whole numbers, which are indices, or else from names of classes.

    found: by image. Raises ValueError for a number out of range.
    """
    texts = {image: str(label) for image, label in found.items()}
    if all(text.removeprefix("-").isdecimal() for text in texts.values()):
        by_image = {image: int(text) for image, text in texts.items()}
        for image, label in by_image.items():
            if not 0 <= label < LARGEST_LABEL:
                raise ValueError(
                    f"{where}/{printable(image)} has the label {label}; correct it, for labels "
                    "count classes from 0"
                )
        count = max(by_image.values(), default=-1) + 1
        return RecordLabels(by_image, [str(label) for label in range(count)], source)
    classes = sort_naturally(set(texts.values()))
    numbers = {name: label for label, name in enumerate(classes)}
    return RecordLabels({i: numbers[text] for i, text in texts.items()}, classes, source)


def record_layout(tree: Tree, labels: RecordLabels) -> Layout:
    """The layout of records; with one top folder all are for training.

    Raises ValueError as `find_splits` does, and for a split of which only some images have labels.
    """
    several = len(tree.top.folders) > 1
    parts, remarks = find_splits(tree.top) if several else ({TRAIN: tree.top}, [])
    images = {kind: part.all_images() for kind, part in parts.items()}
    labelled = {kind: any(i in labels.by_image for i in own) for kind, own in images.items()}
    chosen, more = choose_held_out(parts, labelled)
    splits = {}
    for name, part in chosen.items():
        own = part.all_images()
        splits[name] = [(image, labels.by_image.get(image, NULL_LABEL)) for image in own]
        missing = [image for image, label in splits[name] if label == NULL_LABEL]
        if 0 < len(missing) < len(own):
            raise ValueError(
                f"{tree.top.name}/{printable(missing[0])} is one of {len(missing)} images without "
                f"{labels.source}; add them, or leave these images out"
            )
    words = [labels.source if labels.classes else "without labels", *remarks, *more]
    return Layout("; ".join(words), labels.classes, splits)
