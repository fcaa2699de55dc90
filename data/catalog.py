"""Data sets by name.

none               no data set, for methods that read none; sizes and classes are the config's
digits             scikit-learn's 8 x 8 digits; nothing to download
fashion_mnist      Fashion-MNIST, by data/fashion_mnist.py
folder:PATH        a folder or a .zip of images, by data/folders/folder.py; needs image_size
tfds:NAME or NAME  an image data set of TensorFlow Datasets, by data/tfds_images.py
"""

import re
from pathlib import Path

from fewstep.data.arrays.array_cache import (
    Undecoded,
    array_folder,
    data_root,
    decode,
    is_decoded,
    local_folder,
    mend,
)
from fewstep.data.arrays.dataset import Dataset
from fewstep.data.arrays.files import claimed
from fewstep.data.arrays.local_copy import FIELD, copy_arrays
from fewstep.data.arrays.pixels import check_size
from fewstep.data.digits import digits
from fewstep.data.folders.decoding import BACKGROUND, FIRST_DECODING, Decoding, decoding_of
from fewstep.data.folders.folder import folder
from fewstep.data.tfds_images import tfds_images, unknown_name, write_tfds
from fewstep.progress import note

FOLDER, TFDS, LATENTS, NONE = "folder:", "tfds:", "latents", "none"
# NAME, NAME/CONFIG, NAME:VERSION. TFDS takes more (huggingface:..., URLs) as where to fetch code.
TFDS_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")


def load(
    name: str,
    *,
    data_dir: str = "",
    image_size: int = 0,
    channels: int = 0,
    decoding: int = 0,
    background: str = BACKGROUND,
    unreadable: int = 0,
    writable: bool = True,
) -> Dataset:
    """The data set of that name.

    data_dir: where prepared data lie; "" is $FEWSTEP_DATA, else ~/.cache/fewstep.
    image_size, channels: what images are resized and converted to; 0 is the data set's own.
    decoding, background, unreadable: how files are read (data/folders/decoding.py).
    writable: whether arrays may be written to data_dir; if not, they go where "" is.

    All but digits are decoded on first use into memory-mapped arrays under data_dir. Raises
    ValueError for a name that does not exist or data that cannot be read, FileNotFoundError for
    data that are not there or not prepared.
    """
    if name == LATENTS:
        raise ValueError("data.name=latents: there is no pipeline of VAE latents yet; use pixels")
    check_size(image_size, channels)
    rules = decoding_of(decoding, background, unreadable)
    if name == "digits":
        return digits(image_size, channels)
    root = data_root(data_dir)
    undecoded = _undecoded(name, root, image_size, channels, rules, writable)
    if is_decoded(undecoded, root):
        return decode(undecoded, root, writable)
    _note(undecoded.understood)
    dataset = decode(undecoded, root if writable else data_root())
    _note(undecoded.account())
    return dataset


def load_copy(
    name: str,
    local_dir: str,
    *,
    data_dir: str = "",
    image_size: int = 0,
    channels: int = 0,
    decoding: int = 0,
    background: str = BACKGROUND,
    unreadable: int = 0,
) -> Dataset:
    """The data set, its arrays copied under local_dir, a disk of this host, and read from there.

    What is there already is not copied again. Other arguments, and errors, as for `load`; OSError
    if the disk has no room.
    """
    check_size(image_size, channels)
    rules = decoding_of(decoding, background, unreadable)
    local = local_folder(local_dir, FIELD)
    if name == "digits":
        return digits(image_size, channels)
    root = data_root(data_dir)
    return copy_arrays(_undecoded(name, root, image_size, channels, rules), root, local)


def prepare(
    name: str,
    *,
    data_dir: str = "",
    image_size: int = 0,
    channels: int = 0,
    decoding: int = 0,
    background: str = BACKGROUND,
    unreadable: int = 0,
) -> Path:
    """Download and decode what `load` with the same arguments reads, and check what is there.

    Decoded arrays are hashed, and decoded again if they are damaged; standard error says what was
    done. Arrays by the rules of earlier versions are checked too where they are. Returns the folder
    (data_dir for digits, which need none). Raises as `load` does, and ValueError if the data cannot
    be downloaded or encoded.
    """
    check_size(image_size, channels)
    rules = decoding_of(decoding, background, unreadable)
    root = data_root(data_dir)
    if name in ("digits", NONE):
        return root
    if not name.startswith(FOLDER):
        with claimed(root):
            write_tfds(_tfds_name(name), root, image_size, channels)
    undecoded = _undecoded(name, root, image_size, channels, rules)
    _note(undecoded.understood)
    newest = mend(undecoded, root)
    _note(undecoded.account())
    if decoding == 0:
        _mend_first(name, root, image_size, channels, newest)
    return newest


def _mend_first(name: str, root: Path, image_size: int, channels: int, newest: Path) -> None:
    """Check arrays by the first rules, on which older runs rest, if they lie in another folder."""
    try:
        first = _undecoded(name, root, image_size, channels, Decoding(FIRST_DECODING))
    except (ValueError, FileNotFoundError):
        return  # these rules cannot read it, so there are no such arrays
    if array_folder(first, root) != newest and is_decoded(first, root):
        mend(first, root)


def _undecoded(
    name: str,
    root: Path,
    image_size: int,
    channels: int,
    rules: Decoding,
    writable: bool = True,
) -> Undecoded:
    if name == NONE:
        raise FileNotFoundError(
            "data.name=none has no images: name a data set, such as --config.data.name=digits, or "
            "set data.image_size, data.channels and data.num_classes if none are read"
        )
    if name.startswith(FOLDER):
        kept = root if writable else data_root()
        return folder(name.removeprefix(FOLDER), image_size, channels, rules, kept)
    return tfds_images(_tfds_name(name), root, image_size, channels, rules)


def _note(line: str) -> None:
    if line:
        note(line)


def _tfds_name(name: str) -> str:
    bare = name.removeprefix(TFDS)
    if not TFDS_NAME.fullmatch(bare):
        raise ValueError(unknown_name(name))
    return bare
