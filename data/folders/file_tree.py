"""The files of a folder or a .zip: the images, and what is passed over and why.

It passes over hidden files and folders, and those that other programs keep beside images. It
follows links, except to a folder that contains the link. Paths are relative and use /.
"""

import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fewstep.data.folders.class_names import printable

# Image formats that Pillow reads.
SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".dib")
    + (".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".qoi", ".mpo")
)
TABLES = frozenset((".csv", ".tsv", ".jsonl", ".json"))  # may hold labels
# Folders that file managers, storage systems and Python create, in lower case.
COMPANIONS = frozenset(
    ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
    + ("__pycache__", "#snapshot")
)
HIDDEN, BROKEN, LOOP, SPECIAL = "hidden", "broken links", "links to a folder above", "pipes"
NO_SUFFIX = "without a suffix"
NAMED = 3  # examples of each kind of file passed over

Stamp = tuple[int, int]  # bytes, and modification time in ns (in a .zip the checksum)


class Folder(NamedTuple):
    """A folder in a tree.

    name: for messages. path: within the tree, "" at the top. images, tables: sorted paths of those
    directly in it. folders: sub-folders by name.
    """

    name: str
    path: str
    images: list[str]
    tables: list[str]
    folders: dict[str, "Folder"]

    def all_images(self) -> list[str]:
        """Paths of the images at any depth, sorted."""
        return sorted([*self.images, *(i for f in self.folders.values() for i in f.all_images())])

    def has_images(self) -> bool:
        """Whether it has an image at any depth."""
        return bool(self.images) or any(f.has_images() for f in self.folders.values())

    def filled(self) -> dict[str, "Folder"]:
        """The sub-folders that have images at any depth, by name."""
        return {name: folder for name, folder in self.folders.items() if folder.has_images()}


class Tree(NamedTuple):
    """The files under a path.

    stamps: by image. real: the real path of each image behind a link. passed: files passed over, by
    kind. broken: image files that are broken links. read: path -> a file or its bytes, for Pillow.
    """

    top: Folder
    stamps: dict[str, Stamp]
    real: dict[str, str]
    passed: dict[str, list[str]]
    broken: list[str]
    read: Callable[[str], Path | bytes]
    root: str = ""  # the real path of the top

    def passed_over(self, tables: Container[str] = ()) -> str:
        """The files passed over, in words, except `tables`, which hold the labels; "" for none."""
        passed = {k: [n for n in names if n not in tables] for k, names in self.passed.items()}
        kinds = sorted(passed.items(), key=lambda item: -len(item[1]))
        texts = (
            f"{len(names)} {kind} ({', '.join(map(printable, names[:NAMED]))}"
            f"{', ...' if len(names) > NAMED else ''})"
            for kind, names in kinds
            if names
        )
        total = sum(map(len, passed.values()))
        return f"passed over {total}: {'; '.join(texts)}" if total else ""

    def real_path(self, path: str) -> str:
        """The real path of an image, behind any links."""
        return self.real.get(path) or f"{self.root}/{path}"

    def text(self, path: str) -> str:
        """The text of a file. Raises ValueError if it cannot be read or is not UTF-8."""
        where = f"{self.top.name}/{printable(path)}"
        try:
            content = self.read(path)
            content = content if isinstance(content, bytes) else content.read_bytes()
        except Exception as error:  # zipfile raises several for encrypted and damaged members
            raise ValueError(f"{where} cannot be read ({error}); repair it or remove it") from error
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where} is not UTF-8 text; save it as UTF-8, or move it away if it has no labels"
            ) from error


def read_tree(path: Path) -> Tree:
    """The files under a folder or in a .zip."""
    return _read_zip(path) if path.is_file() else _read_folder(path)


def file_name(path: str) -> str:
    """The last part of a path, for messages."""
    return printable(PurePosixPath(path).name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to another program, not to the data."""
    return name.startswith(".") or name.lower() in COMPANIONS


class TreeBuilder:
    """A tree to which files are added."""

    def __init__(self, name: str, read: Callable[[str], Path | bytes]) -> None:
        top = Folder(name, "", [], [], {})
        self.tree = Tree(top, {}, {}, defaultdict(list), [], read, os.path.realpath(name))

    def folder(self, path: str) -> Folder:
        """The folder of this path; adds it if it is new."""
        found = self.tree.top
        for name in PurePosixPath(path).parts:
            below = f"{found.path}/{name}".lstrip("/")
            new = Folder(f"{found.name}/{printable(name)}", below, [], [], {})
            found = found.folders.setdefault(name, new)
        return found

    def image(self, folder: Folder, path: str, stamp: Stamp) -> None:
        """Add an image."""
        folder.images.append(path)
        self.tree.stamps[path] = stamp

    def other(self, folder: Folder, path: str) -> None:
        """Add a file that is not an image."""
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in TABLES:
            folder.tables.append(path)
        self.tree.passed[suffix or NO_SUFFIX].append(path)


def is_image(path: str) -> bool:
    """Whether a file has the suffix of an image."""
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def _read_folder(root: Path) -> Tree:
    growing = TreeBuilder(str(root), root.joinpath)
    _walk(growing, root, "", (growing.tree.root,), linked=False)
    return growing.tree


def _walk(
    growing: TreeBuilder, root: Path, path: str, above: tuple[str, ...], linked: bool
) -> None:
    """Add the files of a folder. above: the real paths of it and of the folders around it."""
    tree, folder = growing.tree, growing.folder(path)
    with os.scandir(root / path) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    for entry in entries:
        below, link = f"{path}/{entry.name}".lstrip("/"), entry.is_symlink()
        if is_hidden(entry.name):
            tree.passed[HIDDEN].append(below)
        elif os.path.isdir(entry.path) if link else entry.is_dir(follow_symlinks=False):
            real = os.path.realpath(entry.path)
            if link and holds(real, above):
                tree.passed[LOOP].append(below)
            else:
                _walk(growing, root, below, (*above, real), linked or link)
        elif link and not os.path.exists(entry.path):
            (tree.broken if is_image(below) else tree.passed[BROKEN]).append(below)
        elif not (os.path.isfile(entry.path) if link else entry.is_file(follow_symlinks=False)):
            tree.passed[SPECIAL].append(below)
        elif is_image(below):
            stat = entry.stat()
            growing.image(folder, below, (stat.st_size, stat.st_mtime_ns))
            if linked or link:
                tree.real[below] = os.path.realpath(entry.path)
        else:
            growing.other(folder, below)


def holds(folder: str, above: Iterable[str]) -> bool:
    """Whether a folder is one of these folders, or contains one."""
    return any(os.path.commonpath((folder, other)) == folder for other in above)


def _read_zip(file: Path) -> Tree:
    """The files in a .zip. Raises ValueError if it is not one."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{file} is neither a folder nor a .zip ({error}); unpack it and give the folder"
        ) from error
    growing = TreeBuilder(str(file), archive.read)
    for member in sorted(archive.infolist(), key=lambda member: member.filename):
        path = member.filename.replace("\\", "/").strip("/")
        parts = PurePosixPath(path).parts
        if any(map(is_hidden, parts)):
            growing.tree.passed[HIDDEN].append(path)
        elif member.is_dir():
            growing.folder(path)
        elif is_image(path):
            folder = growing.folder("/".join(parts[:-1]))
            growing.image(folder, member.filename, (member.file_size, member.CRC))
        else:
            growing.other(growing.folder("/".join(parts[:-1])), member.filename)
    return growing.tree
