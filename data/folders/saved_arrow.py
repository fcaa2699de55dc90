"""Images of a Hugging Face data set: hf:PATH, of Parquet files or as `save_to_disk` wrote it.

The package `datasets` reads the Arrow files of `save_to_disk`; nothing else needs it. The images
are in the column `image` or the only one of images, the labels in `label` or the only one of
classes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.data.arrays.undecoded import Undecoded
from fewstep.data.folders.file_tree import Stamp, Tree, TreeBuilder
from fewstep.data.folders.folder import Wanted, tree_images
from fewstep.data.folders.label_table import LABEL_COLUMNS
from fewstep.data.folders.parquet import ParquetRows, parquet_splits
from fewstep.data.folders.records import RecordLabels, check_rules, number_labels, record_layout

FORM = "hf:PATH"
INSTALL = (
    f"{FORM} without Parquet files is read by the package datasets, which is not installed: "
    "pip install datasets"
)
WHOLE = "train"  # the name of the only split of a data set without splits
UNLABELLED = -1  # in a column of classes

Splits = Mapping[str, Any]  # datasets.Dataset or ParquetRows by the name of the split


def saved_images(path: str, wanted: Wanted) -> Undecoded:
    """The images of a saved data set.

    Raises FileNotFoundError if the folder is missing, and ValueError without the package `datasets`
    or an image_size, for another kind of folder, and for columns that leave a choice.
    """
    wanted.check(FORM)
    check_rules(wanted.decoding, FORM)
    root = Path(path).expanduser().absolute()
    if not path or not root.is_dir():
        raise FileNotFoundError(f"folder {path!r} does not exist; give a saved folder in {FORM}")
    splits = load_splits(root)
    columns = next(iter(splits.values())).features
    image, label = image_column(columns, root), label_column(columns, root)
    tree = rows_tree(root, splits, image)
    layout = record_layout(tree, row_labels(tree, splits, label))
    return tree_images(f"hf:{root}", tree, layout, wanted)


def load_splits(root: Path) -> Splits:
    """The splits of the data set in a folder. Raises ValueError if it is not one."""
    if splits := parquet_splits(root):
        return splits
    try:
        import datasets
    except ImportError as error:
        raise ValueError(INSTALL) from error
    try:
        found = datasets.load_from_disk(str(root))
    except Exception as error:  # each of Arrow's and the package's layers has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{root} cannot be read as a data set that save_to_disk wrote ({reason}); save it "
            "again by dataset.save_to_disk(PATH)"
        ) from error
    return dict(found) if isinstance(found, dict) else {WHOLE: found}


def image_column(columns: Mapping[str, Any], root: Path) -> str:
    """The column of images: `image`, or the only one. Raises ValueError without one."""
    found = [name for name, feature in columns.items() if type(feature).__name__ == "Image"]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    raise ValueError(
        f"{root} has {len(found)} columns of images among {', '.join(columns)}; name one `image` "
        "by dataset.rename_column, or give it the type datasets.Image() by cast_column, and save it"
    )


def label_column(columns: Mapping[str, Any], root: Path) -> str:
    """The column of labels, or "" if there is none. Raises ValueError for several."""
    found = [name for name, feature in columns.items() if type(feature).__name__ == "ClassLabel"]
    named = [name for name in LABEL_COLUMNS if name in columns]
    if named or len(found) < 2:
        return [*named, *found, ""][0]
    raise ValueError(
        f"{root} has several columns of classes ({', '.join(found)}), none called label; rename "
        "one by dataset.rename_column and save it"
    )


def rows_tree(root: Path, splits: Splits, image: str) -> Tree:
    """The images of all rows as files SPLIT/NUMBER. They have the stamps of their Arrow files."""
    readers = {name: image_reader(rows, image) for name, rows in splits.items()}

    def read(path: str) -> Path | bytes:
        name, _, number = path.rpartition("/")
        found = readers[name](int(number))
        if found.get("bytes") is None and not found.get("path"):
            raise ValueError("the row has no image")
        return Path(found["path"]) if found.get("bytes") is None else found["bytes"]

    builder = TreeBuilder(str(root), read)
    for name, rows in splits.items():
        # Deeper, as shards are, since a folder `train` of images may be a class.
        stamp, folder = _stamp(rows), builder.folder(f"{name}/rows")
        for path in _row_paths(name, rows):
            builder.image(folder, path, stamp)
    if not builder.tree.stamps:
        raise ValueError(f"{root} has no rows; save a data set with images")
    return builder.tree


def image_reader(rows: Any, column: str) -> Callable[[int], Mapping[str, Any]]:
    """The function that gives the bytes, or the path, of the image in a row."""
    if isinstance(rows, ParquetRows):
        return lambda number: rows.image(number, column)
    import datasets

    encoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return lambda number: encoded[number][column] or {}


def row_labels(tree: Tree, splits: Splits, column: str) -> RecordLabels:
    """The labels of the rows, whose classes have the names that the column records, if any."""
    source = f"labels of column {column}"
    if not column:
        return RecordLabels({}, [], source)
    found = {
        path: label
        for name, rows in splits.items()
        for path, label in zip(_row_paths(name, rows), column_values(rows, column), strict=True)
        if label is not None and label != UNLABELLED
    }
    kind = type(next(iter(found.values()), 0))
    if kind not in (int, str):
        raise ValueError(
            f"{tree.top.name} has {kind.__name__} values in column {column}; make them "
            "whole numbers or names, or rename the column, and save it"
        )
    names = getattr(next(iter(splits.values())).features[column], "names", None)
    return (
        RecordLabels(found, list(names), source)
        if names
        else number_labels(found, source, tree.top.name)
    )


def column_values(rows: Any, column: str) -> Sequence[Any]:
    """All values of a column."""
    return rows.column(column) if isinstance(rows, ParquetRows) else rows[column]


def _row_paths(name: str, rows: Any) -> list[str]:
    return [f"{name}/{number:09d}" for number in range(len(rows))]


def _stamp(rows: Any) -> Stamp:
    """Bytes and the latest time of the Arrow files of a split."""
    stats = [Path(file["filename"]).stat() for file in rows.cache_files]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
