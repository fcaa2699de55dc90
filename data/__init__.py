"""Image data: real sets by name as uint8 arrays, and endless reproducible batches of them."""

from data.array_cache import data_root, local_folder, verify
from data.catalog import load, load_copy, prepare
from data.dataset import NULL_LABEL, Dataset, Pairs, Split
from data.decoding import FIRST_DECODING, NEWEST_DECODING
from data.identity import Identity, changes, digest
from data.labels import class_counts, shared_labels
from data.order import FIRST_ORDER, NEWEST_ORDER
from data.pipeline import batch_indices, batches, label_batches, pair_batches, row_batches
from data.pixels import to_float, to_uint8

__all__ = [
    "FIRST_DECODING",
    "FIRST_ORDER",
    "NEWEST_DECODING",
    "NEWEST_ORDER",
    "NULL_LABEL",
    "Dataset",
    "Identity",
    "Pairs",
    "Split",
    "batch_indices",
    "batches",
    "changes",
    "class_counts",
    "data_root",
    "digest",
    "label_batches",
    "load",
    "load_copy",
    "local_folder",
    "pair_batches",
    "prepare",
    "row_batches",
    "shared_labels",
    "to_float",
    "to_uint8",
    "verify",
]
