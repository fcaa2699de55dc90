"""Image data: real sets by name as uint8 arrays, and endless reproducible batches of them."""

from data.catalog import load, prepare
from data.dataset import NULL_LABEL, Dataset, Split
from data.pipeline import batches
from data.pixels import to_float, to_uint8

__all__ = ["NULL_LABEL", "Dataset", "Split", "batches", "load", "prepare", "to_float", "to_uint8"]
