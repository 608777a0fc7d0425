r"""Derivatives at 0 of a function of one number, from its values alone.

Values depend on no derivative formula, so that whatever is wrong with those cannot be
wrong here too. The derivative of the polynomial through :math:`2m + 1` points
:math:`-mh, \dots, mh` is the symmetric difference quotient, extrapolated from the steps
:math:`h, 2h, \dots, mh` to 0 as far as they allow (Richardson's deferred approach to the
limit). Of many ``h`` the one with the smallest error counts.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

# Three sets of points each: what fewer points say shows what the last ones are worth.
_BOTH_SIDES = tuple(tuple(range(-m, m + 1)) for m in (6, 5, 4))
_RIGHT = tuple(tuple(range(m + 1)) for m in (7, 6, 5))
_LEFT = tuple(tuple(-j for j in nodes) for nodes in _RIGHT)
_STEPS = tuple(2.0**-k for k in range(4, 21))
_EPS = 2.0**-52
# Between an estimated error and one that can be relied upon.
_SAFETY = 10.0


class Difference(NamedTuple):
    """One derivative, from values.

    Attributes:
        value: The estimate.
        tolerance: How far the derivative of a smooth function may be from it.
        doubt: The same, if the function may have a kink so weak that it cannot be seen.
        kink: The derivatives of the two sides differ by more than their errors.
    """

    value: float
    tolerance: float
    doubt: float
    kink: bool


def differences(
    phi: Callable[[float], float], order: int, eps: float = _EPS
) -> list[Difference]:
    r"""The derivatives of order 0 to ``order`` at 0; values have the precision ``eps``.

    The error of an estimate is what it changes when the outermost points are left out
    or all are twice as far, plus the noise of the values times the weights. The noise is
    measured: tenth differences over tiny steps are nothing else.

    References:
        Richardson and Gaunt (1927). Moré and Wild (2011) for the noise.
    """
    phi = functools.cache(phi)
    noise = max(_noise(phi), eps * abs(phi(0.0)))
    start = Difference(phi(0.0), _SAFETY * noise, _SAFETY * noise, kink=False)
    return [start, *(_difference(phi, k, noise) for k in range(1, order + 1))]


def _difference(phi: Callable[[float], float], k: int, noise: float) -> Difference:
    value, error = _best(phi, _BOTH_SIDES, k, noise)
    right, right_error = _best(phi, _RIGHT, k, noise)
    left, left_error = _best(phi, _LEFT, k, noise)
    tolerance, doubt = _SAFETY * error, _SAFETY * (right_error + left_error)
    kink = abs(right - left) > doubt
    return Difference(value, tolerance, max(tolerance, doubt), kink)


def _best(
    phi: Callable[[float], float],
    nested: Sequence[tuple[int, ...]],
    k: int,
    noise: float,
) -> tuple[float, float]:
    """The estimate with the smallest error over all steps, and that error.

    It is no smaller than what twice the step changes, which tells where a function has
    too few derivatives for more points to help; and no smaller than what smaller steps
    deny, which tells stairs from slopes.
    """
    tried = [_estimate(phi, nested, k, h, noise) for h in _STEPS]
    found = [
        (value, max(error, abs(value - before)))
        for (before, _), (value, error) in itertools.pairwise(tried)
        if math.isfinite(before) and math.isfinite(value)
    ]
    if not found:
        return math.nan, math.inf
    best = min(range(len(found)), key=lambda i: found[i][1])
    value, error = found[best]
    denied = [abs(v - value) - _SAFETY * e for v, e in found[best + 1 :]]
    return value, max(error, *denied, 0.0)


def _estimate(
    phi: Callable[[float], float],
    nested: Sequence[tuple[int, ...]],
    k: int,
    h: float,
    noise: float,
) -> tuple[float, float]:
    values = [phi(j * h) for j in nested[0]]
    if not all(map(math.isfinite, values)):
        return math.nan, math.inf
    at = dict(zip(nested[0], values, strict=True))
    most, fewer, few = (
        math.fsum(w * at[j] for w, j in zip(_weights(nodes, k), nodes, strict=True))
        for nodes in nested
    )
    spread = sum(map(abs, _weights(nested[0], k)))
    error = max(abs(most - fewer), abs(fewer - few)) + noise * spread
    return most / h**k, error / h**k


@functools.cache
def _weights(nodes: tuple[int, ...], k: int) -> tuple[float, ...]:
    """The weights of the values at ``nodes`` in the ``k``-th derivative at 0."""
    weights: list[float] = []
    for j in nodes:
        # The coefficients of the polynomial that is 1 at this node and 0 at the others.
        basis = [Fraction(1)]
        for i in nodes:
            if i != j:
                lower, upper = [Fraction(0), *basis], [*basis, Fraction(0)]
                basis = [
                    (a - i * b) / (j - i) for a, b in zip(lower, upper, strict=True)
                ]
        weights.append(float(math.factorial(k) * basis[k]))
    return tuple(weights)


def _noise(phi: Callable[[float], float]) -> float:
    """The standard deviation of the rounding errors of values."""
    tenth = [(-1) ** i * math.comb(10, i) for i in range(11)]
    squares = [
        math.fsum(w * phi((i + shift) * h) for i, w in enumerate(tenth)) ** 2
        for h in _STEPS[-2:]
        for shift in (-6, -5, -4)
    ]
    return math.sqrt(sum(squares) / len(squares) / math.comb(20, 10))
