"""Files of EDM's ADM network and the parameter tree of ours (models/adm_unet.py).

The label matrix is stored [width, classes], without a bias.
"""

from pathlib import Path

import numpy as np

from fewstep.weights.layouts.dit import Converted
from fewstep.weights.layouts.names import (
    MATRIX,
    Layout,
    Place,
    Tensors,
    Tree,
    affine,
    convolution,
    norm,
)
from fewstep.weights.layouts.unet import (
    EMBEDDING_RATIO,
    LABELS,
    Names,
    UNetSizes,
    read_unet,
    write_unet,
)


def outside_places(sizes: UNetSizes) -> Layout:
    """The places of the mapping and of the end of the network."""
    embedding, channels = EMBEDDING_RATIO * sizes.width, sizes.width * sizes.multipliers[0]
    layout = (
        affine("map_layer0", "mapping/hidden", sizes.width, embedding)
        | affine("map_layer1", "mapping/output", embedding, embedding)
        | norm("out_norm", "norm", channels)
        | convolution("out_conv", "last", channels, sizes.channels)
    )
    if sizes.classes:
        layout[LABELS] = Place("mapping/label_table", (embedding, sizes.classes), MATRIX)
    return layout


NAMES = Names(
    outside=outside_places,
    stem=lambda sizes: sizes.width * sizes.multipliers[0],
    variants=("", ""),
    modulated=True,
    projected=False,
    attention_throughout=True,
    head_width=64,
)


def read_adm_unet(
    tensors: Tensors, path: str | Path, expected: str = "an ADM network"
) -> Converted:
    """The network in a file, as `read_unet`."""
    return read_unet(tensors, path, expected, NAMES)


def write_adm_unet(tree: Tree, sizes: UNetSizes) -> dict[str, np.ndarray]:
    """The tensors of a tree, as `write_unet`."""
    return write_unet(tree, sizes, NAMES)
