import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.objectives.base import Objective
from fewstep.training.generate import batch_sampler, finish_together, generate
from fewstep.training.report import NonFiniteError
from fewstep.training.sharding import make_mesh

SHAPE = (2, 3, 1)


def echo(params, eps, condition, keys, *, steps, guidance_scale):
    """Samples whose values show the noise, the key, the label and the settings."""
    own = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys)
    label = condition["label"].astype(jnp.float32).reshape(-1, 1, 1, 1)
    return params * (0.1 * (eps - own) + 0.05 * label + 0.01 * steps * guidance_scale)


OBJECTIVE = Objective(players={}, followers={}, sample=echo)
LABELS = np.resize([2, 0, 5], 20).astype(np.int32)


def images(count=20, batch_size=8, seed=0, params=1.0, labels=LABELS):
    sample = batch_sampler(OBJECTIVE, SHAPE, make_mesh(), seed=seed, steps=2, guidance_scale=1.5)
    return np.concatenate([*generate(sample, jnp.float32(params), labels[:count], batch_size)])


def test_a_sample_depends_on_its_seed_index_and_label_alone():
    np.testing.assert_array_equal(images(batch_size=8), images(batch_size=16))
    np.testing.assert_array_equal(images()[:5], images(count=5))
    assert (images(seed=1) != images()).mean() > 0.8
    other = LABELS.copy()
    other[3] += 1
    changed = (images(labels=other) != images()).reshape(20, -1).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), [3])


def test_every_sample_has_its_own_noise():
    assert len(np.unique(images(labels=np.zeros(20, int)).reshape(20, -1), axis=0)) == 20


def test_labels_cycle():
    np.testing.assert_array_equal(LABELS[:7], [2, 0, 5, 2, 0, 5, 2])


def test_samples_of_chosen_indices():
    sample = batch_sampler(OBJECTIVE, SHAPE, make_mesh(), seed=0, steps=2, guidance_scale=1.5)
    chosen = np.array([11, 3, 17])
    picked = generate(sample, jnp.float32(1.0), LABELS[chosen], 8, indices=chosen)
    np.testing.assert_array_equal(np.concatenate([*picked]), images()[chosen])


def test_samples_that_are_not_finite_are_counted_and_refused():
    def broken(params, eps, condition, *_, **__):
        return jnp.where(condition["label"].reshape(-1, 1, 1, 1) == 5, jnp.inf, eps)

    objective = OBJECTIVE._replace(sample=broken)
    sample = batch_sampler(objective, SHAPE, make_mesh(), seed=0, steps=1, guidance_scale=1.0)
    with pytest.raises(NonFiniteError, match="6 of 20 samples are not finite"):
        list(generate(sample, None, LABELS, 8))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_processes_finish_parts_of_a_batch(monkeypatch, count):
    samples, finished, parts = np.arange(10.0).reshape(5, 2), [], {}

    def finish(rows):
        finished.append(len(rows))
        return (rows + 1).astype(np.uint8)

    monkeypatch.setattr(jax, "process_count", lambda: count)
    gather = "fewstep.training.generate.multihost_utils.process_allgather"
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(gather, lambda own, tiled, index=index: parts.setdefault(index, own))
        alone = finish_together(finish, samples)
    assert max(finished) == -(-5 // count)
    monkeypatch.setattr(gather, lambda own, tiled: np.concatenate([parts[i] for i in range(count)]))
    together = finish_together(finish, samples) if count > 1 else alone
    np.testing.assert_array_equal(together, samples + 1)
