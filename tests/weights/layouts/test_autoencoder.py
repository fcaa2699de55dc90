"""Files of the KL autoencoder in every family of names: recognised, read, written, refused."""

import chex
import jax
import numpy as np
import pytest

from fewstep.models.autoencoder import autoencoder
from fewstep.weights.layouts.autoencoder import (
    NAMINGS,
    Structure,
    autoencoder_layout,
    is_autoencoder,
    read_autoencoder,
    write_autoencoder,
)

SHAPE = (8, 8, 3)
# The two levels of fewest pixels have equal shapes, as in the published network.
STRUCTURE = Structure(
    widths=(4, 8, 8),
    blocks=1,
    latent_channels=2,
    quant_convolutions=True,
    attention=True,
    channels=3,
)
STRUCTURES = {
    "sd": STRUCTURE,
    "flux": STRUCTURE._replace(latent_channels=5, quant_convolutions=False),
    "plain": STRUCTURE._replace(widths=(8,), blocks=2, attention=False, channels=12),
}
EACH_STRUCTURE = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
EACH_NAMING = pytest.mark.parametrize("naming", NAMINGS)


def build(structure):
    patch_size = 2 if structure.channels == 12 else 1
    return autoencoder(SHAPE, **structure.fields, groups=4, patch_size=patch_size)


@pytest.fixture(scope="module")
def draw():
    """structure -> a tree of normal numbers in the shapes of our network."""

    def draw(structure=STRUCTURE):
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(build(structure).init, jax.random.key(0))
        return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)

    return draw


@pytest.fixture
def published(draw):
    """naming -> the tensors of a file of STRUCTURE."""
    return lambda naming="compvis": write_autoencoder(draw(), STRUCTURE, naming)


def read(tensors):
    return read_autoencoder(tensors, "vae.pt")[0]


@EACH_NAMING
@EACH_STRUCTURE
def test_our_tree_survives_every_family_of_names(structure, naming, draw):
    tree = draw(structure)
    tensors = write_autoencoder(tree, structure, naming)
    back, found = read_autoencoder(tensors, "vae.pt")
    chex.assert_trees_all_equal(back, tree)
    assert found == structure
    again = write_autoencoder(back, found, naming)
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }


PLACES = [
    ("compvis", "decoder.up.2.block.0.conv1.weight", "decoder/level_0/block_0/conv_1/kernel"),
    ("compvis", "decoder.up.0.block.0.nin_shortcut.bias", "decoder/level_2/block_0/shortcut/bias"),
    ("compvis", "decoder.up.1.upsample.conv.bias", "decoder/doubling_2/bias"),
    ("compvis", "encoder.down.0.downsample.conv.bias", "encoder/halving_1/bias"),
    ("compvis", "encoder.mid.block_2.norm1.weight", "encoder/middle/block_1/norm_1/scale"),
    ("compvis", "decoder.mid.attn_1.v.bias", "decoder/middle/attention/value/bias"),
    ("compvis", "encoder.norm_out.bias", "encoder/norm_out/bias"),
    ("compvis", "post_quant_conv.bias", "decoder/quant_conv/bias"),
    (
        "diffusers",
        "decoder.up_blocks.0.resnets.1.conv2.bias",
        "decoder/level_0/block_1/conv_2/bias",
    ),
    ("diffusers", "decoder.up_blocks.1.upsamplers.0.conv.bias", "decoder/doubling_2/bias"),
    ("diffusers", "encoder.mid_block.resnets.1.norm2.bias", "encoder/middle/block_1/norm_2/bias"),
    (
        "diffusers",
        "encoder.mid_block.attentions.0.to_out.0.bias",
        "encoder/middle/attention/output/bias",
    ),
    ("diffusers", "decoder.conv_norm_out.weight", "decoder/norm_out/scale"),
    (
        "diffusers-2022",
        "encoder.mid_block.attentions.0.key.bias",
        "encoder/middle/attention/key/bias",
    ),
]


@pytest.mark.parametrize(("naming", "name", "path"), PLACES)
def test_places_of_some_names(naming, name, path):
    assert autoencoder_layout(STRUCTURE, NAMINGS[naming])[name].path == path


def test_axes_of_the_published_arrays(published, draw):
    tensors, attention = published(), draw()["decoder"]["middle"]["attention"]
    query = tensors["decoder.mid.attn_1.q.weight"]
    assert query.shape == (8, 8, 1, 1)
    assert query[2, 5, 0, 0] == attention["query"]["kernel"][5, 2]
    kernel = draw()["encoder"]["conv_in"]["kernel"]
    assert tensors["encoder.conv_in.weight"][3, 2, 0, 1] == kernel[0, 1, 2, 3]


def test_attention_is_read_as_matrices_and_as_convolutions(published, draw):
    for naming in NAMINGS:
        tensors = published(naming)
        for name, array in tensors.items():
            if ".att" in name and array.ndim == 4:
                tensors[name] = array[:, :, 0, 0]
            elif ".att" in name and array.ndim == 2:
                tensors[name] = array[:, :, None, None]
        chex.assert_trees_all_equal(read(tensors), draw())


BESIDE = {
    name: np.zeros(3, np.float32)
    for name in (
        "model.diffusion_model.out.2.weight",
        "model_ema.decay",
        "cond_stage_model.transformer.weight",
        "conditioner.embedders.0.transformer.weight",
        "text_encoders.clip_l.transformer.weight",
        "denoiser.sigmas",
        "betas",
        "alphas_cumprod_prev",
        "sqrt_recip_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "posterior_mean_coef1",
        "logvar",
        "lvlb_weights",
        "scale_factor",
    )
}


def test_the_autoencoder_is_found_in_a_whole_stable_diffusion(published, draw):
    inside = {f"first_stage_model.{name}": array for name, array in published().items()}
    inside["first_stage_model.loss.logvar"] = np.zeros(1, np.float32)
    chex.assert_trees_all_equal(read(inside | BESIDE), draw())
    with pytest.raises(ValueError, match="1 unknown, such as surprise"):
        read(inside | BESIDE | {"surprise": np.zeros(3)})


def test_losses_and_wrappers_are_left_out(published, draw):
    tensors = published() | {"loss.perceptual_loss.lin0.weight": np.zeros(3)}
    wrapped = {f"module.{name}": array for name, array in tensors.items()}
    chex.assert_trees_all_equal(read(wrapped), draw())


def test_other_files_are_not_recognised():
    for tensors in ({}, BESIDE, {"0.weight": np.zeros(3), "encoder.0.weight": np.zeros(3)}):
        assert not is_autoencoder(tensors)
        with pytest.raises(ValueError, match="vae.pt does not hold a KL autoencoder"):
            read(tensors)


@EACH_NAMING
def test_missing_and_surplus_names_are_said(naming, published):
    tensors = published(naming)
    assert is_autoencoder(tensors)
    for name in tensors:
        fewer = {other: array for other, array in tensors.items() if other != name}
        with pytest.raises(ValueError, match=rf"vae\.pt .*{name}"):
            read(fewer)
    with pytest.raises(ValueError, match="1 unknown, such as decoder.extra"):
        read(tensors | {"decoder.extra": np.zeros(3)})
    without_decoder = {k: v for k, v in tensors.items() if not k.startswith("decoder.")}
    with pytest.raises(ValueError, match="decoder.* missing"):
        read(without_decoder)


def exchanged(tensors, first, second):
    """The tensors with the names below two prefixes exchanged."""
    names = {first: second, second: first}
    return {
        next((names[p] + name.removeprefix(p) for p in names if name.startswith(p)), name): array
        for name, array in tensors.items()
    }


def test_levels_of_other_widths_cannot_be_exchanged(published):
    with pytest.raises(ValueError, match="vae.pt .*(missing|another shape)"):
        read(exchanged(published(), "decoder.up.0.block", "decoder.up.2.block"))


def test_levels_of_equal_shapes_change_the_picture_if_they_are_exchanged(published):
    """No check can notice that, so their order counts."""
    right, wrong = (
        read(tensors)
        for tensors in (
            published(),
            exchanged(published(), "decoder.up.1.block", "decoder.up.2.block"),
        )
    )
    codec = build(STRUCTURE)
    decode, latents = jax.jit(codec.decode), np.ones((1, *codec.latent_shape), np.float32)
    difference = np.abs(decode(right, latents) - decode(wrong, latents)).max()
    assert difference > 0.1 * np.std(decode(right, latents))


def test_a_tree_of_another_structure_is_not_written(draw):
    with pytest.raises(ValueError, match="the tree lacks .*quant_conv"):
        write_autoencoder(
            draw(STRUCTURES["flux"]), STRUCTURE._replace(latent_channels=5), "compvis"
        )
