"""Images in Parquet files, as data sets on the Hugging Face Hub have them, read by pyarrow.

    train-00000-of-00002.parquet, data/set-test.parquet, train/0000.parquet, ...

`ParquetRows` has what data/folders/saved_arrow.py uses of a `datasets.Dataset`, so the rules for
columns, labels and splits are the same.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from fewstep.data.folders.splits import NUMBER, split_kind

PATTERN = "*.parquet"
HUB = b"huggingface"  # key of the metadata in which the package datasets keeps the types of columns
WHOLE = "train"  # the split of files whose names say none
WORDS = re.compile(r"[-_.]")  # between the words of a name
PLAIN = ("data", "part")  # how writers call files and folders that have no name of their own
SHARD = re.compile(r"(part|shard|chunk)?\d+", re.IGNORECASE)  # what says only which part it is
OPEN = 4  # row groups of images that stay in memory


class Image:
    """The type of a column of images."""


class ClassLabel(NamedTuple):
    """The type of a column of classes."""

    names: Sequence[str] | None = None


class Value:
    """The type of any other column."""


class NamedSplit(NamedTuple):
    """What a path says. word: the split. before: the data set, as far as the words before say."""

    word: str
    before: str


class ParquetRows:
    """The rows of some files, in the order of their names. Raises ValueError for a damaged file."""

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow.parquet as parquet

        self.files, groups = files, []
        for file in files:
            try:
                about = parquet.read_metadata(file)
                self.features = column_types(parquet.read_schema(file))
            except Exception as error:  # each of Arrow's layers has its own
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ValueError(
                    f"{file} cannot be read as Parquet ({reason}); replace it"
                ) from error
            groups += [(file, k, about.row_group(k).num_rows) for k in range(about.num_row_groups)]
        self.groups = groups
        self.starts = np.cumsum([0, *(rows for _, _, rows in groups)])
        self.cache_files = [{"filename": str(file)} for file in files]
        self.read_group, self.one_thread = lru_cache(maxsize=OPEN)(read_group), Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        return [
            value for file, k, _ in self.groups for value in read_group(file, k, name).to_pylist()
        ]

    def image(self, number: int, column: str) -> Mapping[str, Any]:
        """The bytes, or the path, of the image in a row."""
        index = int(np.searchsorted(self.starts, number, side="right")) - 1
        file, group, _ = self.groups[index]
        with self.one_thread:  # else all threads read a group that they reach together
            rows = self.read_group(file, group, column)
        value = rows[number - int(self.starts[index])].as_py()
        return {"bytes": value} if isinstance(value, bytes) else value or {}


def read_group(file: Path, group: int, column: str) -> Any:
    """A column of a row group, as an array of Arrow."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column]).column(0)


def column_types(schema: Any) -> dict[str, Any]:
    """The type of each column: by the metadata of the package datasets, else by that of Arrow."""
    import pyarrow

    content = json.loads((schema.metadata or {}).get(HUB, b"{}"))
    known = content.get("info", {}).get("features", {})
    types: dict[str, Any] = {}
    for field in schema:
        about = known.get(field.name, {})
        kind = about.get("_type") if isinstance(about, dict) else None
        pictured = field.type in (pyarrow.binary(), pyarrow.large_binary()) or (
            pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        )
        if kind == "ClassLabel":
            types[field.name] = ClassLabel(about.get("names"))
        else:
            types[field.name] = Image() if kind == "Image" or pictured else Value()
    return types


def parquet_splits(root: Path) -> dict[str, ParquetRows]:
    """The rows of each split below a folder; {} without Parquet files.

    Raises ValueError if the files of a split are those of two data sets.
    """
    found = [file.relative_to(root) for file in sorted(root.rglob(PATTERN))]
    files = [file for file in found if not any(part.startswith(".") for part in file.parts)]
    named = any(map(find_split, files))
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file) if named else WHOLE, []).append(file)
    for name, own in splits.items():
        check_one_set(root, name, own)
    return {name: ParquetRows([root / file for file in own]) for name, own in splits.items()}


def split_of(file: Path) -> str:
    """The split that the path of a file names, or else what it calls itself.

    It is `train` if the path says nothing, such as 0000.parquet or part-0.parquet. Beside splits,
    another name is an error (data/folders/splits.py).
    """
    found = find_split(file)
    names = (NUMBER.sub("", file.stem), *file.parent.parts[::-1])
    return found.word if found else next(filter(says_something, names), WHOLE)


def says_something(name: str) -> bool:
    """Whether a name has more than numbers and the words of writers."""
    first = WORDS.split(name)[0].lower()
    return not (first.isdigit() or first in ("", *PLAIN))


def find_split(file: Path) -> NamedSplit | None:
    """The split that the name of a file, or of the nearest folder around it, has as a word."""
    for name, above in ((file.stem, file.parent), *((f.name, f.parent) for f in file.parents)):
        words = WORDS.split(name)
        place = next((i for i, word in enumerate(words) if split_kind(word)), None)
        if place is not None:
            before = [word for word in words[:place] if not SHARD.fullmatch(word)]
            return NamedSplit(words[place], "-".join((data_set(above, words[place]), *before)))
        if split_kind(NUMBER.sub("", name)):  # held-out
            return NamedSplit(NUMBER.sub("", name), data_set(above, name))
    return None


def data_set(folder: Path, split: str) -> str:
    """The folders above those of a split and of its parts."""
    parts = folder.parts
    outer = parts[: parts.index(split)] if split in parts else parts
    return "/".join(part for part in outer if not SHARD.fullmatch(part))


def check_one_set(root: Path, split: str, files: Sequence[Path]) -> None:
    """Raises ValueError if files of a split lie in different folders or begin differently."""
    sets = {found.before: file for file in files if (found := find_split(file))}
    if len(sets) > 1:
        first, second, *_ = sets.values()
        raise ValueError(
            f"{root} has {first} and {second}, which are {split} of two data sets; give the folder "
            "of one as hf:PATH, or move the other away"
        )
