"""The layout of a folder: which images are for training, which are held out, and their classes.

    train/CLASS/*.png and test/CLASS/*.png       also Train, training, train2017; val, valid, ...
    CLASS/train/*.png and CLASS/test/*.png
    CLASS/*.png, CLASS/SUB/*.png                 all for training
    *.png; train/*.png; images/*.png             without labels
    labels beside the images                     data/folders/label_table.py
    00000/img00000000.png                        EDM's tool; its folders are not classes

Any of them may lie inside one more folder. An ambiguous layout is an error that says how to resolve
it.
"""

import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from fewstep.data.arrays.dataset import NULL_LABEL
from fewstep.data.folders.class_names import join_names, printable, sort_naturally
from fewstep.data.folders.file_tree import SUFFIXES, Folder, Tree, file_name
from fewstep.data.folders.label_table import EDM, Labels, read_labels
from fewstep.data.folders.splits import (
    HOLDERS,
    TRAIN,
    choose_held_out,
    find_splits,
    is_wrapper,
    join_folders,
    split_kind,
    split_kinds,
)

# Beside other folders, these hold images or what belongs to the same images, such as masks.
PAIRED = frozenset(
    ("images", "image", "imgs", "img", "jpegimages", "masks", "mask", "annotations", "labels")
    + ("label", "ground_truth", "gt")
)
# NUMBER/imgNUMBER (EDM's and StyleGAN's tool) and NUMBER/NUMBER (FFHQ): 1,000 images per folder.
BUCKET = re.compile(r"(\d{5})/(?:img(\d{8})|(\d{5}))\.\w+")
PER_BUCKET = 1000
# Labels in formats that data/folders/label_table.py does not read.
LABELS_FILE = re.compile(r"(labels?\.(?!csv|tsv|jsonl).*|metadata\.parquet)", re.IGNORECASE)
# What else images lie in, and the kind of data set that reads it (data/origins.py).
OTHER_KINDS = {".tar": "webdataset", ".arrow": "hf"}


# (path, label) of each image.
Labelled = Sequence[tuple[str, int]]


class Layout(NamedTuple):
    """How a folder is read.

    words: a description. classes: class names, [] without labels. splits: train and, if it exists,
    test. tables: files that the labels come from.
    """

    words: str
    classes: list[str]
    splits: dict[str, Labelled]
    tables: Sequence[str] = ()


def read_layout(tree: Tree) -> Layout:
    """The layout of a tree. Raises ValueError if it is ambiguous or has no images."""
    if not tree.top.has_images():
        raise ValueError(no_images_message(tree))
    words, chain = [], [tree.top]
    while is_wrapper(chain[-1]) and not split_kinds(chain[-1].filled()):
        chain += chain[-1].filled().values()
    top = chain[-1]
    if top is not tree.top:
        words.append(f"inside {printable(top.path)}/")
    parts, remarks = find_splits(top)
    words += remarks
    labels = read_labels(tree, [*chain, *(p for p in parts.values() if p is not top)])
    if labels:
        return layout_from_table(tree, parts, labels, words)
    layout = layout_from_folders(parts, words)
    if not layout.classes:
        check_no_other_labels(tree, chain)
    return layout


def check_no_other_labels(tree: Tree, folders: Sequence[Folder]) -> None:
    """Raises ValueError if unlabelled images lie beside labels in an unsupported format."""
    paths = {folder.path for folder in folders}
    for passed in tree.passed.values():
        for path in passed:
            folder, _, name = path.rpartition("/")
            if folder in paths and LABELS_FILE.fullmatch(name):
                raise ValueError(
                    f"{tree.top.name}/{printable(path)} is not supported; give its labels in a "
                    "labels.csv with columns image and label, or move it away to use the images "
                    "without labels"
                )


def no_images_message(tree: Tree) -> str:
    """The error message for a tree without images, which says what it has instead."""
    archives = tree.passed.get(".zip", ())
    hint = f"; give folder:{tree.top.name}/{archives[0]} to read that" if archives else ""
    for suffix, kind in OTHER_KINDS.items():
        hint = (
            f"; give {kind}:{tree.top.name} to read its {suffix}" if suffix in tree.passed else hint
        )
    if tree.broken:
        hint = f"; {len(tree.broken)} links, such as {printable(tree.broken[0])}, lead nowhere"
    passed = tree.passed_over()
    return (
        f"folder {tree.top.name} has no images ({', '.join(sorted(SUFFIXES))})"
        f"{f'; {passed}' if passed else ''}{hint}"
    )


def layout_from_table(
    tree: Tree, parts: Mapping[str, Folder], labels: Labels, words: Sequence[str]
) -> Layout:
    """The layout with labels from tables.

    Raises ValueError for an image without a label, and for class folders that disagree.
    """
    chosen, remarks = choose_held_out(parts, dict.fromkeys(parts, True))
    splits = {}
    for name, part in chosen.items():
        images = part.all_images()
        missing = [image for image in images if image not in labels.by_image]
        if missing:
            raise ValueError(
                f"{tree.top.name}/{printable(missing[0])} is one of {len(missing)} images without "
                f"{labels.source}; add them, or move them away"
            )
        splits[name] = [(image, labels.by_image[image]) for image in images]
        if EDM not in map(file_name, labels.tables):  # whose folders are not classes
            check_folders_agree(part, dict(splits[name]), labels.source)
    words = "; ".join([*words, labels.source, *remarks])
    return Layout(words, labels.classes, splits, labels.tables)


def check_folders_agree(part: Folder, labels: Mapping[str, int], source: str) -> None:
    """Raises ValueError if class folders and the labels of a table disagree."""
    filled = part.filled()
    if len(filled) < 2 or is_bucketed(part) or part.images:
        return
    pairs = {(name, labels[i]) for name, folder in filled.items() for i in folder.all_images()}
    if not len(pairs) == len(filled) == len({label for _, label in pairs}):
        raise ValueError(
            f"{part.name} has folders ({join_names(list(filled))}) that disagree with the "
            f"{source}; move the folders or the labels away"
        )


def layout_from_folders(parts: Mapping[str, Folder], words: Sequence[str]) -> Layout:
    """The layout with labels from class folders; the training split defines the classes."""
    found = {TRAIN: class_folders(parts[TRAIN])}
    trained = {nfc(name) for name in found[TRAIN][0]}
    found |= {kind: class_folders(part, trained) for kind, part in parts.items() if kind != TRAIN}
    chosen, remarks = choose_held_out(parts, {kind: bool(found[kind][0]) for kind in parts})
    classes, _ = found[TRAIN]
    names = sort_naturally(classes)
    numbers = {nfc(name): label for label, name in enumerate(names)}
    if len(numbers) < len(names):
        raise ValueError(
            f"{parts[TRAIN].name} has two folders whose names are the same in Unicode; merge them"
        )
    splits = {}
    for name, part in chosen.items():
        kind = next(kind for kind in parts if parts[kind] is part)
        own = found[kind][0]
        check_classes(part, own, names, parts[TRAIN])
        splits[name] = [
            (image, numbers[nfc(label)])
            for label in sort_naturally(own)
            for image in own[label].all_images()
        ] or [(image, NULL_LABEL) for image in part.all_images()]
    shown = [*words, *(text for _, text in found.values()), *remarks]
    return Layout("; ".join(dict.fromkeys(shown)), names, splits)


def check_classes(
    part: Folder, own: Mapping[str, Folder], names: Sequence[str], train: Folder
) -> None:
    """Raises ValueError for a class name that is not UTF-8, or a class missing in training."""
    for name in own:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{part.name} has a class whose name is not UTF-8, {ascii(name)}; rename its folder"
            ) from error
    known = {nfc(name) for name in names}
    strange = [name for name in own if nfc(name) not in known]
    if strange or bool(own) != bool(names):
        raise ValueError(
            f"{part.name} has other classes than {train.name}: "
            f"{join_names(strange) or 'none at all'}; sort its images into the same class folders, "
            "or move it away"
        )


def class_folders(part: Folder, trained: Container[str] = ()) -> tuple[dict[str, Folder], str]:
    """The class folders of a split, {} without classes, and a description.

    trained: class names of the training split, which are classes here too. Raises ValueError for a
    class folder without images, and for a folder that may not be a class.
    """
    while is_wrapper(part) and nfc(next(iter(part.filled()))) not in trained:
        (part,) = part.filled().values()
    filled = part.filled()
    if not filled:
        return {}, "no class folders: without labels"
    if part.images:
        raise ValueError(
            f"{part.name} has both images ({file_name(part.images[0])}) and class folders "
            f"({join_names(list(filled))}); move one of them away"
        )
    if is_bucketed(part):
        return {}, "numbered folders of 1,000 images: without labels"
    if len(filled) == 1 and nfc(next(iter(filled))) not in trained:
        (alone,) = filled
        if alone.lower() in HOLDERS or split_kind(alone) or alone == file_name(part.path):
            return {}, f"all images in {printable(alone)}/: without labels"
    empty = [folder for folder in part.folders.values() if not folder.has_images()]
    if empty:
        raise ValueError(f"class folder {empty[0].name} has no images; remove it or fill it")
    paired = [name for name in filled if name.lower() in PAIRED]
    if paired:
        others = [name for name in filled if name != paired[0]]
        raise ValueError(
            f"{part.name} has {paired[0]}/ beside {join_folders(others)}, which may not be "
            f"classes; move all but the images away, or rename {paired[0]}/ if it is a class"
        )
    deeper = any(folder.filled() for folder in filled.values())
    return filled, "class folders" + (", their sub-folders joined" if deeper else "")


def is_bucketed(part: Folder) -> bool:
    """Whether folders hold 1,000 numbered images each, as in EDM's tool and FFHQ."""
    start = f"{part.path}/" if part.path else ""
    if part.images or not all(name.isdigit() and len(name) == 5 for name in part.filled()):
        return False
    return all(_in_bucket(image.removeprefix(start)) for image in part.all_images())


def _in_bucket(path: str) -> bool:
    match = BUCKET.fullmatch(path)
    if not match:
        return False
    folder, number = int(match[1]), int(match[2] or match[3])
    bucket = number // PER_BUCKET
    return folder == (bucket if match[2] else bucket * PER_BUCKET)


def nfc(name: str) -> str:
    """A name in Unicode's composed form (NFC), since disks may write it differently."""
    return unicodedata.normalize("NFC", name)
