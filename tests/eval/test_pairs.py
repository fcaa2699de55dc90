import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.generate import noise
from eval.pairs import FILE, teacher_pairs
from tests.training.runs import small_experiment
from training.sharding import make_mesh


def pairs_in(folder, count=12, steps=2, guidance_scale=1.0):
    _, taught = small_experiment("flow_matching")

    # x_0 = eps 2 / 4 (1 + label): a sampler that tells its noise, label and number of steps.
    def sample(params, eps, condition, keys, *, steps, guidance_scale):
        assert len(eps) == jax.device_count()  # the batch_size, whatever their number
        label = condition["label"].reshape(-1, 1, 1, 1)
        return params * eps * steps * guidance_scale / 4.0 * (1.0 + label)

    taught = taught._replace(objective=taught.objective._replace(sample=sample))
    return teacher_pairs(
        folder,
        taught,
        jnp.float32(1.0),
        make_mesh(),
        count=count,
        steps=steps,
        guidance_scale=guidance_scale,
        batch_size=jax.device_count(),
    )


def test_pairs_are_the_noise_and_what_the_sampler_makes_of_it(tmp_path):
    pairs = pairs_in(tmp_path)
    np.testing.assert_array_equal(pairs.label, np.arange(12) % 10)
    scale = 0.5 * (1.0 + pairs.label).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(pairs.x_0, pairs.eps * scale, rtol=1e-6)
    assert pairs.eps.std() == pytest.approx(1.0, abs=0.1)
    # A generator is not trained on the noise it is evaluated on.
    evaluated, _ = noise(0, np.arange(12), pairs.eps.shape[1:])
    assert not np.isin(pairs.eps, evaluated).any()
    assert pairs.x_0.dtype == pairs.eps.dtype == np.float32


@pytest.mark.parametrize(("steps", "scale"), [(2, 1.5), (3, 1.0)])
def test_steps_and_guidance_are_those_that_are_asked_for(tmp_path, steps, scale):
    pairs = pairs_in(tmp_path, steps=steps, guidance_scale=scale)
    factor = 0.25 * steps * scale * (1.0 + pairs.label).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(pairs.x_0, pairs.eps * factor, rtol=1e-6)


def test_pairs_are_made_once(tmp_path):
    made = pairs_in(tmp_path)
    # Other steps would give other samples: these are read.
    for again, first in zip(pairs_in(tmp_path, steps=3), made, strict=True):
        np.testing.assert_array_equal(again, first)


def test_pairs_that_cannot_be_used_are_errors(tmp_path):
    pairs_in(tmp_path)
    with pytest.raises(ValueError, match="has 12 pairs, not pairs.count=13; delete it"):
        pairs_in(tmp_path, count=13)
    whole = (tmp_path / FILE).read_bytes()
    for damaged in (b"PK", whole[: len(whole) // 2]):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read .*; delete it"):
            pairs_in(tmp_path)
    with pytest.raises(ValueError, match="pairs.count=0"):
        pairs_in(tmp_path / "empty", count=0)
