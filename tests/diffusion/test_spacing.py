import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.diffusion.path import PATHS, ve
from fewstep.diffusion.spacing import SPACINGS, karras_spacing, quadratic_spacing, uniform_spacing


def test_karras_is_the_paper_s():
    # Karras et al. 2022, eq. 5, in their order (high to low), by a loop.
    high, low, count = 80.0, 0.002, 18
    for power in (7.0, 3.0):
        expected = [
            (high ** (1 / power) + i / (count - 1) * (low ** (1 / power) - high ** (1 / power)))
            ** power
            for i in range(count)
        ]
        given = karras_spacing(ve(), power).time(1.0 - jnp.arange(count) / (count - 1))
        np.testing.assert_allclose(given, expected, rtol=1e-4)


def test_karras_covers_a_path_wider_than_edm_s():
    # Levels of ve(1e-4, 500): the middle of the seventh roots, not of 0.002 to 80.
    middle = ((1e-4 ** (1 / 7) + 500.0 ** (1 / 7)) / 2) ** 7
    assert float(karras_spacing(ve(1e-4, 500.0)).time(jnp.float32(0.5))) == pytest.approx(
        middle, rel=1e-4
    )


def test_karras_has_the_noise_levels_of_edm_on_every_path_that_reaches_both_ends():
    fraction = jnp.linspace(0.05, 0.95, 19)
    expected = karras_spacing(ve()).time(fraction)
    for name in ("linear", "vp_cosine", "trigflow"):
        path = PATHS[name]()
        np.testing.assert_allclose(
            path.rho(karras_spacing(path).time(fraction)), expected, rtol=1e-3
        )


def test_uniform_has_equal_steps():
    path = ve(0.5, 2.5)
    np.testing.assert_allclose(
        uniform_spacing(path).time(jnp.linspace(0.0, 1.0, 5)), [0.5, 1.0, 1.5, 2.0, 2.5]
    )


def test_quadratic_is_that_of_ddim():
    # Song et al. 2021, D.2: times proportional to the squares of 0, 1, ..., N.
    path = ve(0.5, 2.5)
    np.testing.assert_allclose(
        quadratic_spacing(path).time(jnp.linspace(0.0, 1.0, 5)),
        [0.5 + 2.0 * index**2 / 16 for index in range(5)],
    )


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PATHS)
def test_both_ends_are_met_exactly_and_time_rises_between(name, spacing):
    path = PATHS[name]()
    time = np.asarray(SPACINGS[spacing](path).time(jnp.arange(1281) / 1280))
    assert (time[0], time[-1]) == (np.float32(path.t_min), np.float32(path.t_max))
    assert (np.diff(time) > 0).all()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PATHS)
def test_fraction_inverts_time(name, spacing):
    path = PATHS[name]()
    chosen = SPACINGS[spacing](path)
    fraction = jnp.linspace(0.0, 1.0, 41)
    np.testing.assert_allclose(chosen.fraction(chosen.time(fraction)), fraction, atol=2e-5)


@pytest.mark.parametrize("power", [0.0, -7.0])
def test_power_out_of_range(power):
    with pytest.raises(ValueError, match="must be positive for spacing.name=karras"):
        karras_spacing(ve(), power)


@pytest.mark.parametrize(("sigma_max", "covered"), [(9e5, 9e5), (1e6, 80.0)])
def test_karras_stops_at_edm_s_level_where_a_path_reaches_pure_noise(sigma_max, covered):
    middle = ((0.002 ** (1 / 7) + covered ** (1 / 7)) / 2) ** 7
    given = karras_spacing(ve(0.002, sigma_max)).time(jnp.float32(0.5))
    assert float(given) == pytest.approx(middle, rel=1e-4)


def test_default_power_is_edm_s():
    fraction = jnp.linspace(0.0, 1.0, 5)
    np.testing.assert_array_equal(
        karras_spacing(ve()).time(fraction), karras_spacing(ve(), 7.0).time(fraction)
    )
