"""Published weights of dinov2.py: checks names and shapes, resamples positions to 16 x 16 patches.

The position embeddings were learned for 37 x 37 patches. Place i of the 16 in a row or column reads
them, by cubic convolution (Keys 1981) with a = -3/4 and a repeated border, at

    (i + 1/2) 37 / (16 + 0.1) - 1/2

The offset of 0.1 was meant to keep rounding from losing a patch. It moves the last place from 35.3
to 35.1, and is part of the features that papers compare. Computed once, in float64.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fewstep.eval.features.dinov2 import GRID, PATCH, BlockParams, Linear, Norm, Params, cubic
from fewstep.weights.tensors import check_tensors, read_tensors

Tensors = Mapping[str, np.ndarray]


class PublishedFile(NamedTuple):
    """A published file, its SHA-256, and the network's number of blocks."""

    name: str
    sha256: str
    depth: int


# By width. ViT-g, with a width of 1536, has another MLP and is not supported.
SIZES = {
    384: PublishedFile(
        "dinov2_vits14_pretrain.pth",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
        12,
    ),
    768: PublishedFile(
        "dinov2_vitb14_pretrain.pth",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
        12,
    ),
    1024: PublishedFile(
        "dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        24,
    ),
}
PAPER_WIDTH = 1024  # ViT-L, which Stein et al. 2023 measure with
IGNORED = "mask_token"  # replaces hidden patches, in training only
PUBLISHED_GRID = 37  # patches along a side in training: 518 / 14
OFFSET = 0.1  # that the published code adds to the 16 places
CUBIC = -0.75  # PyTorch's coefficient a
MLP_RATIO = 4


def dinov2_params(weights: str | Path) -> Params:
    """Parameters of dinov2.py from a published file of ViT-S, ViT-B or ViT-L.

    weights: a file in any format that weights/tensors.py reads; SIZES has the published SHA-256.
    Raises FileNotFoundError if the file does not exist, and ValueError that names it if it cannot
    be read or holds another network.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"There is no file {weights}. It should be {SIZES[PAPER_WIDTH].name}, the weights "
            "that the authors of DINOv2 publish as ViT-L/14 distilled, without registers"
        )
    tensors = {k: v for k, v in read_tensors(weights).items() if k != IGNORED}
    width = network_width(tensors)
    check_tensors(tensors, dinov2_shapes(width), weights, SIZES[width].name)
    kernel = tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, width)
    return Params(
        patches=Linear(float32(kernel), float32(tensors["patch_embed.proj.bias"])),
        token=float32(tensors["cls_token"][0, 0]),
        positions=float32(resample_positions(tensors["pos_embed"][0])),
        blocks=stack_blocks(tensors, SIZES[width].depth),
        norm=Norm(float32(tensors["norm.weight"]), float32(tensors["norm.bias"])),
    )


def network_width(tensors: Tensors) -> int:
    """The width of the last normalisation, or that of ViT-L if no size has it."""
    width = tensors["norm.weight"].size if "norm.weight" in tensors else PAPER_WIDTH
    return width if width in SIZES else PAPER_WIDTH


def dinov2_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the published file of a width, without the ignored one."""
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


def stack_blocks(tensors: Tensors, depth: int) -> BlockParams:
    """The blocks, stacked along a leading axis."""

    def stack(name: str) -> np.ndarray:
        return np.stack([tensors[f"blocks.{n}.{name}"] for n in range(depth)])

    def norm(name: str) -> Norm:
        return Norm(float32(stack(f"{name}.weight")), float32(stack(f"{name}.bias")))

    def affine(name: str) -> Linear:
        return Linear(
            float32(stack(f"{name}.weight").swapaxes(1, 2)), float32(stack(f"{name}.bias"))
        )

    return BlockParams(
        norm1=norm("norm1"),
        qkv=affine("attn.qkv"),
        projection=affine("attn.proj"),
        gamma1=float32(stack("ls1.gamma")),
        norm2=norm("norm2"),
        expand=affine("mlp.fc1"),
        contract=affine("mlp.fc2"),
        gamma2=float32(stack("ls2.gamma")),
    )


def resample_positions(published: np.ndarray) -> np.ndarray:
    """Positions [1 + 37 37, D] -> [1 + 16 16, D], float64. The class token's stays as it is."""
    table = published[1:].astype(np.float64).reshape(PUBLISHED_GRID, PUBLISHED_GRID, -1)
    matrix = cubic_matrix()
    table = np.einsum("ir,jc,rcd->ijd", matrix, matrix, table, optimize=True)
    return np.concatenate([published[:1], table.reshape(GRID * GRID, -1)])


def cubic_matrix() -> np.ndarray:
    """Weights [16, 37] of the published places in each of the 16 places, at most four per row."""
    places = (np.arange(GRID) + 0.5) * PUBLISHED_GRID / (GRID + OFFSET) - 0.5
    taps = np.floor(places)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((GRID, PUBLISHED_GRID))
    columns = np.clip(taps, 0, PUBLISHED_GRID - 1).astype(int)
    weights = cubic(np.abs(places[:, None] - taps), CUBIC)
    np.add.at(matrix, (np.arange(GRID)[:, None], columns), weights)
    return matrix


def float32(array: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(array, jnp.float32)
