"""Rules of arithmetic: sums, products, quotients, powers.

Recurrences of normalized coefficients as in Griewank and Walther (2008), table 13.2.
"""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._exactness._vector_norms import REMEMBERED, absolute
from pureopt.derivatives._jets._algebra import (
    Series,
    aligned,
    constant,
    convolution,
    lift,
    like,
    linear,
    plus,
    product,
    scaled,
    series,
    spread,
    taylor,
    univariate,
)
from pureopt.derivatives._jets._directions import later
from pureopt.derivatives._jets._jet import Coefficient, Jet
from pureopt.derivatives._jets._register import rule, univariate_rule


def belongs(a: Any, b: Any) -> Jet:
    """The first of two operands that is a jet."""
    return a if isinstance(a, Jet) else b


@rule("add", "__add__", "__radd__")
def add(input: Any, other: Any, *, alpha: Any = 1) -> Jet:  # noqa: A002
    x = belongs(input, other)
    if x is input and not isinstance(other, Jet):
        y = like(x, x.value + (other if alpha == 1 else alpha * other), x.terms)
        number = not isinstance(other, Tensor)
        if number or (y.shape, y.dtype) == (x.shape, x.dtype):
            return y
    a, b = (jet.frozen() for jet in aligned(lift(x, input), lift(x, other)))
    if isinstance(alpha, Tensor):  # as it is now, whatever is written to it later
        alpha = alpha.clone()

    def term(k: int, part: slice | None) -> Coefficient:
        return plus(a.coefficient(k, part), scaled(b.coefficient(k, part), alpha))

    value = a.value + (b.value if alpha == 1 else alpha * b.value)
    orders = range(1, x.order + 1)
    return like(x, value, [later(value, [a, b], k, partial(term, k)) for k in orders])


@rule("sub", "subtract", "__sub__")
def sub(input: Any, other: Any, *, alpha: float = 1) -> Jet:  # noqa: A002
    return add(input, other, alpha=-alpha)


@rule("__rsub__", "rsub")
def rsub(input: Any, other: Any, *, alpha: float = 1) -> Jet:  # noqa: A002
    return add(torch.mul(input, -alpha), other)


@rule("neg", "negative", "__neg__")
def neg(x: Jet) -> Jet:
    return linear(torch.neg, x)


@rule("positive", "__pos__")
def positive(x: Jet) -> Jet:
    return x


@rule("mul", "multiply", "__mul__", "__rmul__")
def mul(input: Any, other: Any) -> Jet:  # noqa: A002
    x = belongs(input, other)
    c = other if x is input else input
    if isinstance(c, Jet):
        return square(x) if c is x else product(x, c)
    if isinstance(c, Tensor) and c.dim():
        x, factor = aligned(x, constant(x, c))
        return linear(lambda u: u * factor.value, x)
    return linear(lambda u: u * c, x)


@rule("square")
def square(x: Jet) -> Jet:
    r""":math:`y_k = \sum_j x_j x_{k-j}`, of which half are the other half.

    The square of a norm is what the root was taken of: the derivatives of the root at zero
    are zero by convention, those of the square are not.
    """
    for y, squared in (pair for scope in REMEMBERED.scopes for pair in scope):
        if y is x:
            return lift(x, squared)
    u = series(x)
    orders = range(1, x.order + 1)
    coefficients = [square_at(u, k, summed=x.summed) for k in orders]
    return like(x, x.value * x.value, coefficients)


def square_at(
    u: Series, k: int, *, sign: float = 1, summed: int | None = None
) -> Coefficient:
    """The coefficient of order ``k`` of ``sign`` times the square of a series."""
    return convolution(
        u,
        u,
        k,
        summed=summed,
        weight=lambda j: sign if 2 * j == k else 2 * sign,
        stop=k // 2,
    )


@rule("div", "divide", "true_divide", "__truediv__", "__div__")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:  # noqa: A002
    if rounding_mode is not None:
        value = [v.value if isinstance(v, Jet) else v for v in (input, other)]
        y = torch.div(*value, rounding_mode=rounding_mode)
        return constant(belongs(input, other), y)
    if not isinstance(other, Jet):
        if isinstance(other, Tensor) and other.dim():
            x, divisor = aligned(input, constant(input, other))
            return linear(lambda u: u / divisor.value, x)
        return linear(lambda u: u / other, input)
    a, b = aligned(lift(other, input), other)
    return quotient(a, b)


@rule("__rtruediv__", "__rdiv__")
def rdiv(input: Any, other: Any) -> Any:  # noqa: A002
    return div(other, input)


def quotient(a: Jet, b: Jet) -> Jet:
    r""":math:`y_k = (a_k - \sum_{j=1}^k b_j y_{k-j}) / b_0`."""
    u, v = series(a), series(b)
    y: list[Coefficient] = [a.value / b.value]
    for k in range(1, a.order + 1):
        rest = convolution(v, y, k, summed=a.summed, weight=lambda _: -1.0, start=1)
        top = plus(u[k], rest)
        y.append(None if top is None else top / b.value)
    return like(a, a.value / b.value, y[1:])


@univariate_rule("reciprocal")
def reciprocal(x: Jet) -> Jet:
    return quotient(constant(x, torch.ones_like(x.value)), x)


@univariate_rule("sqrt")
def sqrt(x: Jet) -> Jet:
    r""":math:`y_k = (x_k - \sum_{j=1}^{k-1} y_j y_{k-j}) / 2 y_0`."""
    u = series(x)
    y: list[Coefficient] = [x.value.sqrt()]
    twice = 2 * x.value.sqrt()
    for k in range(1, x.order + 1):
        rest = convolution(
            y, y, k, summed=x.summed, weight=lambda _: -1.0, start=1, stop=k - 1
        )
        top = plus(u[k], rest)
        y.append(None if top is None else top / twice)
    return like(x, x.value.sqrt(), y[1:])


@univariate_rule("rsqrt")
def rsqrt(x: Jet) -> Jet:
    return power(x, -0.5)


@rule("pow", "__pow__")
def pow_(input: Any, exponent: Any) -> Jet:  # noqa: A002
    if isinstance(exponent, Jet):
        return _exponential(input, exponent)
    if isinstance(exponent, Tensor):
        return _tensor_power(input, exponent)
    if float(exponent).is_integer() and exponent >= 0:
        y = whole_power(input, int(exponent))
        return y.frozen() if y is input else y
    return sqrt(input) if exponent == 0.5 else power(input, float(exponent))  # noqa: PLR2004


@rule("float_power")
def float_power(input: Any, exponent: Any) -> Jet:  # noqa: A002
    """The power in double precision."""
    base, p = (
        v.double() if isinstance(v, Jet | Tensor) else v for v in (input, exponent)
    )
    return pow_(base, p)


def _exponential(base: Any, p: Jet) -> Jet:
    """``base`` to a power that varies; all derivatives of powers of the number 0 are 0."""
    a = lift(p, base)
    safe = a if isinstance(base, Jet) else torch.where(a.value == 0, 1.0, a)
    y: Any = torch.exp(p * torch.log(safe))
    return like(p, torch.pow(a.value, p.value), y.terms)


@rule("__rpow__")
def rpow(input: Jet, base: Any) -> Jet:  # noqa: A002
    return pow_(base, input)


def whole_power(x: Jet, n: int) -> Jet:
    """By repeated squaring: right at zero, and of known degree."""
    if n == 0:
        return constant(x, torch.ones_like(x.value))
    if n == 1:
        return x
    half = square(whole_power(x, n // 2))
    return product(half, x) if n % 2 else half


@univariate
def power(x: Jet, p: float) -> Jet:
    r""":math:`k x_0 y_k = \sum_{j=1}^k (p j - (k - j)) x_j y_{k-j}`.

    At :math:`x_0 = 0` the orders below :math:`p` are zero.
    """
    u, value = series(x), x.value**p
    y: list[Coefficient] = [value]
    zero = x.value == 0
    for k in range(1, x.order + 1):
        top = convolution(
            u, y, k, summed=x.summed, weight=lambda j, k=k: (p * j - (k - j)) / k,
            start=1,
        )  # fmt: skip
        if top is None:
            y.append(None)
        elif k < p:
            safe = torch.where(zero, 1, x.value)
            y.append(torch.where(zero, 0, top / safe))
        else:
            y.append(top / x.value)
    return like(x, value, y[1:])


def _tensor_power(x: Jet, p: Tensor) -> Jet:
    r"""Taylor coefficients :math:`\binom{p}{n} x_0^{p-n}`, for any exponents."""
    x = spread(x, torch.broadcast_shapes(x.shape, p.shape))
    terms, falling = [], torch.ones_like(p)
    for n in range(x.order + 1):
        ended = falling == 0
        rest = x.value ** torch.where(ended, 0, p - n)
        terms.append(torch.where(ended, 0, falling * rest / math.factorial(n)))
        falling = falling * (p - n)
    return taylor(x, terms[0], terms[1:])


@rule("abs", "absolute", "__abs__")
def abs_(x: Jet) -> Jet:
    if x.dtype.is_complex:
        return absolute(x)
    sign = torch.sign(x.value)
    return linear(lambda u: u * sign, x)


@rule("addcmul")
def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Jet:  # noqa: A002
    return add(input, torch.mul(tensor1, tensor2), alpha=value)


@rule("addcdiv")
def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Jet:  # noqa: A002
    return add(input, torch.div(tensor1, tensor2), alpha=value)


@rule("lerp")
def lerp(input: Any, end: Any, weight: Any) -> Jet:  # noqa: A002
    return add(input, torch.mul(torch.sub(end, input), weight))


@rule("hypot")
def hypot(input: Any, other: Any) -> Jet:  # noqa: A002
    return sqrt(add(torch.square(input), torch.square(other)))
