import numpy as np
import pytest

from fewstep.diffusion.path import PATHS
from fewstep.diffusion.spacing import SPACINGS, karras_spacing, uniform_spacing
from fewstep.samplers.grids import GRIDS, grid_to_data, time_grid


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PATHS)
def test_grid_descends_and_meets_both_ends(name, spacing, steps):
    path = PATHS[name]()
    times = np.asarray(time_grid(SPACINGS[spacing](path), steps))
    assert times.shape == (steps + 1,)
    assert (times[0], times[-1]) == (np.float32(path.t_max), np.float32(path.t_min))
    assert (np.diff(times) < 0).all()


def test_uniform_grid_has_equal_steps():
    path = PATHS["trigflow"]()
    times = np.asarray(time_grid(uniform_spacing(path), 7))
    np.testing.assert_allclose(np.diff(times), (path.t_min - path.t_max) / 7, rtol=1e-5)
    # Dyadic grids are exact, which step-size embeddings rely on.
    linear = time_grid(uniform_spacing(PATHS["linear"]()), 128)
    np.testing.assert_array_equal(linear, 1 - np.arange(129) / 128)


def test_karras_grid_of_eighteen_points():
    # Karras et al. 2022, eq. 5: the levels after the first and before the last.
    times = np.asarray(time_grid(karras_spacing(PATHS["ve"]()), 17))
    root = np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), 18)
    np.testing.assert_allclose(times, root**7, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_edm_s_grid_ends_at_the_data(steps):
    # Karras et al. 2022, eq. 5 with t_N = 0: N levels from 80 to 0.002, then 0.
    path = PATHS["ve"]()
    root = np.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), steps)
    times = np.asarray(grid_to_data(path, karras_spacing(path), steps))
    np.testing.assert_allclose(times, [*root**7, 0.0], rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "vp_discrete", "trigflow"])
def test_a_path_that_ends_at_the_data_has_one_grid(name):
    path = PATHS[name]()
    spacing = karras_spacing(path)
    np.testing.assert_array_equal(grid_to_data(path, spacing, 5), time_grid(spacing, 5))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_no_step_of_any_grid(grid):
    with pytest.raises(ValueError, match="at least 1 step"):
        grid(PATHS["ve"](), uniform_spacing(PATHS["ve"]()), 0)


def test_no_step():
    with pytest.raises(ValueError, match="at least 1 step"):
        time_grid(uniform_spacing(PATHS["linear"]()), 0)
