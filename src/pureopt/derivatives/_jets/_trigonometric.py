"""Rules of trigonometric functions and their inverses.

Recurrences as in Griewank and Walther (2008), table 13.2.
"""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import torch

from pureopt.derivatives._jets._algebra import (
    Series,
    aligned,
    convolution,
    integral,
    lift,
    like,
    ode,
    series,
)
from pureopt.derivatives._jets._arithmetic import belongs, square, square_at
from pureopt.derivatives._jets._jet import Coefficient, Jet
from pureopt.derivatives._jets._register import rule, univariate_rule


def sin_cos(x: Jet) -> tuple[Jet, Jet]:
    r"""Both at once: :math:`s' = c\,x', c' = -s\,x'`."""
    u = series(x)
    s: list[Coefficient] = [x.value.sin()]
    c: list[Coefficient] = [x.value.cos()]
    for k in range(1, x.order + 1):
        s.append(
            convolution(u, c, k, summed=x.summed, weight=lambda j, k=k: j / k, start=1)
        )
        c.append(
            convolution(u, s, k, summed=x.summed, weight=lambda j, k=k: -j / k, start=1)
        )
    return like(x, x.value.sin(), s[1:]), like(x, x.value.cos(), c[1:])


@univariate_rule("sin")
def sin(x: Jet) -> Jet:
    return sin_cos(x)[0]


@univariate_rule("cos")
def cos(x: Jet) -> Jet:
    return sin_cos(x)[1]


@univariate_rule("tan")
def tan(x: Jet) -> Jet:
    r""":math:`y' = (1 + y^2) x'`."""
    value = x.value.tan()
    first = 1 + value * value

    def slope(y: Series, k: int) -> Coefficient:
        return square_at(y, k) if k else first

    return ode(x, value, slope)


@univariate_rule("asin", "arcsin")
def asin(x: Jet) -> Jet:
    return integral(x, torch.rsqrt(1 - square(x)), x.value.asin())


@univariate_rule("acos", "arccos")
def acos(x: Jet) -> Jet:
    return integral(x, -torch.rsqrt(1 - square(x)), x.value.acos())


@univariate_rule("atan", "arctan")
def atan(x: Jet) -> Jet:
    return integral(x, torch.reciprocal(square(x) + 1), x.value.atan())


@rule("atan2", "arctan2")
def atan2(input: Any, other: Any) -> Jet:  # noqa: A002
    r"""The angle of :math:`(x, y)`: :math:`\theta' = (x y' - y x') / (x^2 + y^2)`."""
    first = belongs(input, other)
    y, x = aligned(lift(first, input), lift(first, other))
    radius = square(x) + square(y)
    value = torch.atan2(y.value, x.value)
    along = integral(y, x / radius, value)
    against = integral(x, y / radius, torch.zeros_like(value))
    return along - against


@univariate_rule("sinc")
def sinc(x: Jet) -> Jet:
    r""":math:`\sin(\pi x) / \pi x`, by its power series where :math:`|x|` is small."""
    pi_x = x * torch.pi
    small = pi_x.value.abs() < 1
    near = torch.where(small, pi_x, torch.zeros_like(pi_x))
    far = torch.where(small, torch.ones_like(pi_x), pi_x)
    u, y = square(near), None
    for n in range(14 + (x.order + 1) // 2, 0, -1):
        factor = u / (-2.0 * n * (2 * n + 1))
        y = factor + 1 if y is None else factor * y + 1
    y = torch.where(small, y, sin(far) / far)
    return like(x, torch.sinc(x.value), y.coefficients)
