"""Labels from a file beside the images, instead of class folders.

dataset.json             StyleGAN and EDM: {"labels": [["00000/img00000000.png", 6], ...]}
metadata.csv, .jsonl     Hugging Face's imagefolder: columns file_name and label
labels.json              {"a.png": "cat", ...}, [["a.png", "cat"], ...], or either as "labels"
labels.csv, train.csv    any table with a column of images and one of labels

A table is read if its rows name images: by path from the table's folder, or by file name or stem if
only one image has it.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from fewstep.data.folders.class_names import printable, sort_naturally
from fewstep.data.folders.file_tree import SUFFIXES, Folder, Tree

EDM = "dataset.json"
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "class_name",
    "classname",
    "class_id",
    "classid",
    "category",
) + ("category_id", "target", "label_id")
SPLIT_COLUMNS = ("split", "subset", "fold", "set", "partition")
# Tables with these names must name images; otherwise they are an error.
MEANT = ("labels", "label", "metadata")
FEW_ROWS = 10  # from here on, distinct values are not classes unless the column is named so
DELIMITERS = "\t;,"
LARGEST_LABEL = 2**20  # a mistaken label, such as a date, would make as many classes

Row = Mapping[str, str]


class Labels(NamedTuple):
    """The class index of each image, the class names in order, and the tables read."""

    by_image: dict[str, int]
    classes: list[str]
    tables: list[str]

    @property
    def source(self) -> str:
        """The tables, in words."""
        return f"labels of {', '.join(map(printable, self.tables))}"


def read_labels(tree: Tree, folders: Iterable[Folder]) -> Labels | None:
    """The labels from the tables directly in these folders; None if there are none.

    Raises ValueError if an image has two labels, or if labels cannot be understood.
    """
    tables = [(folder, path) for folder in folders for path in folder.tables]
    edm = [(f, p) for f, p in tables if PurePosixPath(p).name.lower() == EDM]
    if edm:
        return _edm_labels(tree, edm)
    found, sources = {}, []
    for folder, path in tables:
        rows = _read_rows(tree, path)
        if not rows and is_label_table(path) and not path.lower().endswith(".json"):
            raise ValueError(f"{tree.top.name}/{path} has no rows; fill it in, or move it away")
        named = _table_labels(folder, path, rows) if rows else None
        if not named:
            continue
        for image, label in named.items():
            set_label(found, image, label, f"{tree.top.name}: {', '.join([*sources, path])}")
        sources.append(path)
    if not found:
        return None
    classes = sort_naturally(set(found.values()))
    numbers = {name: label for label, name in enumerate(classes)}
    by_image = {image: numbers[label] for image, label in found.items()}
    return Labels(by_image, classes, sources)


def _edm_labels(tree: Tree, files: Sequence[tuple[Folder, str]]) -> Labels | None:
    """Labels from dataset.json, which are indices; None if it has none."""
    found: dict[str, int] = {}
    for folder, path in files:
        where, text = f"{tree.top.name}/{path}", tree.text(path)
        try:
            pairs = json.loads(text)["labels"]
            if pairs is None:
                continue
            pairs = (
                [*pairs.items()]
                if isinstance(pairs, dict)
                else [(name, label) for name, label in pairs]
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f'{where} is not {{"labels": [["IMAGE", 6], ...]}}, as EDM writes it ({error!r}); '
                "correct it, or rename it if it is something else"
            ) from error
        images = _Images(folder)
        for name, label in pairs:
            if isinstance(label, bool) or not isinstance(label, int):
                raise ValueError(
                    f"{where} has the label {label!r}, which is not a whole number; "
                    "rename it labels.json if labels are names"
                )
            if not 0 <= label < LARGEST_LABEL:
                raise ValueError(f"{where} has the label {label}; labels count classes from 0")
            set_label(found, images.required(name, where), label, where)
    if not found:
        return None
    classes = [str(label) for label in range(max(found.values()) + 1)]
    return Labels(found, classes, [path for _, path in files])


class _Images:
    """The images of a folder, by the names that a table may use."""

    def __init__(self, folder: Folder) -> None:
        images = folder.all_images()
        start = f"{folder.path}/" if folder.path else ""
        self.by_path = {image.removeprefix(start).replace("\\", "/"): image for image in images}
        self.by_name = _unique_names(
            (PurePosixPath(path).name, i) for path, i in self.by_path.items()
        )
        self.by_stem = _unique_names(
            (PurePosixPath(path).stem, i) for path, i in self.by_path.items()
        )

    def find(self, name: str) -> str | None:
        """The image of this name; None if none or several have it."""
        path = name.strip().replace("\\", "/").removeprefix("./").lstrip("/")
        return self.by_path.get(path) or self.by_name.get(path) or self.by_stem.get(path)

    def required(self, name: str, where: str) -> str:
        """The image of this name. Raises ValueError if there is none."""
        found = self.find(str(name))
        if found is None:
            raise ValueError(
                f"{where} names {printable(str(name))!r}, which matches no image or several; "
                "name each image by its path from that file"
            )
        return found


def _unique_names(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    pairs = list(pairs)
    counts = Counter(name for name, _ in pairs)
    return {name: image for name, image in pairs if counts[name] == 1}


def is_label_table(path: str) -> bool:
    """Whether a table's file name says that it has labels."""
    return PurePosixPath(path).stem.lower() in MEANT


def _read_rows(tree: Tree, path: str) -> list[Row]:
    """The rows of a table, by column name; [] for a file that is not a table."""
    suffix, where = PurePosixPath(path).suffix.lower(), f"{tree.top.name}/{path}"
    if suffix == ".json":
        return _json_rows(tree, path) if is_label_table(path) else []
    text = tree.text(path)
    if suffix == ".jsonl":
        try:
            values = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ValueError(
                f"{where} does not have one JSON object per line ({error}); correct it"
            ) from error
        return [_texts(row) for row in values if isinstance(row, dict)]
    lines = text.splitlines()
    delimiter = max(DELIMITERS, key=lines[0].count) if lines else ","
    try:
        cells = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    except csv.Error as error:
        raise ValueError(f"{where} cannot be read ({error}); correct it") from error
    if cells and any(PurePosixPath(c.strip()).suffix.lower() in SUFFIXES for c in cells[0]):
        cells.insert(0, [f"column {i}" for i in range(1, len(cells[0]) + 1)])  # no heading
    if not cells:
        return []
    head = [name.strip() for name in cells[0]]
    return [dict(zip(head, map(str.strip, row), strict=False)) for row in cells[1:]]


def _json_rows(tree: Tree, path: str) -> list[Row]:
    """The pairs of image and label in a labels.json as rows; [] for other content."""
    text = tree.text(path)
    try:
        found = json.loads(text)
        found = found["labels"] if isinstance(found, dict) and "labels" in found else found
        pairs = [*found.items()] if isinstance(found, dict) else [(name, c) for name, c in found]
    except (ValueError, TypeError, RecursionError):
        return []
    flat = all(isinstance(c, str | int | None) for _, c in pairs)
    return [_texts({"image": str(name), "label": c}) for name, c in pairs] if flat else []


def _texts(row: Mapping[str, object]) -> Row:
    """The values of a row as text; null is ""."""
    return {
        name: value if isinstance(value, str) else "" if value is None else json.dumps(value)
        for name, value in row.items()
    }


def _table_labels(folder: Folder, path: str, rows: Sequence[Row]) -> dict[str, str] | None:
    """The labels in a table's rows, by image; None for a table without labels."""
    images, where = _Images(folder), f"{folder.name}/{PurePosixPath(path).name}"
    columns = list(dict.fromkeys(column for row in rows for column in row))
    image_columns = [c for c in columns if all(images.find(row.get(c) or "") for row in rows)]
    # A .json of this name may be something else, such as the names of classes.
    meant = is_label_table(path) and not path.lower().endswith(".json")
    if not image_columns:
        # A column names some images: report the one that is missing.
        partly = [c for c in columns if any(images.find(row.get(c) or "") for row in rows)]
        if partly:
            for row in rows:
                images.required(row.get(partly[0]) or "", where)
        if meant:
            raise ValueError(
                f"{where} names no image of {folder.name}; correct it, or move it away to use the "
                "images without it"
            )
        return None
    # Numbers may name both images and classes.
    column = next((c for c in image_columns if c.lower() not in LABEL_COLUMNS), image_columns[0])
    split = [c for c in columns if c.lower() in SPLIT_COLUMNS]
    if split:
        raise ValueError(
            f"{where} has a column {split[0]}, which is not supported; put the images into train/ "
            "and test/, or remove the column to train on all"
        )
    others = [
        c for c in columns if c != column and (c not in image_columns or c.lower() in LABEL_COLUMNS)
    ]
    by_name = [c for name in LABEL_COLUMNS for c in others if c.lower() == name]
    chosen = by_name[0] if by_name else others[0] if len(columns) == 2 and others else None
    if chosen is None or (not by_name and PurePosixPath(path).stem.lower() == "metadata"):
        return _check_not_meant(where, meant and "metadata" not in where, others)
    if (
        not by_name
        and len(rows) >= FEW_ROWS
        and len({row.get(chosen) for row in rows}) == len(rows)
    ):
        raise ValueError(
            f"{where} has a different {chosen} for each image; rename the column `label` if these "
            "are classes, or move the file away"
        )
    empty = [row[column] for row in rows if not row.get(chosen)]
    if empty:
        raise ValueError(f"{where} has no label for {printable(empty[0])}; fill it in")
    labels: dict[str, str] = {}
    for row in rows:
        set_label(labels, images.required(row[column], where), row[chosen], where)
    return labels


def set_label(labels: dict[str, Any], image: str, label: str | int, where: str) -> None:
    """Add the label of an image. Raises ValueError if it already has another."""
    if labels.setdefault(image, label) != label:
        raise ValueError(
            f"{where}: {printable(image)} has two labels, {labels[image]!r} and {label!r}; "
            "remove one"
        )


def _check_not_meant(where: str, meant: bool, columns: Sequence[str]) -> None:
    """Raises ValueError if a table without a label column is meant to have one."""
    if meant:
        raise ValueError(
            f"{where} has no column `label`, only {', '.join(columns) or 'one of images'}; rename "
            "the column with the classes to `label`"
        )
