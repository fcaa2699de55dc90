import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.data.spaces.pixels import pixel_space
from fewstep.training import pairs as module
from fewstep.training.generate import initial_noise
from fewstep.training.pairs import FILE, PARTS, check_sampler, teacher_pairs
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


def test_pairs_of_every_part_have_the_noise_of_their_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 8)
    pairs = make_pairs(tmp_path, count=20)
    scale = 0.5 * (1.0 + pairs.label).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(pairs.x_0, pairs.eps * scale, rtol=1e-6)
    assert len(np.unique(pairs.eps.reshape(20, -1), axis=0)) == 20


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


@pytest.mark.parametrize("kept", [1, 2])
def test_a_killed_run_makes_only_the_rest_of_its_pairs(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(module, "PART", 8)
    whole = make_pairs(tmp_path / "whole", count=20)
    made, generate = [], module.generate

    def killed(sample, params, labels, batch_size, description, rows):
        if len(made) == kept:
            raise KeyboardInterrupt
        made.append(rows)
        return generate(sample, params, labels, batch_size, description, rows)

    monkeypatch.setattr(module, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        make_pairs(tmp_path / "run", count=20)
    assert sorted(path.name for path in (tmp_path / "run" / PARTS).iterdir()) == [
        f"{8 * part}.npz" for part in range(kept)
    ]
    # Pairs of another teacher, or sampled in another way, are refused at the first part.
    for other in ({"params": 1.5}, {"steps": 3}, {"scale": 2.0}, {"count": 21}):
        with pytest.raises(ValueError, match=r"0\.npz was made from something else.* delete it"):
            make_pairs(tmp_path / "run", **{"count": 20, **other})
    again = []
    monkeypatch.setattr(
        module, "generate", lambda *given: again.append(given[-1]) or generate(*given)
    )
    for resumed, expected in zip(make_pairs(tmp_path / "run", count=20), whole, strict=True):
        np.testing.assert_array_equal(resumed, expected)
    np.testing.assert_array_equal(np.concatenate(again), np.arange(8 * kept, 20))
    # The parts are gone, and one file has all pairs.
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]


def test_what_a_teacher_cannot_make_is_refused_before_any_compute():
    _, staged = small_experiment("progressive", **{"objective.max_steps": 2})
    shapes = jax.eval_shape(staged.model.network.init, jax.random.key(0))
    check_sampler("runs/x", staged, shapes, trained=3, steps=2, scale=1.0)
    for trained, steps, scale, message in (
        (3, 1, 1.0, "after 3 training steps this run is in stage 1 of 2 .2 sampling steps."),
        (8, 3, 1.0, "stage 2 of 2 .1 sampling step."),
        (3, 2, 2.0, "trained at guidance scale 1 only, not 2"),
    ):
        with pytest.raises(
            ValueError, match=f"pairs.steps={steps} or .*teacher=runs/x: .*{message}"
        ):
            check_sampler("runs/x", staged, shapes, trained=trained, steps=steps, scale=scale)
