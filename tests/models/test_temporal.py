"""Temporal Fourier layers against numpy's transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.models.dit import dit
from fewstep.models.temporal import TemporalFourier

KEY = jax.random.key(0)


@pytest.mark.parametrize(("times", "modes"), [(4, 2), (4, 3), (5, 2), (2, 2), (3, 1)])
def test_it_is_a_product_with_the_lowest_modes_in_each_trajectory(times, modes):
    layer = TemporalFourier(times, modes)
    u = jax.random.normal(KEY, (2 * times, 3, 6))
    params = layer.init(KEY, u)["params"]
    np.testing.assert_array_equal(layer.apply({"params": params}, u), u)  # the identity at first
    matrices = jax.random.normal(jax.random.key(1), params["modes"].shape)
    found = layer.apply({"params": {"modes": matrices}}, u)
    kept = np.asarray(matrices[0] + 1j * matrices[1])
    for own, made in zip(np.split(u, 2), np.split(found, 2), strict=True):
        spectrum = np.fft.rfft(own, axis=0)
        mixed = np.zeros_like(spectrum)
        for m in range(len(kept)):
            mixed[m] = spectrum[m] @ kept[m]
        change = np.fft.irfft(mixed, n=times, axis=0)
        np.testing.assert_allclose(made, own + jax.nn.gelu(jnp.asarray(change)), atol=1e-4)


def test_a_dit_mixes_the_rows_of_a_trajectory_and_no_others():
    network = dit((4, 4, 1), 3, size="nano", patch_size=2, trajectory=2)
    keys = iter(jax.random.split(KEY, 100))
    params = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape), network.init(KEY)
    )
    x, t = jax.random.normal(KEY, (4, 4, 4, 1)), jnp.linspace(0.1, 0.9, 4)
    label = {"label": jnp.array([0, 1, 2, 0])}
    apply = jax.jit(lambda x: network.apply(params, x, t, t, label))
    change = np.abs(apply(x) - apply(x.at[1].add(1.0))).max(axis=(1, 2, 3))
    assert (change[:2] > 1e-3).all() and (change[2:] == 0.0).all()
    with pytest.raises(ValueError, match="3 rows are no whole trajectories of 2 times"):
        network.apply(params, x[:3], t[:3], t[:3], {"label": label["label"][:3]})
    with pytest.raises(ValueError, match="scan=True has no temporal layers"):
        dit((4, 4, 1), 3, size="nano", scan=True, trajectory=2)


def test_a_network_that_mixes_starts_as_one_that_does_not():
    fields = {"size": "nano", "patch_size": 2}
    plain, mixing = dit((4, 4, 1), **fields), dit((4, 4, 1), **fields, trajectory=4)
    own = jax.tree.map(lambda leaf: leaf + 0.1, plain.init(KEY))
    params = {**mixing.init(jax.random.key(1)), **own}
    assert {*params} - {*own} == {"temporal_0", "temporal_1", "temporal_2"}
    x, t = jax.random.normal(KEY, (8, 4, 4, 1)), jnp.full(8, 0.5)
    label = {"label": jnp.zeros(8, jnp.int32)}
    expected = plain.apply(own, x, t, t, label)
    np.testing.assert_allclose(mixing.apply(params, x, t, t, label), expected, atol=1e-6)
