"""Data sets by name as arrays, their spaces, and endless reproducible batches of them."""

from fewstep.data.arrays.array_cache import data_root, local_folder, verify
from fewstep.data.arrays.dataset import NULL_LABEL, Dataset, Pairs, Split
from fewstep.data.arrays.identity import Identity, changes, digest
from fewstep.data.arrays.pixels import to_float, to_uint8
from fewstep.data.catalog import (
    NONE,
    Selection,
    known_as,
    load,
    load_copy,
    path_in,
    prepare,
    space_of,
)
from fewstep.data.folders.decoding import FIRST_DECODING, NEWEST_DECODING
from fewstep.data.labels import class_counts, shared_labels
from fewstep.data.order import FIRST_ORDER, NEWEST_ORDER
from fewstep.data.pipeline import batch_indices, batches, label_batches, pair_batches, row_batches

__all__ = [
    "FIRST_DECODING",
    "FIRST_ORDER",
    "NEWEST_DECODING",
    "NEWEST_ORDER",
    "NONE",
    "NULL_LABEL",
    "Dataset",
    "Identity",
    "Pairs",
    "Selection",
    "Split",
    "batch_indices",
    "batches",
    "changes",
    "class_counts",
    "data_root",
    "digest",
    "known_as",
    "label_batches",
    "load",
    "load_copy",
    "local_folder",
    "pair_batches",
    "path_in",
    "prepare",
    "row_batches",
    "shared_labels",
    "space_of",
    "to_float",
    "to_uint8",
    "verify",
]
