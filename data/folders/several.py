"""Several folders of images as one data set: folder:A,B.

Each folder is read by its own layout. Classes of the same name are joined, and images of a folder
without labels stay without one.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from fewstep.data.arrays.dataset import NULL_LABEL
from fewstep.data.folders.class_names import sort_naturally
from fewstep.data.folders.file_tree import Folder, Tree
from fewstep.data.folders.layout import Labelled, Layout

SEPARATOR = ","


class _Part(NamedTuple):
    """A folder among several. prefix: its path from the folder around them all, and a /."""

    prefix: str
    tree: Tree
    layout: Layout


def split_paths(text: str) -> list[str]:
    """The paths in PATH or A,B. The path of something that exists may contain commas."""
    if Path(text).expanduser().exists():
        return [text]
    return [path for part in text.split(SEPARATOR) if (path := part.strip())]


def check_apart(paths: Sequence[Path]) -> None:
    """Raises ValueError if a folder is given twice, or lies in another."""
    for one, other in combinations(paths, 2):
        real = [os.path.realpath(path) for path in (one, other)]
        if os.path.commonpath(real) in real:
            raise ValueError(
                f"data.name has both {one} and {other}, which repeat the same images; give only "
                "the outer folder"
            )


def join_folders(folders: Sequence[tuple[Tree, Layout]]) -> tuple[Tree, Layout]:
    """The files and the layout of several folders, by paths from the folder around them all."""
    around = os.path.commonpath([os.path.dirname(tree.top.name) for tree, _ in folders])
    parts = sorted(
        _Part(f"{os.path.relpath(tree.top.name, around)}/", tree, layout)
        for tree, layout in folders
    )
    return _join_trees(around.rstrip("/"), parts), _join_layouts(parts)


def _join_trees(around: str, parts: Sequence[_Part]) -> Tree:
    passed: dict[str, list[str]] = {}
    for prefix, tree, _ in parts:
        for kind, paths in tree.passed.items():
            passed.setdefault(kind, []).extend(prefix + path for path in paths)
    return Tree(
        top=Folder(around, "", [], [], {}),
        stamps={p + image: stamp for p, tree, _ in parts for image, stamp in tree.stamps.items()},
        real={p + image: tree.real_path(image) for p, tree, _ in parts for image in tree.stamps},
        passed=passed,
        broken=[p + image for p, tree, _ in parts for image in tree.broken],
        read=_reader(parts),
        root=around,
    )


def _reader(parts: Iterable[_Part]) -> Callable[[str], Path | bytes]:
    def read(path: str) -> Path | bytes:
        part = next(part for part in parts if path.startswith(part.prefix))
        return part.tree.read(path.removeprefix(part.prefix))

    return read


def _join_layouts(parts: Sequence[_Part]) -> Layout:
    """The layout of all parts, whose classes are those of any of them, by name."""
    own = [[unicodedata.normalize("NFC", c) for c in part.layout.classes] for part in parts]
    classes = sort_naturally({name for names in own for name in names})
    numbers = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[tuple[str, int]]] = {}
    for (prefix, _, layout), names in zip(parts, own, strict=True):
        for split, images in layout.splits.items():
            splits.setdefault(split, []).extend(_renumber(images, prefix, names, numbers))
    return Layout(
        words="; ".join(f"{part.prefix} has {part.layout.words}" for part in parts),
        classes=classes,
        splits=splits,
        tables=[part.prefix + table for part in parts for table in part.layout.tables],
    )


def _renumber(
    images: Labelled, prefix: str, names: Sequence[str], numbers: dict[str, int]
) -> Labelled:
    return [
        (prefix + image, NULL_LABEL if label == NULL_LABEL else numbers[names[label]])
        for image, label in images
    ]
