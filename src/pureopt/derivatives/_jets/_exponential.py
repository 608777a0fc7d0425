"""Rules of exponentials, logarithms and the functions made of them.

Recurrences as in Griewank and Walther (2008), table 13.2.
"""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import math
from typing import Any

import torch

from pureopt.derivatives._jets._algebra import (
    Series,
    convolution,
    integral,
    lift,
    like,
    ode,
    plus,
    series,
)
from pureopt.derivatives._jets._arithmetic import belongs, quotient, square, square_at
from pureopt.derivatives._jets._jet import Coefficient, Jet
from pureopt.derivatives._jets._register import rule, univariate_rule


@univariate_rule("exp")
def exp(x: Jet) -> Jet:
    return ode(x, x.value.exp(), lambda y, k: y[k])


@univariate_rule("exp2")
def exp2(x: Jet) -> Jet:
    return like(x, x.value.exp2(), exp(x * math.log(2)).coefficients)


@univariate_rule("expm1")
def expm1(x: Jet) -> Jet:
    return like(x, x.value.expm1(), exp(x).coefficients)


@univariate_rule("log")
def log(x: Jet) -> Jet:
    r""":math:`y_k = (x_k - \sum_{j=1}^{k-1} \tfrac{j}{k} y_j x_{k-j}) / x_0`."""
    u = series(x)
    y: list[Coefficient] = [x.value.log()]
    for k in range(1, x.order + 1):
        rest = convolution(
            y, u, k, summed=x.summed, weight=lambda j, k=k: -j / k, start=1, stop=k - 1
        )
        top = plus(u[k], rest)
        y.append(None if top is None else top / x.value)
    return like(x, x.value.log(), y[1:])


@univariate_rule("log1p")
def log1p(x: Jet) -> Jet:
    return like(x, x.value.log1p(), log(x + 1).coefficients)


@univariate_rule("log2")
def log2(x: Jet) -> Jet:
    return like(x, x.value.log2(), (log(x) / math.log(2)).coefficients)


@univariate_rule("log10")
def log10(x: Jet) -> Jet:
    return like(x, x.value.log10(), (log(x) / math.log(10)).coefficients)


@univariate_rule("tanh")
def tanh(x: Jet) -> Jet:
    r""":math:`y' = (1 - y^2) x'`."""
    value = x.value.tanh()
    one = torch.ones((), dtype=value.dtype, device=value.device)
    first = torch.addcmul(one, value, value, value=-1)

    def slope(y: Series, k: int) -> Coefficient:
        # Half the square, most of whose terms have the factor one.
        return square_at(y, k, sign=0.5) if k else first

    return ode(x, value, slope, above=-2)


@univariate_rule("sigmoid", "expit")
def sigmoid(x: Jet) -> Jet:
    r""":math:`y' = y (1 - y) x'`."""
    value = x.value.sigmoid()
    first = value * (-x.value).sigmoid()

    def slope(y: Series, k: int) -> Coefficient:
        return plus(y[k], square_at(y, k, sign=-1)) if k else first

    return ode(x, value, slope)


@univariate_rule("sinh")
def sinh(x: Jet) -> Jet:
    e, r = exp(x), exp(-x)
    return like(x, x.value.sinh(), ((e - r) / 2).coefficients)


@univariate_rule("cosh")
def cosh(x: Jet) -> Jet:
    e, r = exp(x), exp(-x)
    return like(x, x.value.cosh(), ((e + r) / 2).coefficients)


@univariate_rule("asinh", "arcsinh")
def asinh(x: Jet) -> Jet:
    return integral(x, torch.rsqrt(square(x) + 1), x.value.asinh())


@univariate_rule("acosh", "arccosh")
def acosh(x: Jet) -> Jet:
    return integral(x, torch.rsqrt(square(x) - 1), x.value.acosh())


@univariate_rule("atanh", "arctanh")
def atanh(x: Jet) -> Jet:
    return integral(x, torch.reciprocal(1 - square(x)), x.value.atanh())


@univariate_rule("logit")
def logit(x: Jet, eps: float | None = None) -> Jet:
    if eps is not None:
        x = torch.clamp(x, eps, 1 - eps)
    return log(quotient(x, 1 - x))


@rule("xlogy")
def xlogy(input: Any, other: Any) -> Jet:  # noqa: A002
    r"""``input * log(other)``; 0 where ``input`` is, also beside an infinite logarithm."""
    first = belongs(input, other)
    x, y = lift(first, input), lift(first, other)
    end = (x.value == 0) & ((y.value <= 0) | (y.value == math.inf))
    return x * torch.log(torch.where(end, 1.0, y))
