"""Loads and prepares data sets by name; data/origins.py says where each kind comes from."""

from pathlib import Path

from fewstep.data.arrays.array_cache import (
    data_root,
    decode,
    is_decoded,
    local_folder,
    repair,
    verify,
)
from fewstep.data.arrays.dataset import Dataset, UnknownNameError
from fewstep.data.arrays.group import ALONE, ProcessGroup
from fewstep.data.arrays.local_copy import FIELD, copy_arrays
from fewstep.data.arrays.pixels import check_size
from fewstep.data.arrays.undecoded import Undecoded, array_folder
from fewstep.data.folders.decoding import BACKGROUND, FIRST_DECODING
from fewstep.data.origins import NONE, Selection, origin_of, unknown_name_message
from fewstep.progress import note


def load_selection(selection: Selection, writable: bool = True) -> Dataset:
    """The data set of a selection, decoded on first use into memory-mapped arrays under data_dir.

    writable: whether to write arrays to data_dir, or else to the default folder.

    Raises ValueError for an unknown name or data that cannot be read, FileNotFoundError for data
    that are missing or not prepared.
    """
    found = _open(selection, writable)
    if isinstance(found, Dataset):
        return found
    root = data_root(selection.data_dir)
    if is_decoded(found, root):
        return decode(found, root, writable)
    _note_line(found.understood)
    dataset = decode(found, root if writable else data_root())
    _note_line(found.account())
    return dataset


def load_copy(selection: Selection, local_dir: str) -> Dataset:
    """The data set, with its arrays copied to local_dir, on a disk of this host.

    Copies only what is not there yet. Raises as `load_selection` does, and OSError if the disk is
    too full.
    """
    local = local_folder(local_dir, FIELD)
    found = _open(selection)
    if isinstance(found, Dataset):
        return found
    return copy_arrays(found, data_root(selection.data_dir), local)


def prepare_dataset(selection: Selection, group: ProcessGroup = ALONE) -> Path:
    """Download and decode the data set of a selection, and verify arrays that exist.

    group: the processes that decode together; the first of them downloads and reports.

    Hashes decoded arrays, decodes damaged ones again, and reports on standard error. Also verifies
    arrays decoded by earlier rules. Returns the folder of the arrays (data_dir for digits and
    mixtures, which need none). Raises as `load_selection` does, and ValueError if the data cannot
    be downloaded or encoded.
    """
    if selection.name == NONE:
        return data_root(selection.data_dir)
    root = data_root(selection.data_dir)
    found = _open(selection, download=True) if group.is_first else None
    group.meet()
    found = found or _open(selection)
    if isinstance(found, Dataset):
        if found.moments is not None:
            verify(found)
        return root
    if not group.is_first:
        return repair(found, root, group)
    _note_line(found.understood)
    newest = repair(found, root, group)
    if group.count == 1:  # else the others know what they have read
        _note_line(found.account())
    if selection.decoding == 0:
        _repair_first(selection, newest)
    return newest


def _repair_first(selection: Selection, newest: Path) -> None:
    """Repair arrays decoded by the first rules, which older runs read, if their folder differs."""
    root = data_root(selection.data_dir)
    older = selection._replace(decoding=FIRST_DECODING, background=BACKGROUND, unreadable=0)
    try:
        first = _open(older)
    except (ValueError, FileNotFoundError):
        return  # these rules cannot read it, so no such arrays exist
    if array_folder(first, root) != newest and is_decoded(first, root):
        repair(first, root)


def _open(
    selection: Selection, writable: bool = True, download: bool = False
) -> Dataset | Undecoded:
    """The data set of a selection in memory, or to decode; downloads it first if asked to.

    Raises ValueError for an unknown name, and for sizes or decoding rules out of range.
    """
    origin, argument = origin_of(selection.name)
    check_size(selection.image_size, selection.channels)
    selection.rules()
    try:
        if download and origin.download:
            origin.download(argument, selection)
        return origin.open(argument, selection, writable)
    except UnknownNameError as error:
        raise ValueError(unknown_name_message(selection.name)) from error


def _note_line(line: str) -> None:
    if line:
        note(line)
