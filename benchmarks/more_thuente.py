r"""The six line-search functions of Moré and Thuente, with the counts they report.

Each function maps a step ``t >= 0`` to the value and the slope of

.. math:: \phi(t), \qquad \phi'(t), \qquad \phi'(0) < 0,

along the search direction. The slopes are written out, not differentiated, so that a
line search can be tested without autograd; ``tests/test_problems.py`` compares them.

References:
    Moré and Thuente, Line search algorithms with guaranteed sufficient decrease (1994),
    section 5: functions 5.1 to 5.5 and tables I to VI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

LineFunction: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]

STARTS = (1e-3, 1e-1, 1e1, 1e3)
"""The initial steps of every table."""


class Table(NamedTuple):
    """One table of the paper: a function, its two constants, and four searches.

    Attributes:
        number: The number of the table.
        phi: From the step to value and slope.
        mu: Of the sufficient decrease, ``phi(t) <= phi(0) + mu t phi'(0)``.
        eta: Of the curvature condition, ``|phi'(t)| <= eta |phi'(0)|``.
        evaluations: The reported number of evaluations for each of :data:`STARTS`.
        steps: The reported accepted steps.
    """

    number: int
    phi: LineFunction
    mu: float
    eta: float
    evaluations: tuple[int, int, int, int]
    steps: tuple[float, float, float, float]


def rational(t: Tensor) -> tuple[Tensor, Tensor]:
    """Function 5.1 with beta = 2: ``-t / (t**2 + beta)``, flat far out."""
    beta = 2.0
    below = t**2 + beta
    return -t / below, (t**2 - beta) / below**2


def quintic(t: Tensor) -> tuple[Tensor, Tensor]:
    """Function 5.2 with beta = 0.004: ``(t + beta)**5 - 2 (t + beta)**4``."""
    s = t + 0.004
    return s**5 - 2 * s**4, 5 * s**4 - 8 * s**3


def oscillating(t: Tensor) -> tuple[Tensor, Tensor]:
    r"""Function 5.3 with beta = 0.01 and l = 39: a valley with a fine ripple.

    .. math::
        \phi(t) = \phi_0(t) + \frac{2 (1 - \beta)}{l \pi} \sin\frac{l \pi t}{2},

    where :math:`\phi_0` is 1 - t below 1 - beta, t - 1 above 1 + beta, and between
    them the parabola that joins the two smoothly.
    """
    beta, waves = 0.01, 39 * math.pi / 2
    u = t - 1
    near = u.abs() <= beta
    value = torch.where(near, u**2 / (2 * beta) + beta / 2, u.abs())
    slope = torch.where(near, u / beta, u.sign())
    ripple = (1 - beta) * (waves * t).sin() / waves
    return value + ripple, slope + (1 - beta) * (waves * t).cos()


def yanai(beta_1: float, beta_2: float) -> LineFunction:
    r"""Function 5.4: two smoothed kinks with slopes set by ``beta_1`` and ``beta_2``.

    .. math::
        \phi(t) = \gamma(\beta_1) \sqrt{(1 - t)^2 + \beta_2^2}
                + \gamma(\beta_2) \sqrt{t^2 + \beta_1^2}, \qquad
        \gamma(\beta) = \sqrt{1 + \beta^2} - \beta.
    """
    gamma_1 = math.sqrt(1 + beta_1**2) - beta_1
    gamma_2 = math.sqrt(1 + beta_2**2) - beta_2

    def phi(t: Tensor) -> tuple[Tensor, Tensor]:
        left = ((1 - t) ** 2 + beta_2**2).sqrt()
        right = (t**2 + beta_1**2).sqrt()
        value = gamma_1 * left + gamma_2 * right
        return value, gamma_1 * (t - 1) / left + gamma_2 * t / right

    return phi


_FLAT = yanai(1e-3, 1e-3)
_LEFT = yanai(1e-2, 1e-3)
_RIGHT = yanai(1e-3, 1e-2)
_LEFT_STEPS = (0.075011, 0.07751, 0.073142, 0.076159)
_RIGHT_STEPS = (0.9279, 0.92615, 0.92478, 0.92440)

TABLES: tuple[Table, ...] = (
    Table(1, rational, 1e-3, 0.1, (6, 3, 1, 4), (1.3650, 1.4414, 10.0, 36.888)),
    Table(2, quintic, 0.1, 0.1, (12, 8, 8, 11), (1.596, 1.596, 1.596, 1.596)),
    Table(3, oscillating, 0.1, 0.1, (12, 12, 10, 13), (1.0, 1.0, 1.0, 1.0)),
    Table(4, _FLAT, 1e-3, 1e-3, (4, 1, 3, 4), (0.085, 0.10, 0.34910, 0.8294)),
    Table(5, _LEFT, 1e-3, 1e-3, (6, 3, 7, 8), _LEFT_STEPS),
    Table(6, _RIGHT, 1e-3, 1e-3, (13, 11, 8, 11), _RIGHT_STEPS),
)
"""The 24 searches; the reported evaluations sum to 179."""
