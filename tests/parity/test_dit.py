"""Published networks, read from their files, against independent PyTorch networks.

Every weight and bias is random, so that no zero hides one. The networks are a transcription with
the names of the published files (transcription.py), and diffusers' own class.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.dit import SIZES, dit
from fewstep.models.layers import position_table
from fewstep.models.time_reversal import reverse_time
from fewstep.weights.layouts.diffusers_dit import read_diffusers
from fewstep.weights.layouts.dit import read_meta
from fewstep.weights.tensors import read_tensors
from tests.parity.transcription import DiT, from_torch, randomize, to_torch, torch

pytestmark = pytest.mark.parity

CHANNELS, CLASSES = 4, 10
CASES = [("nano", 8, 2), ("micro", 16, 4), ("S", 8, 2)]
TIMES = np.array([0.0, 0.137, 0.5, 0.999], np.float32)
LABELS = np.array([0, 7, CLASSES - 1, -1], np.int32)
SHARED = {"classes": CLASSES, "channels": CHANNELS}


def images(side):
    return np.random.default_rng(1).standard_normal((4, side, side, CHANNELS)).astype(np.float32)


def published_labels():
    """The labels as publications count them, with the null class last."""
    return torch.from_numpy(np.where(LABELS < 0, CLASSES, LABELS)).long()


def saved(model, tmp_path):
    """A training checkpoint as the publishers save it, with the network's average in "ema"."""
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters())
    content = {
        "model": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "ema": state,
        "opt": optimizer.state_dict(),
        "args": argparse.Namespace(model="DiT-S/2", epochs=3, cfg_scale=4.0, betas=(0.9, 0.99)),
    }
    torch.save(content, tmp_path / "0400000.pt")
    return tmp_path / "0400000.pt"


def ours(params, size, side, patch, times, time_scale=1000.0):
    """The output of our network of these parameters."""
    shape = (side, side, CHANNELS)
    network = dit(shape, CLASSES, size=size, patch_size=patch, time_scale=time_scale)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    apply = jax.jit(network.apply)
    return apply(params, images(side), times, times, {"label": jnp.asarray(LABELS)})


def check_equal(output, reference):
    reference = from_torch(reference)
    difference = np.abs(output - reference).max()
    print(f"max abs difference {difference:.1e}, output std {reference.std():.2f}")
    assert reference.std() > 0.5
    assert difference < 1e-4


@pytest.mark.parametrize("variance", [False, True], ids=["", "variance"])
@pytest.mark.parametrize(("size", "side", "patch"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_dit_from_its_training_checkpoint(size, side, patch, dtype, variance, tmp_path):
    model = DiT(side, **SHARED, patch=patch, size=SIZES[size], variance=variance)
    path = saved(randomize(model, seed=0), tmp_path)
    tree, sizes, positions = read_meta(read_tensors(path, "ema"), path)
    table = position_table(sizes.side, sizes.side, sizes.width)
    np.testing.assert_allclose(positions, table, atol=1e-7)
    with torch.no_grad():
        time = torch.from_numpy(TIMES * np.float32(1000.0)).to(dtype)
        reference = model.to(dtype)(to_torch(images(side), dtype), time, published_labels())
    check_equal(ours(tree, size, side, patch, TIMES), reference)


def test_sit_runs_backwards(tmp_path):
    model = randomize(DiT(8, **SHARED, patch=2, size=SIZES["nano"], variance=True), seed=3)
    path = saved(model, tmp_path)
    tree = reverse_time(read_meta(read_tensors(path, "ema"), path).tree, time_scale=1.0)
    with torch.no_grad():
        time = torch.from_numpy(1.0 - TIMES)  # from noise, 0, to data, 1
        reference = -model(to_torch(images(8)), time, published_labels())
    check_equal(ours(tree, "nano", 8, 2, TIMES, time_scale=1.0), reference)


def test_dit_of_diffusers():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by `make parity`")
    size = SIZES["nano"]
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.width // size.heads,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=size.depth,
        sample_size=8,
        num_embeds_ada_norm=CLASSES,
    ).eval()
    randomize(model, seed=4)
    embedder = torch.Generator().manual_seed(5)
    first = model.transformer_blocks[0].norm1.emb
    with torch.no_grad():
        first.class_embedder.embedding_table.weight.normal_(generator=embedder)
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(first.state_dict())
            # Published weights were trained with these frequencies (diffusers_dit.py).
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    tree = read_diffusers(tensors, "diffusion_pytorch_model.safetensors").tree
    with torch.no_grad():
        time = torch.from_numpy(TIMES * np.float32(1000.0))
        output = model(to_torch(images(8)), time, published_labels()).sample[:, :CHANNELS]
    check_equal(ours(tree, "nano", 8, 2, TIMES), output)
