"""Data sets by name as arrays, their spaces, and endless reproducible batches of them."""

from fewstep.data.arrays.array_cache import data_root, local_folder, verify
from fewstep.data.arrays.dataset import NULL_LABEL, Dataset, Pairs, Posteriors, Split
from fewstep.data.arrays.identity import Identity, identity_changes, short_hash
from fewstep.data.arrays.pixels import to_float, to_uint8
from fewstep.data.catalog import load_copy, load_selection, prepare_dataset
from fewstep.data.folders.decoding import FIRST_DECODING, NEWEST_DECODING
from fewstep.data.labels import class_counts, proportional_labels
from fewstep.data.order import FIRST_ORDER, NEWEST_ORDER
from fewstep.data.origins import (
    NONE,
    Selection,
    path_in_name,
    protocol_name,
    replace_paths,
    selection_of,
    space_of,
)
from fewstep.data.pipeline import (
    batch_indices,
    image_batches,
    index_batches,
    label_batches,
    moment_batches,
    pair_batches,
)

__all__ = [
    "FIRST_DECODING",
    "FIRST_ORDER",
    "NEWEST_DECODING",
    "NEWEST_ORDER",
    "NONE",
    "NULL_LABEL",
    "Dataset",
    "Identity",
    "Posteriors",
    "Pairs",
    "Selection",
    "selection_of",
    "Split",
    "batch_indices",
    "image_batches",
    "identity_changes",
    "class_counts",
    "data_root",
    "short_hash",
    "protocol_name",
    "label_batches",
    "load_selection",
    "load_copy",
    "moment_batches",
    "local_folder",
    "pair_batches",
    "path_in_name",
    "prepare_dataset",
    "index_batches",
    "proportional_labels",
    "replace_paths",
    "space_of",
    "to_float",
    "to_uint8",
    "verify",
]
