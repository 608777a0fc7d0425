r"""The objectives of the Moré-Garbow-Hillstrom problems, as pure functions of a vector.

Each is :math:`f(x) = \sum_i f_i(x)^2` of any floating dtype, with the residuals
:math:`f_i` in the paper's letters; indices are the paper's, from one.

References:
    Moré, Garbow and Hillstrom, Testing unconstrained optimization software (1981).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks import mgh_data


def _data(values: tuple[float, ...], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device)


def _range(first: int, last: int, x: Tensor) -> Tensor:
    """The numbers ``first, ..., last`` in the dtype and on the device of ``x``."""
    return torch.arange(first, last + 1, dtype=x.dtype, device=x.device)


def _squares(*residuals: Tensor) -> Tensor:
    return torch.stack(residuals).square().sum()


def rosenbrock(x: Tensor) -> Tensor:
    """Problem 1, and 21 for any even n: the banana valley."""
    odd, even = x[0::2], x[1::2]
    return (10 * (even - odd**2)).square().sum() + (1 - odd).square().sum()


def freudenstein_roth(x: Tensor) -> Tensor:
    """Problem 2: two residuals with a local minimum of 48.98."""
    a, b = x
    return _squares(-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b)


def powell_badly_scaled(x: Tensor) -> Tensor:
    """Problem 3: the minimizer is near (1.1e-5, 9.1)."""
    a, b = x
    return _squares(1e4 * a * b - 1, (-a).exp() + (-b).exp() - 1.0001)


def brown_badly_scaled(x: Tensor) -> Tensor:
    """Problem 4: the minimizer is (1e6, 2e-6)."""
    a, b = x
    return _squares(a - 1e6, b - 2e-6, a * b - 2)


def beale(x: Tensor) -> Tensor:
    """Problem 5."""
    y, i = _data(mgh_data.BEALE, x), _range(1, 3, x)
    return (y - x[0] * (1 - x[1] ** i)).square().sum()


def jennrich_sampson(x: Tensor) -> Tensor:
    """Problem 6 with m = 10."""
    i = _range(1, 10, x)
    return (2 + 2 * i - ((i * x[0]).exp() + (i * x[1]).exp())).square().sum()


def helical_valley(x: Tensor) -> Tensor:
    """Problem 7; the angle, in turns, jumps where x1 = 0 > x2."""
    a, b, c = x
    angle = torch.atan2(b, a) / (2 * math.pi)
    turns = torch.where((a < 0) & (angle < 0), angle + 1, angle)
    return _squares(10 * (c - 10 * turns), 10 * (torch.hypot(a, b) - 1), c)


def bard(x: Tensor) -> Tensor:
    """Problem 8."""
    y, u = _data(mgh_data.BARD, x), _range(1, 15, x)
    v = 16 - u
    w = torch.minimum(u, v)
    return (y - (x[0] + u / (v * x[1] + w * x[2]))).square().sum()


def gaussian(x: Tensor) -> Tensor:
    """Problem 9."""
    y, t = _data(mgh_data.GAUSSIAN, x), (8 - _range(1, 15, x)) / 2
    return (x[0] * (-x[1] * (t - x[2]) ** 2 / 2).exp() - y).square().sum()


def meyer(x: Tensor) -> Tensor:
    """Problem 10: values near 1e9 at the start, a valley of condition 1e14."""
    y, t = _data(mgh_data.MEYER, x), 45 + 5 * _range(1, 16, x)
    return (x[0] * (x[1] / (t + x[2])).exp() - y).square().sum()


def gulf(x: Tensor) -> Tensor:
    """Problem 11 with m = 99, in the corrected form ``|y_i - x_2|``."""
    t = _range(1, 99, x) / 100
    y = 25 + (-50 * t.log()) ** (2 / 3)
    return ((-((y - x[1]).abs() ** x[2]) / x[0]).exp() - t).square().sum()


def box_3d(x: Tensor) -> Tensor:
    """Problem 12 with m = 20."""
    t = _range(1, 20, x) / 10
    known = (-t).exp() - (-10 * t).exp()
    return ((-t * x[0]).exp() - (-t * x[1]).exp() - x[2] * known).square().sum()


def powell_singular(x: Tensor) -> Tensor:
    """Problem 13, and 22 for any n that 4 divides: a singular Hessian at zero."""
    a, b, c, d = x[0::4], x[1::4], x[2::4], x[3::4]
    return (
        (a + 10 * b).square().sum()
        + 5 * (c - d).square().sum()
        + ((b - 2 * c) ** 4).sum()
        + 10 * ((a - d) ** 4).sum()
    )


def wood(x: Tensor) -> Tensor:
    """Problem 14: a saddle at f = 7.877 in the way."""
    a, b, c, d = x
    return _squares(
        10 * (b - a**2),
        1 - a,
        90**0.5 * (d - c**2),
        1 - c,
        10**0.5 * (b + d - 2),
        10**-0.5 * (b - d),
    )


def kowalik_osborne(x: Tensor) -> Tensor:
    """Problem 15."""
    y = _data(mgh_data.KOWALIK_OSBORNE_Y, x)
    u = _data(mgh_data.KOWALIK_OSBORNE_U, x)
    model = x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])
    return (y - model).square().sum()


def brown_dennis(x: Tensor) -> Tensor:
    """Problem 16 with m = 20."""
    t = _range(1, 20, x) / 5
    first = (x[0] + t * x[1] - t.exp()) ** 2
    second = (x[2] + x[3] * t.sin() - t.cos()) ** 2
    return (first + second).square().sum()


def osborne_1(x: Tensor) -> Tensor:
    """Problem 17."""
    y, t = _data(mgh_data.OSBORNE_1, x), 10 * (_range(1, 33, x) - 1)
    model = x[0] + x[1] * (-t * x[3]).exp() + x[2] * (-t * x[4]).exp()
    return (y - model).square().sum()


def biggs_exp6(x: Tensor) -> Tensor:
    """Problem 18 with m = 13."""
    t = _range(1, 13, x) / 10
    y = (-t).exp() - 5 * (-10 * t).exp() + 3 * (-4 * t).exp()
    first = x[2] * (-t * x[0]).exp() - x[3] * (-t * x[1]).exp()
    return (first + x[5] * (-t * x[4]).exp() - y).square().sum()


def osborne_2(x: Tensor) -> Tensor:
    """Problem 19."""
    y, t = _data(mgh_data.OSBORNE_2, x)[:, None], (_range(1, 65, x)[:, None] - 1) / 10
    peaks = (x[1:4] * (-((t - x[8:11]) ** 2) * x[5:8]).exp()).sum(1, keepdim=True)
    return (y - (x[0] * (-t * x[4]).exp() + peaks)).square().sum()


def watson(x: Tensor) -> Tensor:
    """Problem 20: the condition grows with n, to 1e12 at n = 12."""
    n = x.shape[0]
    t, j = (_range(1, 29, x) / 29)[:, None], _range(0, n - 1, x)
    slope = (j[1:] * x[1:] * t ** j[:-1]).sum(1)
    poly = (x * t**j).sum(1)
    ends = _squares(x[0], x[1] - x[0] ** 2 - 1)
    return (slope - poly**2 - 1).square().sum() + ends


def penalty_1(x: Tensor) -> Tensor:
    """Problem 23."""
    return 1e-5 * (x - 1).square().sum() + (x.square().sum() - 0.25) ** 2


def penalty_2(x: Tensor) -> Tensor:
    """Problem 24."""
    n, a = x.shape[0], 1e-5
    e, i = (x / 10).exp(), _range(1, n, x)
    y = (i[1:] / 10).exp() + (i[:-1] / 10).exp()
    pairs = a * (e[1:] + e[:-1] - y).square().sum()
    singles = a * (e[1:] - math.exp(-0.1)).square().sum()
    weighted = ((n - i + 1) * x.square()).sum() - 1
    return (x[0] - 0.2) ** 2 + pairs + singles + weighted**2


def variably_dimensioned(x: Tensor) -> Tensor:
    """Problem 25."""
    s = (_range(1, x.shape[0], x) * (x - 1)).sum()
    return (x - 1).square().sum() + s**2 + s**4


def trigonometric(x: Tensor) -> Tensor:
    """Problem 26."""
    n, c = x.shape[0], x.cos()
    return (n - c.sum() + _range(1, n, x) * (1 - c) - x.sin()).square().sum()


def brown_almost_linear(x: Tensor) -> Tensor:
    """Problem 27."""
    n = x.shape[0]
    linear = x[:-1] + x.sum() - (n + 1)
    return linear.square().sum() + (x.prod() - 1) ** 2


def _grid(x: Tensor) -> Tensor:
    """The inner points of the grid with step 1/(n + 1)."""
    n = x.shape[0]
    return _range(1, n, x) / (n + 1)


def _neighbors(x: Tensor) -> tuple[Tensor, Tensor]:
    """The left and the right neighbor of each entry, zero beyond the ends."""
    zero = torch.zeros(1, dtype=x.dtype, device=x.device)
    return torch.cat([zero, x[:-1]]), torch.cat([x[1:], zero])


def discrete_boundary_value(x: Tensor) -> Tensor:
    """Problem 28."""
    left, right = _neighbors(x)
    h = 1 / (x.shape[0] + 1)
    cube = (x + _grid(x) + 1) ** 3
    return (2 * x - left - right + h**2 * cube / 2).square().sum()


def discrete_integral(x: Tensor) -> Tensor:
    """Problem 29."""
    t, h = _grid(x), 1 / (x.shape[0] + 1)
    cube = (x + t + 1) ** 3
    below = (t * cube).cumsum(0)
    above = ((1 - t) * cube).sum() - ((1 - t) * cube).cumsum(0)
    return (x + h * ((1 - t) * below + t * above) / 2).square().sum()


def broyden_tridiagonal(x: Tensor) -> Tensor:
    """Problem 30."""
    left, right = _neighbors(x)
    return ((3 - 2 * x) * x - left - 2 * right + 1).square().sum()


def broyden_banded(x: Tensor) -> Tensor:
    """Problem 31: entry i meets its five neighbors below and the one above."""
    i = torch.arange(x.shape[0], device=x.device)
    offset = i[None, :] - i[:, None]
    band = ((offset >= -5) & (offset <= 1) & (offset != 0)).to(x.dtype)
    return (x * (2 + 5 * x**2) + 1 - band @ (x * (1 + x))).square().sum()


def linear_full_rank(x: Tensor) -> Tensor:
    """Problem 32 with m = 20."""
    m, n = 20, x.shape[0]
    shared = -2 * x.sum() / m - 1
    return (x + shared).square().sum() + (m - n) * shared**2


def linear_rank_1(x: Tensor) -> Tensor:
    """Problem 33 with m = 20."""
    i, j = _range(1, 20, x), _range(1, x.shape[0], x)
    return (i * (j * x).sum() - 1).square().sum()


def chebyquad(x: Tensor) -> Tensor:
    """Problem 35, m = n: means of shifted Chebyshev polynomials less integrals."""
    n, y = x.shape[0], 2 * x - 1
    polynomials = [torch.ones_like(y), y]
    for _ in range(n - 1):
        polynomials.append(2 * y * polynomials[-1] - polynomials[-2])
    integral = tuple(-1 / (i**2 - 1) if i % 2 == 0 else 0.0 for i in range(1, n + 1))
    means = torch.stack(polynomials[1:]).mean(1)
    return (means - _data(integral, x)).square().sum()
