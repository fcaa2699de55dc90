"""DDIM on `vp_discrete` against diffusers' DDIMScheduler, with the same random network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import vp_discrete
from fewstep.diffusion.prediction import KINDS
from fewstep.diffusion.spacing import uniform_spacing
from fewstep.models.model import Model
from fewstep.samplers.grids import time_grid
from fewstep.samplers.ode import ddim
from tests.published import small_dit

torch = pytest.importorskip("torch", reason="PyTorch is installed by `make parity`")
diffusers = pytest.importorskip("diffusers", reason="diffusers is installed by `make parity`")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 50])
def test_samples_are_those_of_diffusers(spacing, steps):
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    network, params, _ = small_dit(time_scale=1000.0)
    model = Model(network, vp_discrete(), KINDS["eps"])
    condition = {"label": jnp.array([0, 1, 4, -1])}
    noise = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)

    apply = jax.jit(network.apply)
    x = torch.from_numpy(noise)
    for k in scheduler.timesteps:
        time = jnp.full(4, np.float32(k) / np.float32(1000.0))
        eps = np.asarray(apply(params, jnp.asarray(x.numpy()), time, time, condition))
        x = scheduler.step(torch.from_numpy(eps), k, x).prev_sample

    times = np.append((scheduler.timesteps.numpy() + 1) / 1000.0, 0.0).astype(np.float32)
    if spacing == "trailing":  # our own grid
        np.testing.assert_allclose(time_grid(uniform_spacing(model.path), steps), times, atol=1e-7)
    denoise = model.denoiser(lambda *inputs: model.predict(params, *inputs), condition)
    ours = jax.jit(lambda noise: ddim()(denoise, model.path, noise, jnp.asarray(times), None))(
        noise
    )
    difference = np.abs(ours - x.numpy()).max() / x.numpy().std()
    print(f"relative difference {difference:.1e}, std {x.numpy().std():.1f}")
    assert difference < 5e-6
