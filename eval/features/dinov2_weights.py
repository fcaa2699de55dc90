"""Published weights of dinov2.py: names and shapes checked, positions taken to 16 x 16 patches.

The positions are learned for 37 x 37 patches. Position i of the 16 in a row or column is read, by
cubic convolution (Keys 1981) with a = -3/4 and the border repeated, at

    (i + 1/2) 37 / (16 + 0.1) - 1/2

The offset of 0.1 was to keep rounding from losing a patch. It moves the last place from 35.3 to
35.1, and belongs to the features that papers compare. Done once, here, in float64.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fewstep.eval.features.dinov2 import GRID, PATCH, Affine, Block, Norm, Params, cubic
from fewstep.weights.tensors import check_tensors, read_tensors

Tensors = Mapping[str, np.ndarray]


class Size(NamedTuple):
    """The published file of a size, its SHA-256, and its number of blocks."""

    name: str
    sha256: str
    depth: int


# By width; ViT-g, of width 1536, has another MLP.
SIZES = {
    384: Size(
        "dinov2_vits14_pretrain.pth",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        12,
    ),
    768: Size(
        "dinov2_vitb14_pretrain.pth",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        12,
    ),
    1024: Size(
        "dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        24,
    ),
}
PAPER_WIDTH = 1024  # ViT-L, which Stein et al. 2023 measure with
IGNORED = "mask_token"  # stands for hidden patches, in training alone
PUBLISHED_GRID = 37  # patches along a side in training: 518 / 14
OFFSET = 0.1  # of the published code, to the 16 places that it scales to
CUBIC = -0.75  # PyTorch's coefficient a
MLP_RATIO = 4


def dinov2_params(weights: str | Path) -> Params:
    """Parameters of dinov2.py from a published file of ViT-S, B or L, whichever it turns out.

    Any format that weights/tensors.py reads will do; the published bytes have the SHA-256 in SIZES.
    Raises FileNotFoundError if there is no such file, and ValueError, naming the file, if it
    cannot be read or its tensors are not those of one of these networks.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"There is no file {weights}. It should be {SIZES[PAPER_WIDTH].name}, the weights "
            "that the authors of DINOv2 publish as ViT-L/14 distilled, without registers"
        )
    tensors = {k: v for k, v in read_tensors(weights).items() if k != IGNORED}
    width = width_of(tensors)
    check_tensors(tensors, published_shapes(width), weights, SIZES[width].name)
    kernel = tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, width)
    return Params(
        patches=Affine(single(kernel), single(tensors["patch_embed.proj.bias"])),
        token=single(tensors["cls_token"][0, 0]),
        positions=single(positions(tensors["pos_embed"][0])),
        blocks=blocks(tensors, SIZES[width].depth),
        norm=Norm(single(tensors["norm.weight"]), single(tensors["norm.bias"])),
    )


def width_of(tensors: Tensors) -> int:
    """The width that the last normalisation has, or that of ViT-L if it is of no known size."""
    width = tensors["norm.weight"].size if "norm.weight" in tensors else PAPER_WIDTH
    return width if width in SIZES else PAPER_WIDTH


def published_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the published file of a width, the ignored one aside."""
    block = {
        **norm_shapes("norm1", width),
        **linear_shapes("attn.qkv", width, 3 * width),
        **linear_shapes("attn.proj", width, width),
        "ls1.gamma": (width,),
        **norm_shapes("norm2", width),
        **linear_shapes("mlp.fc1", width, MLP_RATIO * width),
        **linear_shapes("mlp.fc2", MLP_RATIO * width, width),
        "ls2.gamma": (width,),
    }
    depth = SIZES[width].depth
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + PUBLISHED_GRID**2, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        **{f"blocks.{n}.{name}": shape for n in range(depth) for name, shape in block.items()},
        **norm_shapes("norm", width),
    }


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear_shapes(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def blocks(tensors: Tensors, depth: int) -> Block:
    """The blocks, stacked along a leading axis."""

    def stack(name: str) -> np.ndarray:
        return np.stack([tensors[f"blocks.{n}.{name}"] for n in range(depth)])

    def norm(name: str) -> Norm:
        return Norm(single(stack(f"{name}.weight")), single(stack(f"{name}.bias")))

    def affine(name: str) -> Affine:
        return Affine(single(stack(f"{name}.weight").swapaxes(1, 2)), single(stack(f"{name}.bias")))

    return Block(
        norm1=norm("norm1"),
        qkv=affine("attn.qkv"),
        projection=affine("attn.proj"),
        gamma1=single(stack("ls1.gamma")),
        norm2=norm("norm2"),
        expand=affine("mlp.fc1"),
        contract=affine("mlp.fc2"),
        gamma2=single(stack("ls2.gamma")),
    )


def positions(published: np.ndarray) -> np.ndarray:
    """Positions [1 + 37 37, D] -> [1 + 16 16, D], float64; that of the class token stays."""
    table = published[1:].astype(np.float64).reshape(PUBLISHED_GRID, PUBLISHED_GRID, -1)
    matrix = cubic_matrix()
    table = np.einsum("ir,jc,rcd->ijd", matrix, matrix, table, optimize=True)
    return np.concatenate([published[:1], table.reshape(GRID * GRID, -1)])


def cubic_matrix() -> np.ndarray:
    """Weights [16, 37] of the 37 published places in each of ours, four of them but at borders."""
    places = (np.arange(GRID) + 0.5) * PUBLISHED_GRID / (GRID + OFFSET) - 0.5
    taps = np.floor(places)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((GRID, PUBLISHED_GRID))
    columns = np.clip(taps, 0, PUBLISHED_GRID - 1).astype(int)
    weights = cubic(np.abs(places[:, None] - taps), CUBIC)
    np.add.at(matrix, (np.arange(GRID)[:, None], columns), weights)
    return matrix


def single(array: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(array, jnp.float32)
