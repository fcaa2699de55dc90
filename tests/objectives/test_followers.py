import jax.numpy as jnp
import numpy as np
import pytest

from fewstep.objectives.followers import (
    constant_ema,
    keep_unchanged,
    power_ema,
    power_exponent,
    scheduled_ema,
    warmed_ema,
)


def run(update, values):
    follower = {"w": jnp.float32(100.0)}
    for step, value in enumerate(values):
        follower = update(follower, {"w": jnp.float32(value)}, jnp.int32(step))
    return float(follower["w"])


def test_constant_ema_is_the_geometric_sum():
    values = [1.0, 5.0, 2.0]
    expected = 100.0 * 0.9**3 + 0.1 * (1.0 * 0.9**2 + 5.0 * 0.9 + 2.0)
    assert run(constant_ema(0.9), values) == pytest.approx(expected, rel=1e-6)
    assert run(constant_ema(0.0), values) == 2.0


def test_keep_unchanged_returns_the_follower():
    assert run(keep_unchanged, [1.0, 5.0]) == 100.0


def test_warmed_ema_follows_the_rule_then_the_decay():
    expected = 100.0
    for step, value in enumerate([3.0, 8.0, 1.0, 4.0]):
        decay = min(0.25, (1 + step) / (10 + step))  # 1/10, 2/11, then the limit
        expected = decay * expected + (1 - decay) * value
    assert run(warmed_ema(0.25), [3.0, 8.0, 1.0, 4.0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_power_ema_has_the_width_that_it_claims(std):
    # Averaging n over a run of N gives mean (g + 1) / (g + 2) N; weights ~ n^g.
    count, gamma = 3000, power_exponent(std)
    mean = run(power_ema(std), range(1, count + 1)) / count
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), abs=2e-3)
    square = run(power_ema(std), (np.arange(1, count + 1) / count) ** 2)
    assert np.sqrt(square - mean**2) == pytest.approx(std, rel=0.03)


def test_power_ema_s_first_updates_are_eq_127():
    # (1 - 1/n)^(gamma + 1) at the n-th update: the first is a copy of the source.
    gamma, expected = power_exponent(0.1), 0.0
    for n, value in enumerate([3.0, 8.0, 1.0, 4.0], start=1):
        decay = (1.0 - 1.0 / n) ** (gamma + 1.0)
        expected = decay * expected + (1.0 - decay) * value
    assert run(power_ema(0.1), [3.0]) == 3.0
    assert run(power_ema(0.1), [3.0, 8.0, 1.0, 4.0]) == pytest.approx(expected, rel=1e-5)


def test_scheduled_ema_has_the_decay_of_its_step():
    scheduled = scheduled_ema(lambda step: 1.0 / (step + 2.0))
    expected = 100.0
    for step, value in enumerate([3.0, 8.0, 1.0]):
        expected = expected / (step + 2) + (1 - 1 / (step + 2)) * value
    assert run(scheduled, [3.0, 8.0, 1.0]) == pytest.approx(expected, rel=1e-6)


def test_power_exponent_is_karras_et_al_s():
    # Their section 3.1: relative width 0.05 is gamma 16.97, 0.10 is 6.94.
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("make", [constant_ema, warmed_ema, power_ema])
def test_out_of_range_is_refused(make):
    with pytest.raises(ValueError, match="EMA"):
        make(1.0)


def test_the_width_of_a_power_ema_lies_between_its_ends():
    for std in (0.0, 12.0**-0.5, -0.1):
        with pytest.raises(ValueError, match=r"a std in \(0, 0.288\)"):
            power_exponent(std)
    assert power_exponent(0.288) == pytest.approx(0.0, abs=0.02)  # nearly the uniform average
    assert power_exponent(1e-3) > 900.0
    for decay in (1.0, -1e-3):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
            constant_ema(decay)
