"""Our autoencoders against diffusers', on random weights that differ between all levels.

The reference runs in float32 and in float64. Files go both ways: diffusers' into our tree, and ours
in every family of names into diffusers, by diffusers' own converters.
"""

import jax
import numpy as np
import pytest

from fewstep.models.autoencoder import autoencoder
from fewstep.models.codecs import CODECS
from fewstep.models.tiny_autoencoder import tiny_autoencoder
from fewstep.weights.layouts.autoencoder import (
    DIFFUSERS,
    autoencoder_layout,
    find_structure,
    read_autoencoder,
    write_autoencoder,
)
from fewstep.weights.layouts.tiny_autoencoder import (
    find_tiny_structure,
    read_tiny_autoencoder,
    tiny_layout,
    write_tiny_autoencoder,
)
from fewstep.weights.tensors import read_tensors

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")
diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by `make parity`")

pytestmark = pytest.mark.parity

FIELDS = {
    "widths": (128, 256, 512, 512),
    "blocks": 2,
    "latent_channels": 4,
    "groups": 32,
    "quant_convolutions": True,
    "attention": True,
}
BATCH = 3
TOLERANCE = 2e-5  # of the standard deviation of the reference
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Case:
    """A network with other numbers: an image's shape, our fields, and diffusers'."""

    def __init__(self, shape, fields, **others):
        self.shape, self.fields = shape, fields
        widths = fields["widths"]
        self.reference = {
            "in_channels": shape[-1],
            "out_channels": shape[-1],
            "down_block_types": ("DownEncoderBlock2D",) * len(widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(widths),
            "block_out_channels": widths,
            "layers_per_block": fields["blocks"],
            "latent_channels": fields["latent_channels"],
            "norm_num_groups": fields["groups"],
            **others,
        }

    def build(self, seed=0):
        return randomize(diffusers.AutoencoderKL(**self.reference), seed)


SD = Case((32, 32, 3), {"widths": (16, 24, 32, 32), "blocks": 2, "latent_channels": 4, "groups": 8})
FLUX = Case(
    (16, 24, 1),
    {"widths": (8, 16), "blocks": 1, "latent_channels": 16, "groups": 4}
    | {"quant_convolutions": False},
    use_quant_conv=False,
    use_post_quant_conv=False,
)
PLAIN = Case(
    (12, 8, 3),
    {"widths": (8, 12, 16), "blocks": 1, "latent_channels": 2, "groups": 4, "attention": False},
    mid_block_add_attention=False,
)
EACH_CASE = pytest.mark.parametrize("case", [SD, FLUX, PLAIN], ids=["sd", "flux", "plain"])


def randomize(model, seed):
    """Weights over the root of their fan-in, scales around 1, biases of deviation 0.3."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                noise = noise / parameter[0].numel() ** 0.5
            else:
                noise = 0.3 * noise + ("norm" in name and name.endswith("weight"))
            parameter.copy_(noise)
    return model.eval()


def arrays(model):
    return {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}


def as_torch(array, dtype=torch.float32):
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2).to(dtype)


def as_numpy(tensor):
    return tensor.detach().double().permute(0, 2, 3, 1).numpy()


def draw(codec):
    """Images and latents."""
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (BATCH, *codec.shape)).astype(np.float32)
    return images, rng.standard_normal((BATCH, *codec.latent_shape)).astype(np.float32)


def check(name, ours, reference):
    """Fails unless arrays agree to TOLERANCE; prints the difference."""
    difference, deviation = np.abs(ours - reference).max(), reference.std()
    print(f"{name}: max difference {difference:.1e}, relative {difference / deviation:.1e}")
    assert deviation > 0.01
    assert difference < TOLERANCE * deviation


def check_shapes(codec, params):
    shapes = jax.eval_shape(codec.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)


@EACH_CASE
@PRECISIONS
def test_equal_to_the_published_autoencoder(case, dtype):
    model = case.build()
    params, structure = read_autoencoder(arrays(model), "a file")
    assert structure.fields.items() | {("groups", case.fields["groups"])} >= case.fields.items()
    codec = autoencoder(case.shape, **structure.fields, groups=case.fields["groups"])
    check_shapes(codec, params)
    images, latents = draw(codec)
    moments, decoded = jax.jit(codec.encode)(params, images), jax.jit(codec.decode)(params, latents)
    model = model.to(dtype)
    with torch.no_grad():
        posterior = model.encode(as_torch(images, dtype)).latent_dist
        expected = model.decode(as_torch(latents, dtype)).sample
    check("mean", moments.mean, as_numpy(posterior.mean))
    check("std", moments.std, as_numpy(posterior.std))
    check("decoded", decoded, as_numpy(expected))


@EACH_CASE
def test_diffusers_reads_the_files_that_we_write(case, tmp_path):
    """In every family of names, through diffusers' own converters; also as its own file to us."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    model = case.build()
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tree, structure = read_autoencoder(read_tensors(file), file)
    file.unlink()

    old = tensors(write_autoencoder(tree, structure, "diffusers-2022"))
    torch.save(old, tmp_path / "diffusion_pytorch_model.bin")
    loaded = diffusers.AutoencoderKL.from_pretrained(
        tmp_path, use_safetensors=False, low_cpu_mem_usage=False
    )
    assert_equal(loaded, model)

    published = tensors(write_autoencoder(tree, structure, "compvis"))
    converted = convert_ldm_vae_checkpoint(published, case.reference)
    loaded = diffusers.AutoencoderKL(**case.reference)
    loaded.load_state_dict(converted)
    assert_equal(loaded, model)


def tensors(named):
    return {name: torch.from_numpy(np.array(array)) for name, array in named.items()}


def assert_equal(loaded, model):
    """Fails unless two models have the same tensors."""
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_real_size_has_the_published_numbers():
    codec = CODECS["sd"].build((256, 256, 3))
    shapes = jax.eval_shape(codec.init, jax.random.key(0))
    assert codec.latent_shape == (32, 32, 4)
    assert len(jax.tree.leaves(shapes)) == 248
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 83_653_863
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["encoder"])) == 34_163_664
    with torch.device("meta"):
        reference = Case(codec.shape, FIELDS).reference
        model = diffusers.AutoencoderKL(**reference)
    zeros, published = broadcast_zeros(model)
    structure = find_structure(zeros, DIFFUSERS, "a file")
    assert structure.fields.items() <= FIELDS.items()
    layout = autoencoder_layout(structure, DIFFUSERS)
    assert {name: place.shape for name, place in layout.items()} == published


def broadcast_zeros(model):
    """Arrays of one zero in the shapes of a model's tensors, and these shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}, shapes


TINY = {"width": 8, "blocks": (1, 2, 3), "latent_channels": 4}


def build_tiny(seed=0):
    levels = len(TINY["blocks"])
    return randomize(
        diffusers.AutoencoderTiny(
            encoder_block_out_channels=(TINY["width"],) * levels,
            decoder_block_out_channels=(TINY["width"],) * levels,
            num_encoder_blocks=TINY["blocks"],
            num_decoder_blocks=TINY["blocks"][::-1],
            latent_channels=TINY["latent_channels"],
        ),
        seed,
    )


@PRECISIONS
def test_equal_to_the_published_tiny_autoencoder(dtype):
    model = build_tiny()
    params, structure = read_tiny_autoencoder(arrays(model), "a file")
    assert structure.fields == TINY
    codec = tiny_autoencoder((24, 16, 3), **structure.fields)
    check_shapes(codec, params)
    images, latents = draw(codec)
    moments = jax.jit(codec.encode)(params, images)
    decoded = jax.jit(codec.decode)(params, 3 * latents)  # where tanh saturates
    model = model.to(dtype)
    with torch.no_grad():
        encoded = model.encode(as_torch(images, dtype)).latents
        expected = model.decode(as_torch(3 * latents, dtype)).sample
    check("latents", moments.mean, as_numpy(encoded))
    assert not np.any(moments.std)
    check("decoded", decoded, as_numpy(expected))


def test_diffusers_reads_the_tiny_files_that_we_write():
    model = build_tiny()
    tree, structure = read_tiny_autoencoder(arrays(model), "a file")
    loaded = build_tiny(seed=1)
    loaded.load_state_dict(tensors(write_tiny_autoencoder(tree, structure, "diffusers")))
    assert_equal(loaded, model)


def test_the_real_tiny_size_has_the_published_numbers():
    shapes = jax.eval_shape(CODECS["taesd"].build((256, 256, 3)).init, jax.random.key(0))
    counts = {
        half: sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes[half])) for half in shapes
    }
    assert counts == {"encoder": 1_222_532, "decoder": 1_222_531}
    with torch.device("meta"):
        model = diffusers.AutoencoderTiny()
    zeros, published = broadcast_zeros(model)
    structure = find_tiny_structure(zeros, "diffusers", "a file")
    assert structure.fields == {"width": 64, "blocks": (1, 3, 3, 3), "latent_channels": 4}
    layout = tiny_layout(structure, "diffusers")
    assert {name: place.shape for name, place in layout.items()} == published
