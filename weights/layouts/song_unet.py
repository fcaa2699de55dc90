"""Files of EDM's DDPM++ and NCSN++ and the parameter tree of ours (models/song_unet.py).

NCSN++ has random frequencies of time and adds its halved input to each level; DDPM++ has neither.
The label matrix is stored [features, classes], and its bias is also that of the null class.
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
    FREQUENCIES,
    LABELS,
    Names,
    UNetSizes,
    read_unet,
    write_unet,
)


def outside_places(sizes: UNetSizes) -> Layout:
    """The places of the mapping, the end of the network, and NCSN++'s own parts."""
    features, embedding = sizes.features, EMBEDDING_RATIO * sizes.width
    end, channels = f"dec.{sizes.side}x{sizes.side}_aux", sizes.width * sizes.multipliers[0]
    layout = (
        affine("map_layer0", "mapping/hidden", features, embedding)
        | affine("map_layer1", "mapping/output", embedding, embedding)
        | norm(f"{end}_norm", "norm", channels)
        | convolution(f"{end}_conv", "last", channels, sizes.channels)
    )
    if sizes.classes:
        layout[LABELS] = Place("mapping/label_table", (features, sizes.classes), MATRIX)
        layout["map_label.bias"] = Place("mapping/label_bias", (features,))
    return layout | (residual_places(sizes) if sizes.variant == "ncsnpp" else {})


def residual_places(sizes: UNetSizes) -> Layout:
    """The places of NCSN++'s frequencies, and of the convolutions of its halved input."""
    layout = {FREQUENCIES: Place("mapping/frequencies", (sizes.features // 2,))}
    inputs = sizes.channels
    for level in range(1, len(sizes.multipliers)):
        side, outputs = sizes.side >> level, sizes.width * sizes.multipliers[level - 1]
        name, path = f"enc.{side}x{side}_aux_residual", f"encoder_{level}_residual/conv"
        layout |= convolution(name, path, inputs, outputs)
        inputs = outputs
    return layout


NAMES = Names(
    outside=outside_places,
    stem=lambda sizes: sizes.width,
    variants=("ddpmpp", "ncsnpp"),
    modulated=False,
    projected=True,
    attention_throughout=False,
    head_width=0,
)


def read_song_unet(
    tensors: Tensors, path: str | Path, expected: str = "a DDPM++ or NCSN++ network"
) -> Converted:
    """The network in a file, as `read_unet`."""
    return read_unet(tensors, path, expected, NAMES)


def write_song_unet(tree: Tree, sizes: UNetSizes) -> dict[str, np.ndarray]:
    """The tensors of a tree, as `write_unet`."""
    return write_unet(tree, sizes, NAMES)
