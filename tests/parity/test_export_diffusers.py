"""Exported folders in diffusers, by the code of their card: samples are ours.

Without the line of the card that sets the frequencies of the time, samples are others.
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from fewstep.files import write_npz
from fewstep.models.autoencoder import autoencoder
from fewstep.models.codecs import CODECS, NamedCodec
from fewstep.models.tiny_autoencoder import tiny_autoencoder
from fewstep.modes.export import CARD, export
from fewstep.modes.recorded_run import load_run
from fewstep.modes.request import Request
from fewstep.training.codec_weights import load_codec
from fewstep.training.codecs import network_codec
from fewstep.weights.layouts.names import flatten
from tests.parity.transcription import from_torch, to_torch, torch
from tests.published import random_params
from tests.training.runs import save_run

pytest.importorskip("diffusers", reason="diffusers is installed by `make parity`")

pytestmark = pytest.mark.parity

DISCRETE = {"path.name": "vp_discrete", "objective.solver.name": "ddim"}
RUNS = {
    "flow": ("flow_matching", {}),
    "sit": ("flow_matching", {"model.time_scale": 1.0, "objective.solver.name": "ddim"}),
    "eps": ("ddpm", {**DISCRETE, "prediction.kind": "eps"}),
    "v": ("ddpm", {**DISCRETE, "prediction.kind": "v"}),
}
TINY = NamedCodec(tiny_autoencoder, {"width": 8, "blocks": (1, 2)}, "sd")
KL = NamedCodec(autoencoder, {"widths": (16, 32), "blocks": 1, "groups": 8}, "sd")
LABELS = np.array([0, 7, 9, 3], np.int32)


def noise_for(run):
    shape = run.experiment.space.shape
    return np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)


def ours(run, steps, guidance):
    """Our samples as pictures, not cut."""
    objective, config = run.experiment.objective, run.config

    def sample(params, noise, labels):
        condition = {"label": labels}
        return objective.sample(
            params, noise, condition, None, steps=steps, guidance_scale=guidance
        )

    x = jax.jit(sample)(run.params, noise_for(run), LABELS)
    return network_codec(config).decode(load_codec(config).params, x) if config.codec.name else x


def theirs(out, run, steps, guidance, change=lambda code: code):
    """The samples of the code in the card."""
    (code,) = re.findall(r"```python\n(.*?)```", (out / CARD).read_text(), re.S)
    scope = {}
    exec(change(code.replace('FOLDER = "."', f"FOLDER = {str(out)!r}")), scope)
    labels = torch.from_numpy(LABELS).long()
    return from_torch(scope["sample"](to_torch(noise_for(run)), labels, steps, guidance))


def exported(tmp_path, method, **fields):
    run = Path(save_run(tmp_path / "run", method, **fields))
    out = tmp_path / "out"
    export(Request(workdir=run, out=out, format="diffusers"))
    return load_run(Request(workdir=run)), out


def relative_difference(found, expected):
    difference = np.abs(found - expected).max() / expected.std()
    print(f"relative difference {difference:.1e}, std {expected.std():.2f}")
    return difference


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_are_ours(tmp_path, name, guidance):
    method, fields = RUNS[name]
    run, out = exported(tmp_path, method, **fields)
    expected = ours(run, 10, guidance)
    assert relative_difference(theirs(out, run, 10, guidance), expected) < 2e-5


def test_without_the_frequencies_samples_are_others(tmp_path):
    run, out = exported(tmp_path, "flow_matching")

    def without(code):
        assert "downscale_freq_shift = 0" in code
        return code.replace("downscale_freq_shift = 0", "downscale_freq_shift = 1")

    expected = ours(run, 10, 1.0)
    assert relative_difference(theirs(out, run, 10, 1.0, without), expected) > 1e-3


@pytest.mark.parametrize(("name", "codec"), [("taesd", TINY), ("sd", KL)])
def test_pictures_of_latents_are_ours(tmp_path, monkeypatch, name, codec):
    monkeypatch.setitem(CODECS, name, codec)
    params = random_params(codec.build((16, 16, 3), **codec.fields))
    write_npz(tmp_path / "codec.npz", **flatten(params))
    fields = {"codec.name": name, "codec.weights": str(tmp_path / "codec.npz")}
    fields |= {"codec.scale": (0.5, 1.0, 2.0, 1.5), "codec.shift": (0.1, 0.0, -0.3, 0.2)}
    run, out = exported(
        tmp_path, "flow_matching", **fields, **{"data.image_size": 16, "data.channels": 3}
    )
    assert relative_difference(theirs(out, run, 4, 1.0), ours(run, 4, 1.0)) < 5e-5
