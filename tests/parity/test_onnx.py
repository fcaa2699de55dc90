"""Exported graphs in ONNX Runtime: samples are ours, for any number of rows."""

from pathlib import Path

import jax
import numpy as np
import pytest

from fewstep.files import write_npz
from fewstep.models.codecs import CODECS, NamedCodec
from fewstep.models.tiny_autoencoder import tiny_autoencoder
from fewstep.modes.export import export
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.training.codec_weights import load_codec
from fewstep.training.codecs import network_codec
from fewstep.weights.layouts.names import flatten
from tests.published import random_params
from tests.training.runs import save_run

pytest.importorskip("jax2onnx", reason="jax2onnx is in requirements-export.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in requirements-export.txt")

pytestmark = pytest.mark.parity

TINY = NamedCodec(tiny_autoencoder, {"width": 8, "blocks": (1, 2)}, "sd")


def compare(folder, method, steps, guidance=1.0, **fields):
    """The largest difference over batches of 3 and 1, relative to the deviation of samples."""
    workdir, out = Path(save_run(folder / "run", method, **fields)), folder / "out"
    asked = {"evaluate.steps": (steps,), "evaluate.guidance_scale": guidance}
    export(Request(workdir=workdir, out=out, format="onnx", fields=asked))
    run, options = load_run(Request(workdir=workdir)), onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(out / "sampler.onnx"), options)
    objective, config = run.experiment.objective, run.config

    def sample(params, noise, labels, draws):
        condition = {"label": labels}
        return objective.sample(
            params, noise, condition, draws, steps=steps, guidance_scale=guidance
        )

    worst = 0.0
    for rows in (3, 1):
        shape = (rows, *run.experiment.space.shape)
        noise = np.random.default_rng(rows).standard_normal(shape).astype(np.float32)
        labels = np.array([4, 0, -1], np.int32)[:rows]
        draws = np.random.default_rng(9).standard_normal((steps, *shape)).astype(np.float32)
        expected = jax.jit(sample)(run.params, noise, labels, draws)
        if config.codec.name:
            expected = network_codec(config).decode(load_codec(config).params, expected)
        given = {"noise": noise, "labels": labels, "draws": draws}
        (found,) = session.run(None, {each.name: given[each.name] for each in session.get_inputs()})
        worst = max(worst, np.abs(found - expected).max() / expected.std())
    print(f"relative difference {worst:.1e}")
    return worst


UNLABELLED = {"data.num_classes": 0, "objective.label_dropout": 0.0}


@pytest.mark.parametrize(
    ("method", "steps", "guidance", "fields", "tolerance"),
    [
        ("shortcut", 2, 1.0, {}, 1e-5),
        ("flow_matching", 3, 2.0, {"model.scan": True}, 1e-5),
        ("flow_matching", 1, 1.0, UNLABELLED, 1e-5),
        ("sim_flow", 1, 1.0, {}, 1e-5),
        ("ect", 1, 1.0, {"model.attention": "chunked"}, 1e-5),
        ("ect", 2, 1.0, {}, 1e-5),  # draws noise between its steps
        # Its clock is a logarithm, rounded otherwise there, times a time_scale of 1000.
        ("edm", 2, 1.0, {}, 2e-4),
    ],
)
def test_samples_are_ours(tmp_path, method, steps, guidance, fields, tolerance):
    assert compare(tmp_path, method, steps, guidance, **fields) < tolerance


def test_pictures_of_latents_are_ours(tmp_path, monkeypatch):
    monkeypatch.setitem(CODECS, "taesd", TINY)
    params = random_params(TINY.build((16, 16, 3), **TINY.fields))
    write_npz(tmp_path / "codec.npz", **flatten(params))
    fields = {"codec.name": "taesd", "codec.weights": str(tmp_path / "codec.npz")}
    fields |= {"data.image_size": 16, "data.channels": 3}
    assert compare(tmp_path, "shortcut", 1, **fields) < 1e-5
