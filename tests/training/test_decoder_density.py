"""The posterior of a decoder that a run has trained, by the run's folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.configs import digits
from fewstep.data import load_selection, selection_of, space_of
from fewstep.densities.posteriors import DECODER_DEVIATION
from fewstep.densities.table import find_density
from fewstep.training.compiled_step import create_state
from fewstep.training.experiment import build, effective_config
from fewstep.training.sharding import make_mesh
from fewstep.training.storage import checkpoint, workdir
from fewstep.training.storage.identity import as_dict
from tests.training.runs import perturb, save_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of autoencoder at two steps, whose parameters are random."""
    folder = tmp_path_factory.mktemp("codec")
    config = digits.get_config("autoencoder")
    config.data.image_size, config.data.channels, config.data.num_classes = 8, 1, 10
    config.data.decoding, config.steps_per_dispatch, config.steps = 2, 1, 10
    config.optimizer.warmup_steps = 0
    config = effective_config(config)
    experiment = build(config)
    begun = workdir.start_run(folder, config)
    state = create_state(experiment.objective, experiment.optimizers, 0, {}, make_mesh())
    with checkpoint.open_checkpoints(folder) as checkpoints:
        for step in (3, 5):
            moved = state._replace(
                step=jnp.int32(step), networks=perturb(state.networks, seed=step)
            )
            checkpoint.save_state(checkpoints, moved, as_dict(config), begun.stamp)
    return folder, config, moved.networks["network"]


@pytest.mark.some_days(3)
def test_the_posterior_is_prior_times_likelihood_of_a_held_out_image(run):
    folder, config, params = run
    density = find_density(str(folder))
    codec = build(config).model.network.codec
    assert density.dim == np.prod(codec.latent_shape)
    image = load_selection(selection_of(config.data)).test.images[0] / 127.5 - 1.0
    z = np.random.default_rng(0).standard_normal((3, density.dim)).astype(np.float32)
    made = codec.decode(params, z.reshape(3, *codec.latent_shape))
    error = ((np.asarray(made) - image) ** 2).sum(axis=(1, 2, 3)) / DECODER_DEVIATION**2
    wanted = -0.5 * ((z**2).sum(axis=1) + error)
    found = np.asarray(jax.jit(density.log_densities)(z))
    np.testing.assert_allclose(found - found[0], wanted - wanted[0], rtol=1e-3, atol=0.05)
    assert density.sample is None and density.log_z is None
    assert space_of(f"density:{folder}").shape == (density.dim,)


def test_another_checkpoint_is_another_density(run):
    folder, *_ = run
    newest, first = find_density(str(folder)), find_density(f"{folder}@3")
    assert newest.digest == find_density(f"{folder}@5").digest != first.digest


def test_what_is_no_decoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run; name a density, a file, or the folder"):
        find_density(str(tmp_path / "nothing"))
    other = save_run(tmp_path / "other", "flow_matching")
    with pytest.raises(ValueError, match="a run of flow_matching, which has no decoder"):
        find_density(other)
