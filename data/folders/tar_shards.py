"""Images in tar shards by the convention of WebDataset, read without unpacking them.

    webdataset:/data/{000000..000146}.tar      ranges and lists in braces, and * and ?
    webdataset:/data                           all .tar files under a folder

A sample is the members of a shard that share a key, their path up to the first dot of the file
name: KEY.jpg (or another image) and its label, KEY.cls or a field of KEY.json. Shards below folders
train/ and test/, or with such words before their numbers, are splits as folders are.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from glob import glob
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fewstep.data.arrays.undecoded import Undecoded
from fewstep.data.folders.class_names import printable
from fewstep.data.folders.file_tree import HIDDEN, SPECIAL, Tree, TreeBuilder, is_hidden, is_image
from fewstep.data.folders.folder import Wanted, tree_images
from fewstep.data.folders.label_table import LABEL_COLUMNS
from fewstep.data.folders.records import check_rules, number_labels, record_layout
from fewstep.data.folders.splits import NUMBER, SPLIT, split_kind

FORM = "webdataset:PATTERN"
TAR = ".tar"
BRACES = re.compile(r"\{([^{}]+)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
LABEL_SUFFIXES = (".cls", ".json")  # the first that a sample has counts
SOURCE = "labels of .cls or .json"


class Place(NamedTuple):
    """Where the bytes of an image lie."""

    shard: Path
    offset: int
    size: int


def shard_images(pattern: str, wanted: Wanted) -> Undecoded:
    """The images of the shards that a pattern names.

    Raises FileNotFoundError for a missing shard, and ValueError without an image_size, for a
    damaged shard, for a sample of several images, and for labels that only some images have.
    """
    wanted.check(FORM)
    check_rules(wanted.decoding, FORM)
    shards = find_shards(pattern)
    tree, found = read_shards(shards)
    if not tree.stamps:
        passed = tree.passed_over()
        raise ValueError(f"{pattern} has no images; {passed or 'its shards are empty'}")
    layout = record_layout(tree, number_labels(found, SOURCE, tree.top.name))
    return tree_images(f"webdataset:{pattern}", tree, layout, wanted)


def find_shards(pattern: str) -> list[Path]:
    """The shards of a pattern, sorted. Raises FileNotFoundError for a missing one."""
    shards: set[Path] = set()
    for text in expand_braces(str(Path(pattern).expanduser().absolute())):
        path = Path(text)
        if path.is_dir():
            found = [p for p in path.rglob(f"*{TAR}") if not is_hidden(p.name)]
        else:
            found = [path] if path.exists() else list(map(Path, glob(text, recursive=True)))
        if not pattern or not found:
            raise FileNotFoundError(
                f"there is no tar shard {text}; give {FORM}, such as "
                "webdataset:/data/{000000..000146}.tar, or the folder of the shards"
            )
        shards.update(found)
    return sorted(shards)


def expand_braces(text: str) -> list[str]:
    """The texts that {000..002} and {a,b} stand for, as in a shell."""
    match = BRACES.search(text)
    if not match:
        return [text]
    span = RANGE.fullmatch(match[1])
    if span:
        first, last = map(int, span.groups())
        choices = [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    before, after = text[: match.start()], text[match.end() :]
    return [found for choice in choices for found in expand_braces(before + choice + after)]


def read_shards(shards: list[Path]) -> tuple[Tree, dict[str, int | str]]:
    """The images of shards as a tree, and the labels of those that have one."""
    top = Path(os.path.commonpath([shard.parent for shard in shards]))
    places: dict[str, Place] = {}
    builder = TreeBuilder(str(top), lambda path: _read_bytes(places[path]))
    labels: dict[str, int | str] = {}
    for shard in shards:
        name, modified = shard.relative_to(top).as_posix(), shard.stat().st_mtime_ns
        folder = builder.folder(f"{split_name(name)}/{PurePosixPath(name).name}")
        for files in _samples(shard, builder.tree, name):
            image = _only_image(files, shard)
            if image is None:
                builder.tree.passed["without an image"] += [f"{name}/{file}" for file in files]
                continue
            path = f"{name}/{image}"
            places[path] = files[image]
            builder.image(folder, path, (files[image].size, modified))
            label = _label(files)
            if label is not None:
                labels[path] = label
            for file in files:
                suffix = PurePosixPath(file).suffix.lower()
                if file != image and suffix not in LABEL_SUFFIXES:
                    builder.tree.passed[suffix].append(f"{name}/{file}")
    return builder.tree, labels


def split_name(shard: str) -> str:
    """The first folder of a shard that names a split, or else its own name without the number.

    Names like set-train count after those like train. If none names a split, it is the first.
    """
    path = PurePosixPath(shard)
    names = [*path.parts[:-1], NUMBER.sub("", path.stem)]
    found = [*filter(split_kind, names), *filter(SPLIT.fullmatch, names)]
    return next(iter(found), names[0] or "shards")


def _samples(shard: Path, tree: Tree, name: str) -> Iterator[dict[str, Place]]:
    """The files of each sample: by member name, in the order of keys."""
    members = sorted(_members(shard, tree, name), key=lambda member: (_key(member[0]), member[0]))
    for _, files in groupby(members, key=lambda member: _key(member[0])):
        yield dict(files)


def _key(member: str) -> str:
    folder, _, file = member.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _members(shard: Path, tree: Tree, name: str) -> Iterator[tuple[str, Place]]:
    """The files in a shard. Raises ValueError if it is damaged, also where tarfile stops early."""
    names = set()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if any(map(is_hidden, PurePosixPath(member.name.removeprefix("./")).parts)):
                    tree.passed[HIDDEN].append(f"{name}/{member.name}")
                elif member.isreg():
                    if member.name in names:
                        raise tarfile.ReadError(f"two files have the name {member.name}")
                    names.add(member.name)
                    yield member.name, Place(shard, member.offset_data, member.size)
                elif not member.isdir():
                    tree.passed[SPECIAL].append(f"{name}/{member.name}")
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it ends early, or is damaged in the middle")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"shard {shard} cannot be read as an uncompressed tar ({error}); copy or unzip it "
            "again, or leave it out of data.name"
        ) from error


def _only_image(files: Mapping[str, Place], shard: Path) -> str | None:
    """The image of a sample; None if it has none. Raises ValueError for several."""
    images = [file for file in files if is_image(file)]
    if len(images) > 1:
        raise ValueError(
            f"shard {shard} has several images of one key ({', '.join(map(printable, images))}); "
            "write shards with one image a sample"
        )
    return images[0] if images else None


def _label(files: Mapping[str, Place]) -> int | str | None:
    """The label of a sample; None if it has none. Raises ValueError for one that is unclear."""
    for suffix in LABEL_SUFFIXES:
        for file, place in files.items():
            if PurePosixPath(file).suffix.lower() == suffix:
                where = f"{place.shard}/{printable(file)}"
                try:
                    text = _read_bytes(place).decode().strip()
                    found = text if suffix == ".cls" else _json_label(json.loads(text))
                except ValueError as error:
                    raise ValueError(f"{where} cannot be read ({error}); correct it") from error
                if found == "":
                    raise ValueError(f"{where} is empty; write the label into it")
                return found
    return None


def _json_label(record: object) -> int | str | None:
    """The label in a JSON object, if a field is named as one."""
    fields = record if isinstance(record, dict) else {}
    found = next((fields[name] for name in LABEL_COLUMNS if fields.get(name) is not None), None)
    if isinstance(found, bool) or not isinstance(found, int | str | None):
        raise ValueError(f"its label {found!r} is neither a whole number nor a name")
    return found


def _read_bytes(place: Place) -> bytes:
    with place.shard.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)
