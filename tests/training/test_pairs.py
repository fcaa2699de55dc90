import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.data.spaces.pixels import pixel_space
from fewstep.training import pairs as module
from fewstep.training.generate import initial_noise
from fewstep.training.pairs import FILE, teacher_pairs
from fewstep.training.sharding import make_mesh
from tests.training.runs import small_experiment


def make_pairs(folder, count=12, steps=2, scale=1.0, params=1.0, shape=None, counts=(1,) * 10):
    _, taught = small_experiment("flow_matching")
    taught = taught._replace(space=pixel_space(shape) if shape else taught.space)

    # x_0 = eps 2 / 4 (1 + label): a sampler that tells its noise, label and number of steps.
    def sample(params, eps, condition, keys, *, steps, guidance_scale):
        assert len(eps) == jax.device_count()  # the batch_size, whatever their number
        label = condition["label"].reshape(-1, 1, 1, 1)
        return params * eps * steps * guidance_scale / 4.0 * (1.0 + label)

    taught = taught._replace(objective=taught.objective._replace(sample=sample))
    return teacher_pairs(
        folder,
        taught,
        jnp.float32(params),
        make_mesh(),
        count=count,
        steps=steps,
        guidance_scale=scale,
        batch_size=jax.device_count(),
        label_counts=counts,
    )


def test_pairs_are_the_noise_and_what_the_sampler_makes_of_it(tmp_path):
    pairs = make_pairs(tmp_path)
    np.testing.assert_array_equal(pairs.label, np.arange(12) % 10)
    scale = 0.5 * (1.0 + pairs.label).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(pairs.x_0, pairs.eps * scale, rtol=1e-6)
    assert pairs.eps.std() == pytest.approx(1.0, abs=0.1)
    # A generator is not trained on the noise it is evaluated on.
    evaluated, _ = initial_noise(0, np.arange(12), pairs.eps.shape[1:])
    assert not np.isin(pairs.eps, evaluated).any()
    assert pairs.x_0.dtype == pairs.eps.dtype == np.float32


@pytest.mark.parametrize(("steps", "scale"), [(2, 1.5), (3, 1.0)])
def test_steps_and_guidance_are_those_that_are_asked_for(tmp_path, steps, scale):
    pairs = make_pairs(tmp_path, steps=steps, scale=scale)
    factor = 0.25 * steps * scale * (1.0 + pairs.label).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(pairs.x_0, pairs.eps * factor, rtol=1e-6)


def test_labels_of_pairs_have_the_shares_that_are_asked_for(tmp_path):
    counts = (9, *(0,) * 8, 3)
    assert np.bincount(make_pairs(tmp_path, counts=counts).label).tolist() == [9, *(0,) * 8, 3]
    with pytest.raises(ValueError, match="labels that differ from data.label_shares"):
        make_pairs(tmp_path)


def test_pairs_are_made_once(tmp_path, monkeypatch):
    made = make_pairs(tmp_path)
    monkeypatch.setattr(module, "generate", None)
    for again, first in zip(make_pairs(tmp_path), made, strict=True):
        np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"count": 13}, r"pairs.count \(12 there, 13 here\)"),
        ({"steps": 3}, r"pairs.steps \(2 there, 3 here\)"),
        ({"scale": 2.0}, r"guidance_scale \(1.0 there, 2.0 here\)"),
        ({"params": 1.5}, r"parameters \(\d+ there, \d+ here\)"),
        ({"shape": (4, 4, 1)}, r"image_shape \(.*\[4, 4, 1\] here\)"),
    ],
)
def test_pairs_of_something_else_are_refused(tmp_path, other, message):
    make_pairs(tmp_path)
    with pytest.raises(ValueError, match=f"{FILE} was made from .*{message}.* delete it"):
        make_pairs(tmp_path, **other)


def remove_seal(folder, **changes):
    """Write a folder's pairs as an older version did, with changes; returns the old arrays."""
    with np.load(folder / FILE) as file:
        arrays = {name: file[name] for name in file.files if name != "seal"}
    np.savez(folder / FILE, **{**arrays, **changes})
    return arrays


def test_pairs_without_a_seal_are_read_with_a_warning(tmp_path, capsys):
    made = make_pairs(tmp_path)
    remove_seal(tmp_path)
    for again, first in zip(make_pairs(tmp_path), made, strict=True):
        np.testing.assert_array_equal(again, first)
    make_pairs(tmp_path)
    assert capsys.readouterr().err.count(f"warning: {tmp_path} has a file without a seal") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_0": np.zeros((12, 4, 4, 1), np.float32)}, r"x_0 is float32 \[12, 4, 4, 1\]"),
        ({"eps": np.zeros((12, 8, 8, 1))}, "eps is float64"),
        ({"x_0": np.full((12, 8, 8, 1), np.nan, np.float32)}, "x_0 has values .* not finite"),
        ({"label": np.full(12, 10, np.int32)}, "has labels that differ"),
        ({"label": np.int32(1)}, "label is int32"),
        ({"label": np.zeros(13, np.int32)}, "has 13 pairs, not pairs.count=12"),
        ({"more": np.zeros(1)}, "which are not pairs"),
    ],
)
def test_pairs_of_another_kind_are_refused(tmp_path, change, message):
    make_pairs(tmp_path)
    remove_seal(tmp_path, **change)
    with pytest.raises(ValueError, match=f"{FILE}.*{message}.*; delete it"):
        make_pairs(tmp_path)


def test_pairs_that_cannot_be_used_are_errors(tmp_path):
    make_pairs(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2]):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read .*; delete it"):
            make_pairs(tmp_path)
    with pytest.raises(ValueError, match="pairs.count=0"):
        make_pairs(tmp_path / "empty", count=0)
