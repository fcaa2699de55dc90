"""Data sets by name: ORIGINS says where each kind comes from.

none               no data set, for methods that read none; sizes and classes are the config's
digits             scikit-learn's 8 x 8 digits; nothing to download
fashion_mnist      Fashion-MNIST, by data/fashion_mnist.py
folder:PATH        a folder or a .zip of images, by data/folders/folder.py; needs image_size
tfds:NAME or NAME  an image data set of TensorFlow Datasets, by data/tfds_images.py

A new kind is a file and an entry.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fewstep.data.arrays.array_cache import (
    Undecoded,
    array_folder,
    data_root,
    decode,
    is_decoded,
    local_folder,
    repair,
)
from fewstep.data.arrays.dataset import Dataset
from fewstep.data.arrays.files import claimed
from fewstep.data.arrays.local_copy import FIELD, copy_arrays
from fewstep.data.arrays.pixels import check_size
from fewstep.data.digits import digits
from fewstep.data.folders.decoding import BACKGROUND, FIRST_DECODING, Decoding, parse_decoding
from fewstep.data.folders.folder import folder_images
from fewstep.data.tfds_images import UnknownBuilderError, builder_names, tfds_images, write_tfds
from fewstep.messages import did_you_mean, nearest_name
from fewstep.progress import note

NONE = "none"
# NAME, NAME/CONFIG, NAME:VERSION. TFDS takes more (huggingface:..., URLs) as where to fetch code.
TFDS_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")


class Selection(NamedTuple):
    """Which data set, and how its images are read.

    data_dir: where prepared data lie; "" is $FEWSTEP_DATA, else ~/.cache/fewstep.
    image_size, channels: what images are resized and converted to; 0 is the data set's own.
    decoding, background, unreadable: how files are read (data/folders/decoding.py).
    """

    name: str
    data_dir: str = ""
    image_size: int = 0
    channels: int = 0
    decoding: int = 0
    background: str = BACKGROUND
    unreadable: int = 0

    def rules(self) -> Decoding:
        """How files are read. Raises ValueError for what cannot be."""
        return parse_decoding(self.decoding, self.background, self.unreadable)


class Origin(NamedTuple):
    """Where the data sets of one kind come from.

    form: of their names, KIND or KIND:ARGUMENT; "" for a kind that is not offered.
    open: (argument or name, selection, whether data_dir is writable) -> the data set in memory, or
    as it is before it is decoded.
    download: (argument or name, selection) writes what `open` reads; None if that is nothing.
    place: what protocols call data whose argument is a path: such data are known by their images,
    wherever they lie. "" for data that are known by their name.
    missing: why there are no such data yet; "" if there are.
    """

    form: str = ""
    open: Callable[[str, Selection, bool], Dataset | Undecoded] | None = None
    download: Callable[[str, Selection], None] | None = None
    place: str = ""
    missing: str = ""


def _open_none(name: str, asked: Selection, writable: bool) -> Dataset:
    raise FileNotFoundError(
        "data.name=none has no images: name a data set, such as --config.data.name=digits, or set "
        "data.image_size, data.channels and data.num_classes if none are read"
    )


def _open_digits(name: str, asked: Selection, writable: bool) -> Dataset:
    return digits(asked.image_size, asked.channels)


def _open_folder(path: str, asked: Selection, writable: bool) -> Undecoded:
    kept = data_root(asked.data_dir if writable else "")
    return folder_images(path, asked.image_size, asked.channels, asked.rules(), kept)


def _open_tfds(name: str, asked: Selection, writable: bool) -> Undecoded:
    root = data_root(asked.data_dir)
    return tfds_images(
        _check_tfds_name(name), root, asked.image_size, asked.channels, asked.rules()
    )


def _download_tfds(name: str, asked: Selection) -> None:
    root = data_root(asked.data_dir)
    with claimed(root):
        write_tfds(_check_tfds_name(name), root, asked.image_size, asked.channels)


def _check_tfds_name(name: str) -> str:
    if not TFDS_NAME.fullmatch(name):
        raise UnknownBuilderError(name)
    return name


ORIGINS = {
    NONE: Origin(NONE, _open_none),
    "digits": Origin("digits", _open_digits),
    "fashion_mnist": Origin("fashion_mnist", _open_tfds, _download_tfds),
    "folder": Origin("folder:PATH", _open_folder, place="a folder of images"),
    "tfds": Origin("tfds:NAME", _open_tfds, _download_tfds),
    "latents": Origin(missing="there is no pipeline of VAE latents yet; use pixels"),
}


def load_selection(asked: Selection, writable: bool = True) -> Dataset:
    """The data set that is asked for.

    writable: whether arrays may be written to data_dir; if not, they go where "" is.

    All but digits are decoded on first use into memory-mapped arrays under data_dir. Raises
    ValueError for a name that does not exist or data that cannot be read, FileNotFoundError for
    data that are not there or not prepared.
    """
    found = _open(asked, writable)
    if isinstance(found, Dataset):
        return found
    root = data_root(asked.data_dir)
    if is_decoded(found, root):
        return decode(found, root, writable)
    _note_line(found.understood)
    dataset = decode(found, root if writable else data_root())
    _note_line(found.account())
    return dataset


def load_copy(asked: Selection, local_dir: str) -> Dataset:
    """The data set, its arrays copied under local_dir, a disk of this host, and read from there.

    What is there already is not copied again. Errors as for `load_selection`; OSError if the disk has no
    room.
    """
    local = local_folder(local_dir, FIELD)
    found = _open(asked)
    if isinstance(found, Dataset):
        return found
    return copy_arrays(found, data_root(asked.data_dir), local)


def prepare_dataset(asked: Selection) -> Path:
    """Download and decode what `load_selection` reads of the same selection, and check what is there.

    Decoded arrays are hashed, and decoded again if they are damaged; standard error says what was
    done. Arrays by the rules of earlier versions are checked too where they are. Returns the folder
    (data_dir for digits, which need none). Raises as `load_selection` does, and ValueError if the data cannot
    be downloaded or encoded.
    """
    if asked.name == NONE:
        return data_root(asked.data_dir)
    found, root = _open(asked, download=True), data_root(asked.data_dir)
    if isinstance(found, Dataset):
        return root
    _note_line(found.understood)
    newest = repair(found, root)
    _note_line(found.account())
    if asked.decoding == 0:
        _repair_first(asked, newest)
    return newest


def _repair_first(asked: Selection, newest: Path) -> None:
    """Check arrays by the first rules, on which older runs rest, if they lie in another folder."""
    root = data_root(asked.data_dir)
    older = asked._replace(decoding=FIRST_DECODING, background=BACKGROUND, unreadable=0)
    try:
        first = _open(older)
    except (ValueError, FileNotFoundError):
        return  # these rules cannot read it, so there are no such arrays
    if array_folder(first, root) != newest and is_decoded(first, root):
        repair(first, root)


def _open(asked: Selection, writable: bool = True, download: bool = False) -> Dataset | Undecoded:
    """What the origin of a selection opens, downloaded first if that is asked for.

    Raises ValueError for a name that does not exist, sizes that no image has and other rules.
    """
    origin, argument = _origin_of(asked.name)
    if origin.missing:
        raise ValueError(f"data.name={asked.name}: {origin.missing}")
    check_size(asked.image_size, asked.channels)
    asked.rules()
    try:
        if download and origin.download:
            origin.download(argument, asked)
        return origin.open(argument, asked, writable)
    except UnknownBuilderError as error:
        raise ValueError(unknown_name_message(asked.name)) from error


def _origin_of(name: str) -> tuple[Origin, str]:
    """The origin of a name and its argument, or the name itself; TFDS has every other name."""
    kind, colon, argument = name.partition(":")
    origin = ORIGINS.get(kind)
    if origin is None or bool(colon) != (":" in origin.form):
        return ORIGINS["tfds"], name
    return origin, argument if colon else name


def path_in_name(name: str) -> str:
    """The path in the name of data that are known by their images; "" for others."""
    origin, argument = _origin_of(name)
    return argument if origin.place else ""


def protocol_name(name: str) -> str:
    """What protocols call data of this name: that itself, unless it says where they lie."""
    return _origin_of(name)[0].place or name


def unknown_name_message(name: str) -> str:
    """The message that a data set does not exist: the nearest name and the forms of a name."""
    forms = [origin.form for origin in ORIGINS.values() if origin.form]
    known = {n: n for n in builder_names()} | {form.partition(":")[0]: form for form in forms}
    typed = _origin_of(name)[1].partition(":")[0].lower()
    found = did_you_mean(known.get(nearest_name(typed, known), "")) or "."
    return (
        f"data set {name!r} does not exist{found} A name is {', '.join(forms)}, or the bare NAME "
        "of a TFDS data set"
    )


def _note_line(line: str) -> None:
    if line:
        note(line)
