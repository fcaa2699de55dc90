"""The parameters of a codec are those that lie at their place now."""

import jax
import pytest

from fewstep.files import write_npz
from fewstep.latents.linear import linear_codec
from fewstep.training.codec_weights import load_codec
from fewstep.weights.layouts.names import flatten
from tests.training.runs import perturb, small_config


def write_codec(file, seed):
    params = linear_codec((8, 8, 1)).init(jax.random.key(0))
    write_npz(file, **flatten(perturb(jax.device_get(params), seed=seed)))


@pytest.fixture
def config(tmp_path):
    fields = {"codec.name": "linear", "codec.weights": str(tmp_path / "codec.npz")}
    return small_config("flow_matching", **fields, **{"data.dir": str(tmp_path)})


def test_a_file_that_is_written_anew_is_another_codec(config, tmp_path):
    known = []
    for seed in (1, 2):
        write_codec(tmp_path / "codec.npz", seed)
        known.append(load_codec(config))
        assert load_codec(config) is known[-1]  # read once
    assert known[0].fingerprint != known[1].fingerprint
    config.codec.fingerprint = known[1].fingerprint
    assert load_codec(config).fingerprint == known[1].fingerprint
    (tmp_path / "codec.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"codec.weights=.*codec.npz does not exist"):
        load_codec(config)
