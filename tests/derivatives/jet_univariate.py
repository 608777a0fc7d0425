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

ROOTS = (0.2, 1.0, 1.7)
INSIDE = (-0.9, -0.1, 0.0, 0.5)

UNIVARIATE = [
    Univariate("exp", torch.exp, mpmath.exp, (-30.0, 0.0, 1.7)),
    Univariate("exp2", torch.exp2, lambda x: mp.mpf(2) ** x, (-30.0, 0.0, 10.0)),
    Univariate("expm1", torch.expm1, mpmath.expm1, (-30.0, 1e-9, 1.7)),
    Univariate("log", torch.log, mpmath.log, (1e-3, 1.0, 30.0)),
    Univariate("log1p", torch.log1p, mpmath.log1p, (-0.9, 1e-9, 30.0)),
    Univariate("log2", torch.log2, lambda x: mpmath.log(x, 2), ROOTS),
    Univariate("log10", torch.log10, mpmath.log10, ROOTS),
    Univariate("sin", torch.sin, mpmath.sin, (-1000.0, 0.0, 1.7)),
    Univariate("cos", torch.cos, mpmath.cos, (-1000.0, 0.0, 1.7)),
    Univariate("tan", torch.tan, mpmath.tan, (-1.3, 0.0, 0.4)),
    Univariate("asin", torch.asin, mpmath.asin, INSIDE),
    Univariate("acos", torch.acos, mpmath.acos, INSIDE),
    Univariate("atan", torch.atan, mpmath.atan, (-30.0, 0.0, 1.7)),
    Univariate("sinh", torch.sinh, mpmath.sinh, (-1.3, 0.0, 30.0)),
    Univariate("cosh", torch.cosh, mpmath.cosh, (-1.3, 0.0, 30.0)),
    Univariate("tanh", torch.tanh, mpmath.tanh, (-1.3, 0.0, 30.0)),
    Univariate("asinh", torch.asinh, mpmath.asinh, (-30.0, 0.0, 1.7)),
    Univariate("acosh", torch.acosh, mpmath.acosh, (1.3, 30.0)),
    Univariate("atanh", torch.atanh, mpmath.atanh, INSIDE),
    Univariate(
        "sigmoid", torch.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), (-30.0, 0.0, 30.0)
    ),
    Univariate("sqrt", torch.sqrt, mpmath.sqrt, ROOTS),
    Univariate("rsqrt", torch.rsqrt, lambda x: 1 / mpmath.sqrt(x), ROOTS),
    Univariate("reciprocal", torch.reciprocal, lambda x: 1 / x),
    Univariate("cube", lambda x: x**3, lambda x: x**3, (-2.0, 0.0, 1.7)),
    Univariate("power", lambda x: x**2.5, lambda x: x ** mp.mpf("2.5"), ROOTS),
    Univariate("whole-power-below", lambda x: x**-2, lambda x: x**-2),
    Univariate(
        "whole-power-in-a-tensor",
        lambda x: x ** torch.tensor(3),
        lambda x: x**3,
        (-2.0, 0.0, 1.7),
    ),
    Univariate(
        "float-power",
        lambda x: torch.float_power(x, torch.full_like(x, 2)),
        lambda x: x**2,
        (-2.0, 0.0),
    ),
    Univariate(
        "exponential", lambda x: 2**x, lambda x: mp.mpf(2) ** x, (-5.0, 0.0, 3.0)
    ),
    Univariate("zero-to-a-power", lambda x: 0**x, lambda x: mp.mpf(0), ROOTS),
    Univariate("self-power", lambda x: x**x, lambda x: x**x, ROOTS),
    Univariate(
        "sinc", torch.sinc, lambda x: mpmath.sinc(mp.pi * x), (-1.3, 0.0, 0.3, 0.4)
    ),
    Univariate(
        "xlogy-at-zero",
        lambda x: torch.xlogy(x, 5.0),
        lambda x: x * mpmath.log(5),
        (0.0, 1.7),
    ),
    Univariate(
        "xlog1py-at-zero",
        lambda x: torch.special.xlog1py(x, x),
        lambda x: x * mpmath.log1p(x),
        (0.0, 1.7),
    ),
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
    Univariate(
        "relu-inplace", lambda x: F.relu(x * 1, inplace=True), lambda x: max(x, 0)
    ),
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
