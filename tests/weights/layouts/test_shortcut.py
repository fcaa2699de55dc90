"""Checkpoints of the code of shortcut models: a pickle of Flax parameters, against its network."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.conditioning import frequencies
from fewstep.models.dit import SIZES, dit
from fewstep.models.layers import position_table
from fewstep.modes.import_weights import import_weights
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.training.published import PUBLISHED, published_tensors, read_published
from fewstep.training.storage import restore
from fewstep.weights.layouts.dit import Sizes
from fewstep.weights.layouts.names import nested
from fewstep.weights.layouts.shortcut import LABELS, LOG_VARIANCES, shortcut_layout

NANO = SIZES["nano"]
SIDE, PATCH, CHANNELS, CLASSES = 8, 2, 3, 5
PART = "train_state/params"


def random_tensors(classes=CLASSES, seed=0):
    """Parameters by their names, of every entry normal but the log-variances, which stay zero."""
    sizes = Sizes(NANO.width, NANO.depth, PATCH, CHANNELS, classes)
    rng, tensors = np.random.default_rng(seed), {}
    for name, place in shortcut_layout(sizes).items():
        fan_in = np.prod(place.shape[:-1]) if name.endswith("kernel") else 1.0 / 0.3**2
        draw = rng.standard_normal(place.shape) / np.sqrt(fan_in)
        tensors[name] = np.float32(0.0 if name == LOG_VARIANCES else 1.0) * draw.astype(np.float32)
    return tensors


def saved(folder, tensors, protocol=4):
    """A checkpoint as the code saves it; other parts of it are not networks."""
    params = nested(tensors)
    state = {
        "params": params,
        "params_ema": jax.tree.map(np.zeros_like, params),
        "opt_state": ((np.zeros(3, np.int32), {"mu": params}),),
        "step": np.array(7),
    }
    content = {"train_state": state, "_timestamp": 1.7e9}
    path = folder / "celeba"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def their_network(p, x, t, level, label):
    """Their network in words of our own, one example at a time: its velocity goes to the data.

    p: parameters by name. x: [H, W, C]. t: 0 is noise. level: -log2 of the step. label: the last
    row is the null class.
    """

    def affine(name, x):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def embed(name, value):
        angles = value * frequencies()
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])
        return affine(f"{name}/Dense_1", jax.nn.silu(affine(f"{name}/Dense_0", features)))

    def normalized(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)

    rows = SIDE // PATCH
    kernel = p["PatchEmbed_0/Conv_0/kernel"]
    patches = x.reshape(rows, PATCH, rows, PATCH, CHANNELS)
    h = jnp.einsum("ipjqc,pqcd->ijd", patches, kernel).reshape(rows**2, -1)
    h = h + p["PatchEmbed_0/Conv_0/bias"] + position_table(rows, rows, NANO.width)
    c = embed("TimestepEmbedder_0", t) + embed("TimestepEmbedder_1", level) + p[LABELS][label]
    for index in range(NANO.depth):
        name = f"DiTBlock_{index}"
        modulation = jnp.split(affine(f"{name}/Dense_0", jax.nn.silu(c)), 6)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        inside = normalized(h) * (1.0 + scale) + shift
        k, q, v = (
            affine(f"{name}/Dense_{number}", inside).reshape(rows**2, NANO.heads, -1)
            for number in (1, 2, 3)
        )
        weights = jnp.einsum("qhd,khd->hqk", q, k) / q.shape[-1]  # the channels, not their root
        mixed = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(weights, axis=-1), v)
        h = h + gate * affine(f"{name}/Dense_4", mixed.reshape(h.shape))
        inside = normalized(h) * (1.0 + scale_mlp) + shift_mlp
        hidden = jax.nn.gelu(affine(f"{name}/MlpBlock_0/Dense_0", inside), approximate=True)
        h = h + gate_mlp * affine(f"{name}/MlpBlock_0/Dense_1", hidden)
    shift, scale = jnp.split(affine("FinalLayer_0/Dense_0", jax.nn.silu(c)), 2)
    out = affine("FinalLayer_0/Dense_1", normalized(h) * (1.0 + scale) + shift)
    out = out.reshape(rows, rows, PATCH, PATCH, CHANNELS).transpose(0, 2, 1, 3, 4)
    return out.reshape(SIDE, SIDE, CHANNELS)


def compare(found, tensors, labels, null):
    """The largest difference of both networks in one evaluation."""
    shape = (SIDE, SIDE, CHANNELS)
    network = dit(
        shape,
        found.sizes.classes,
        size="nano",
        patch_size=PATCH,
        time_scale=1.0,
        second_time="step_size",
    )
    x = np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
    t = np.array([1.0, 1.0, 0.75, 0.25], np.float32)
    s = t - np.array([1.0, 0.5, 0.125, 1 / 128], np.float32)
    ours = jax.jit(network.apply)(found.params, x, t, s, {"label": labels})
    params = jax.tree.map(jnp.asarray, tensors)
    theirs = jax.vmap(lambda *row: their_network(params, *row))(
        x, 1.0 - t, -jnp.log2(t - s), jnp.where(labels < 0, null, labels)
    )
    assert theirs.std() > 0.5
    return np.abs(ours + theirs).max()


@pytest.mark.parametrize("protocol", [4, 5])
def test_it_computes_what_their_network_computes(tmp_path, protocol):
    tensors = random_tensors()
    found = read_published(saved(tmp_path, tensors, protocol), PART)
    assert found.layout == "shortcut" and found.sizes[-2] == CLASSES
    assert compare(found, tensors, jnp.array([0, 4, 2, -1]), null=CLASSES) < 3e-5


def test_a_network_of_one_class_reads_no_label(tmp_path):
    tensors = random_tensors(classes=1)
    found = read_published(saved(tmp_path, tensors), PART)
    assert found.sizes.classes == 0 and "label_table" not in found.params["conditioning"]
    assert compare(found, tensors, jnp.full(4, -1), null=1) < 3e-5


def test_the_names_come_back():
    """q is divided by 4 and multiplied by it, which is exact; the rotated time comes to 1e-6."""
    tensors = random_tensors()
    converted = PUBLISHED["shortcut"].read(tensors, "file", "a shortcut model")
    back = PUBLISHED["shortcut"].write(converted.tree, converted.sizes)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_a_checkpoint_becomes_a_run_that_goes_on(tmp_path):
    tensors, run = random_tensors(), tmp_path / "run"
    path = saved(tmp_path, tensors)
    with pytest.raises(ValueError, match="with the parts train_state/params, train_state/params_e"):
        import_weights(Request(workdir=run, weights=path))
    given = {"data.image_size": SIDE}
    import_weights(Request(workdir=run, weights=path, part=PART, fields=given))
    loaded = load_run(Request(workdir=run))
    assert loaded.config.method == "shortcut"
    assert loaded.experiment.objective.guidance_scale == 1.5
    again = published_tensors("shortcut", loaded.params, read_published(path, PART).sizes)
    for name, array in tensors.items():
        np.testing.assert_allclose(again[name], array, atol=1e-6 * np.abs(array).max())
    prints = restore.read_record(run)["fingerprints"]
    assert loaded.step == 0 and prints["target"] == prints["network"]  # its bootstrap target
