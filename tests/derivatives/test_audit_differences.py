"""The reference of ``audit``: derivatives from values, and what they say of their errors."""

from __future__ import annotations

import math

import mpmath
import pytest

from pureopt.derivatives._auditing._differences import differences

SMOOTH = {
    "exp": (math.exp, mpmath.exp),
    "shifted sine": (lambda t: math.sin(3 * t + 1), lambda t: mpmath.sin(3 * t + 1)),
    "near a pole": (lambda t: 1 / (t + 0.3), lambda t: 1 / (t + mpmath.mpf("0.3"))),
    "on an offset": (lambda t: 1e5 + math.sin(t), lambda t: 1e5 + mpmath.sin(t)),
    "polynomial": (lambda t: (t - 0.7) ** 3, lambda t: (t - mpmath.mpf("0.7")) ** 3),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_differences_are_as_far_from_the_derivative_as_they_say(name):
    f, exact = SMOOTH[name]
    scale = 0.0
    with mpmath.workdps(50):
        for k, found in enumerate(differences(f, 4)):
            truth = float(mpmath.diff(exact, 0, k))
            # The start, 0.3 or 0.7 in binary, is off by a rounding, for which 1e-14 is
            # room: the fifth derivative of the pole is 17 times the fourth.
            assert abs(found.value - truth) <= found.tolerance + 1e-14 * abs(truth)
            scale = max(scale, abs(truth))
            # And the tolerance is worth having. With noise n of the values and steps h it
            # is about n / h^k times weights of 1e2 and a safety of 10; n is 1e-16 and h,
            # a tenth of the distance to a pole, makes h^k of the size of 1/scale up to
            # 1e4 for k = 4: 1e-9 to 1e-8, and to be sure 1e-6.
            assert found.tolerance <= 1e-6 * scale
            assert not found.kink


@pytest.mark.parametrize(
    ("f", "k"), [(abs, 1), (lambda t: max(t, 0.0), 1), (lambda t: t * abs(t), 2)]
)
def test_a_kink_is_seen_in_the_derivative_that_jumps(f, k):
    found = differences(f, k)
    assert found[k].kink
    assert not any(difference.kink for difference in found[:k])


def test_stairs_are_not_taken_for_the_slope_that_they_follow():
    # At steps of 1/32 each point is on the line, with tiny ones all are on one stair.
    def stairs(t):
        return round(0.0653 * t - 0.985, 3)

    assert math.isclose(stairs(3 / 32) - stairs(0), 3 * (stairs(1 / 32) - stairs(0)))
    found = differences(stairs, 1)[1]
    assert abs(found.value) <= found.tolerance


def test_noise_widens_the_tolerance():
    def rough(t):
        return round(math.sin(t + 1), 8)

    clean, noisy = (differences(f, 3) for f in (lambda t: math.sin(t + 1), rough))
    for k in (1, 2, 3):
        truth = math.sin(1 + k * math.pi / 2)
        assert abs(noisy[k].value - truth) <= noisy[k].tolerance
        assert noisy[k].tolerance > 1e3 * clean[k].tolerance
