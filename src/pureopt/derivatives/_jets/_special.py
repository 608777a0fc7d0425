"""Rules of special functions: error functions, gamma functions, entropies."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness._special import (
    DTYPES,
    ERFCX_OVER_RATIO,
    FLAT,
    LOG_ROOT_TAU,
    ROOT_HALF,
    ROOT_TWO,
    moments,
    scale,
)
from pureopt.derivatives._jets._algebra import (
    Axis,
    elementwise,
    integral,
    lift,
    like,
    spread,
    taylor,
)
from pureopt.derivatives._jets._arithmetic import belongs
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._register import rule, univariate_rule

_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)
_ROOT_TWO_PI = math.sqrt(2 * math.pi)


def _bell(x: Jet) -> Jet:
    r""":math:`e^{-x^2/2} / \sqrt{2 \pi}`."""
    return torch.exp(torch.square(x) * -0.5) / _ROOT_TWO_PI


@univariate_rule("erf")
def erf(x: Jet) -> Jet:
    slope = torch.exp(-torch.square(x)) * _TWO_OVER_ROOT_PI
    return integral(x, slope, torch.erf(x.value))


@univariate_rule("erfc")
def erfc(x: Jet) -> Jet:
    slope = torch.exp(-torch.square(x)) * -_TWO_OVER_ROOT_PI
    return integral(x, slope, torch.erfc(x.value))


def _moved(x: Jet, value: Tensor) -> Jet:
    """The same series from another value, where its own is that of another formula."""
    return Axis(value, x.order) if isinstance(x, Axis) else like(x, value, x.terms)


def _ratio(x: Jet, factor: float = 1.0) -> Jet:
    """Mills' ratio at ``factor * x``, where that is not negative, over its scale."""
    value, *outer = moments(factor * x.value, x.order)
    slopes = [c * ((-factor) ** n / math.factorial(n)) for n, c in enumerate(outer, 1)]
    return taylor(x, value, slopes)


@univariate_rule("erfcx")
def erfcx(x: Jet) -> Jet:
    r""":math:`y' = 2 x y - 2 / \sqrt{\pi}`, which cancels where :math:`x > 0`.

    There it is Mills' ratio, with the derivatives of that.
    """
    tail, end = x.value > 0, x.value.isposinf()
    below = _moved(x, torch.where(tail, 0.0, x.value))
    start = torch.special.erfcx(below.value)
    left = elementwise(below, start, lambda u, y: 2 * u * y - _TWO_OVER_ROOT_PI)
    above = _moved(x, torch.where(tail & ~end, x.value, 0.0))
    ratio = _ratio(above, ROOT_TWO) * (scale(ROOT_TWO * above.value) * ERFCX_OVER_RATIO)
    return torch.where(tail, torch.where(end, 0.0, ratio), left)


@univariate_rule("erfinv")
def erfinv(x: Jet) -> Jet:
    def slope(u: Jet, y: Jet) -> Jet:  # noqa: ARG001
        return torch.exp(torch.square(y)) / _TWO_OVER_ROOT_PI

    return elementwise(x, torch.erfinv(x.value), slope)


@univariate_rule("ndtr")
def ndtr(x: Jet) -> Jet:
    return integral(x, _bell(x), torch.special.ndtr(x.value))


@univariate_rule("log_ndtr")
def log_ndtr(x: Jet) -> Jet:
    r""":math:`y' = \varphi(x) / \Phi(x)`; for :math:`x < 0` of Mills' ratio the logarithm.

    There the quotient of two series would cancel.
    """
    if x.dtype not in DTYPES:
        torch.special.log_ndtr(x.value)  # which refuses it
    tail, flat = x.value < 0, x.value > FLAT
    end = x.value.isneginf()
    start = torch.where(tail & ~end, x.value, 0.0)
    ratio = torch.log(_ratio(_moved(x, start), -1.0)) + scale(-start).log()
    parabola = torch.square(_moved(x, torch.where(tail, x.value, 0.0))) * 0.5
    left = torch.where(end, 0.0, ratio) - parabola - LOG_ROOT_TAU
    above = _moved(x, torch.where(tail | flat, 0.0, x.value))
    value = torch.log1p(torch.erfc(above.value * ROOT_HALF) * -0.5)
    right = integral(above, _bell(above) / torch.special.ndtr(above), value)
    return torch.where(tail, left, torch.where(flat, -0.0, right))


@univariate_rule("ndtri")
def ndtri(x: Jet) -> Jet:
    def slope(u: Jet, y: Jet) -> Jet:  # noqa: ARG001
        return torch.exp(torch.square(y) * 0.5) * _ROOT_TWO_PI

    return elementwise(x, torch.special.ndtri(x.value), slope)


def _zeta(s: float, q: Tensor) -> Tensor:
    """The sum of ``(q + i) ** -s`` from ``i = 0``."""
    return torch.special.zeta(s, q)


@univariate_rule("lgamma", "gammaln")
def lgamma(x: Jet) -> Jet:
    r"""Coefficients :math:`(-1)^n \zeta(n, x) / n`, after the first."""
    q = x.value
    outer = [torch.digamma(q)]
    outer += [_zeta(n, q) * ((-1) ** n / n) for n in range(2, x.order + 1)]
    return taylor(x, torch.lgamma(q), outer[: x.order])


@univariate_rule("digamma", "psi")
def digamma(x: Jet) -> Jet:
    r"""Coefficients :math:`(-1)^{n+1} \zeta(n + 1, x)`, after the first."""
    q = x.value
    outer = [_zeta(n + 1, q) * (-1) ** (n + 1) for n in range(1, x.order + 1)]
    return taylor(x, torch.digamma(q), outer)


@rule("polygamma")
def polygamma(n: Any, x: Any) -> Jet:
    r"""Coefficients :math:`(-1)^{n+k+1} \frac{(n+k)!}{k!} \zeta(n + k + 1, x)`."""
    if isinstance(n, Jet):  # the method of a tensor
        n, x = x, n
    if n == 0:
        return digamma(x)
    signed = [(-1) ** (n + k + 1) * math.perm(n + k, n) for k in range(x.order + 1)]
    value, *outer = (_zeta(n + k + 1, x.value) * c for k, c in enumerate(signed))
    return taylor(x, value, outer)


@rule("zeta")
def zeta(s: Any, q: Any) -> Jet:
    r"""Coefficients :math:`(-1)^k \binom{s+k-1}{k} \zeta(s + k, q)`, ``s`` constant."""
    if isinstance(s, Jet):
        raise DerivativeError(
            "jet(f=...)",
            "keep the first argument of `zeta` constant",
            "one that varies",
            "There is no formula for that derivative; detach it, `s.detach()`.",
        )
    if isinstance(s, Tensor):
        q = spread(q, torch.broadcast_shapes(s.shape, q.shape))
    terms, factor = [], 1.0
    for k in range(q.order + 1):
        terms.append(_zeta(s + k, q.value) * factor)
        factor = -factor * (s + k) / (k + 1)
    return taylor(q, terms[0], terms[1:])


@rule("multigammaln", "mvlgamma")
def multigammaln(x: Jet, p: int) -> Jet:
    shifts = torch.arange(p, dtype=x.dtype, device=x.device) / 2
    total = torch.lgamma(torch.unsqueeze(x, -1) - shifts).sum(-1)
    return total + p * (p - 1) / 4 * math.log(math.pi)


@univariate_rule("entr")
def entr(x: Jet) -> Jet:
    y = -x * torch.log(x)
    return like(x, torch.special.entr(x.value), y.terms)


@rule("xlog1py")
def xlog1py(input: Any, other: Any) -> Jet:  # noqa: A002
    """``input * log(1 + other)``, at the ends as ``xlogy``."""
    first = belongs(input, other)
    x, y = lift(first, input), lift(first, other)
    end = (x.value == 0) & ((y.value <= -1) | (y.value == math.inf))
    return x * torch.log1p(torch.where(end, 0.0, y))
