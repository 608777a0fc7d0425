"""The elementwise functions that have rules of Taylor mode, with their twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import torch
from mpmath import mp
from torch.nn import functional as F


@dataclass(frozen=True)
class Univariate:
    """An elementwise function, its twin in mpmath, and points inside its domain."""

    name: str
    f: Callable[..., Any]
    twin: Callable[..., Any]
    points: tuple[float, ...] = (-1.3, -0.4, 0.2, 1.7)


def _ndtr(x):
    return mpmath.ncdf(x)


def _mish(x):
    return x * mpmath.tanh(mpmath.log1p(mpmath.exp(x)))


def _gelu_tanh(x):
    inner = mpmath.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3)
    return x / 2 * (1 + mpmath.tanh(inner))


def _expm1_below(alpha, scale=1.0, inner=1.0):
    return lambda x: scale * x if x > 0 else scale * alpha * mpmath.expm1(inner * x)


SELU = 1.6732632423543772, 1.0507009873554805

UNIVARIATE = [
    Univariate("erf", torch.erf, mpmath.erf),
    Univariate("erfc", torch.erfc, mpmath.erfc),
    Univariate(
        "erfcx", torch.special.erfcx, lambda x: mpmath.exp(x * x) * mpmath.erfc(x)
    ),
    Univariate("erfinv", torch.erfinv, mpmath.erfinv, (-0.8, -0.1, 0.3, 0.9)),
    Univariate("ndtr", torch.special.ndtr, _ndtr, (-6.0, -1.0, 0.3, 2.0)),
    Univariate(
        "log-ndtr",
        torch.special.log_ndtr,
        lambda x: mpmath.log(mpmath.erfc(-x / mpmath.sqrt(2)) / 2),
        (-3.0, -1.0, 0.3, 2.0),
    ),
    Univariate(
        "ndtri",
        torch.special.ndtri,
        lambda x: mpmath.sqrt(2) * mpmath.erfinv(2 * x - 1),
        (0.1, 0.5, 0.8),
    ),
    Univariate("lgamma", torch.lgamma, mpmath.loggamma, (0.3, 1.0, 4.5)),
    Univariate("digamma", torch.digamma, mpmath.digamma, (0.3, 1.2, 4.5)),
    Univariate(
        "polygamma",
        lambda x: torch.polygamma(2, x),
        lambda x: mpmath.psi(2, x),
        (0.3, 1.2, 4.5),
    ),
    Univariate(
        "zeta",
        lambda x: torch.special.zeta(2.5, x),
        lambda x: mpmath.zeta(2.5, x),
        (0.3, 1.2, 4.5),
    ),
    Univariate(
        "multigammaln",
        lambda x: torch.special.multigammaln(x, 3),
        lambda x: (
            mp.mpf(3) / 2 * mpmath.log(mp.pi)
            + sum(mpmath.loggamma(x - mp.mpf(i) / 2) for i in range(3))
        ),
        (1.4, 5.0),
    ),
    Univariate(
        "entr", torch.special.entr, lambda x: -x * mpmath.log(x), (0.1, 1.0, 3.0)
    ),
    Univariate(
        "logit", torch.logit, lambda x: mpmath.log(x / (1 - x)), (0.1, 0.5, 0.9)
    ),
    Univariate("softplus", F.softplus, lambda x: mpmath.log1p(mpmath.exp(x))),
    Univariate(
        "softplus-beta",
        lambda x: F.softplus(x, beta=2.5),
        lambda x: mpmath.log1p(mpmath.exp(2.5 * x)) / 2.5,
    ),
    Univariate("logsigmoid", F.logsigmoid, lambda x: -mpmath.log1p(mpmath.exp(-x))),
    Univariate("silu", F.silu, lambda x: x / (1 + mpmath.exp(-x))),
    Univariate("mish", F.mish, _mish),
    Univariate("gelu", F.gelu, lambda x: x * mpmath.ncdf(x)),
    Univariate("gelu-tanh", lambda x: F.gelu(x, approximate="tanh"), _gelu_tanh),
    Univariate("elu", lambda x: F.elu(x, 1.5), _expm1_below(1.5)),
    Univariate("selu", F.selu, _expm1_below(*SELU)),
    Univariate("celu", lambda x: F.celu(x, 2.0), _expm1_below(2.0, inner=0.5)),
    Univariate("softsign", F.softsign, lambda x: x / (1 + abs(x))),
    Univariate("tanhshrink", F.tanhshrink, lambda x: x - mpmath.tanh(x)),
    Univariate("relu", F.relu, lambda x: max(x, 0)),
    Univariate("relu-inplace", lambda x: F.relu(x, inplace=True), lambda x: max(x, 0)),
    Univariate("leaky-relu", F.leaky_relu, lambda x: x if x > 0 else x * mp.mpf(0.01)),
    Univariate(
        "rrelu-eval",
        lambda x: F.rrelu(x, 0.2, 0.4),
        lambda x: x if x > 0 else x * (mp.mpf(0.2) + mp.mpf(0.4)) / 2,
    ),
    Univariate("relu6", F.relu6, lambda x: min(max(x, 0), 6), (-1.0, 2.0, 7.0)),
    Univariate("hardtanh", F.hardtanh, lambda x: min(max(x, -1), 1)),
    Univariate(
        "hardsigmoid",
        F.hardsigmoid,
        lambda x: min(max(x + 3, 0), 6) / 6,
        (-4.0, 1.0, 5.0),
    ),
    Univariate(
        "hardswish",
        F.hardswish,
        lambda x: x * min(max(x + 3, 0), 6) / 6,
        (-4.0, 1.0, 5.0),
    ),
    Univariate(
        "softshrink",
        F.softshrink,
        lambda x: 0 if abs(x) < 0.5 else x - mpmath.sign(x) / 2,
    ),
    Univariate("hardshrink", F.hardshrink, lambda x: 0 if abs(x) < 0.5 else x),
    Univariate(
        "threshold", lambda x: F.threshold(x, 0.1, 3.0), lambda x: x if x > 0.1 else 3
    ),
    Univariate("frac", torch.frac, lambda x: x - (mpmath.floor(x) + (x < 0))),
    Univariate("rad2deg", torch.rad2deg, lambda x: x * 180 / mp.pi),
    Univariate("deg2rad", torch.deg2rad, lambda x: x * mp.pi / 180),
]
