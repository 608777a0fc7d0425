"""The algebra of power series: what the rules are made of.

A rule is correct for any order, and for the sums over directions that make Laplacians
cheap, if the coefficients of highest order enter it linearly: so it is for all that is
written with the functions of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from pureopt.derivatives._exactness._numeric import transforms
from pureopt.derivatives._jets._constants import unwritten
from pureopt.derivatives._jets._directions import (
    has_lanes,
    later,
    may_wait,
    put_off,
    sum_of_products,
)
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._later import Coefficient, Later, found

Series = Sequence[Coefficient]


def like(x: Jet, value: Tensor, coefficients: Sequence[Coefficient | Later]) -> Jet:
    """A jet that belongs with ``x``."""
    return Jet(value, coefficients, x.summed)


def constant(x: Jet, value: Tensor) -> Jet:
    """A jet that does not change."""
    return like(x, value, [None] * x.order)


def lift(x: Jet, value: Any) -> Jet:
    """``value``, a jet, a tensor or a number, as a jet that belongs with ``x``."""
    if isinstance(value, Jet):
        return value
    if not isinstance(value, Tensor):
        value = x.value.new_full((), value)
    return constant(x, value)


def series(x: Jet) -> list[Coefficient]:
    """All coefficients, from order zero."""
    return [x.value, *x.coefficients]


def spread(x: Jet, shape: Sequence[int]) -> Jet:
    """``x`` expanded to this shape, so that coefficients of two jets are aligned."""
    if tuple(x.shape) == tuple(shape):
        return x
    return linear(lambda c: c.expand(shape), x)


def aligned(*jets: Jet) -> list[Jet]:
    """The jets expanded to their common shape."""
    shape = torch.broadcast_shapes(*(x.shape for x in jets))
    return [spread(x, shape) for x in jets]


def linear(
    f: Callable[..., Any], *jets: Jet, value: Any = None, of_rows: bool = False
) -> Any:
    """``f(*jets)`` for a function that is linear in all its arguments together.

    Args:
        f: May return a tuple or list of tensors.
        *jets: Its arguments.
        value: The coefficient of order zero, where a constant is added to it.
        of_rows: Whether ``f`` maps over leading dimensions, as those of directions are.
    """
    if value is None:
        value = f(*[x.value for x in jets])
    first = jets[0]
    terms = _linear_terms(f, jets, value, of_rows)
    if isinstance(value, Tensor):
        return like(first, value, terms)
    return type(value)(
        like(first, v, [c if c is None else c[i] for c in terms])
        for i, v in enumerate(value)
    )


def _linear_terms(
    f: Callable[..., Any], jets: Sequence[Jet], value: Any, of_rows: bool
) -> list[Any]:
    """The coefficients above order zero.

    Those of many directions are put off: of one result, since each of several would ask
    for all, and where ``f`` holds nothing that may be written to unseen.
    """
    first = jets[0]
    waits = isinstance(value, Tensor) and may_wait(first, 1)
    late = unwritten(f) if waits else None
    values = [x.value for x in jets]
    terms: list[Any] = []
    for k, coefficients in enumerate(zip(*[x.terms for x in jets], strict=True), 1):
        lanes = has_lanes(first, k)
        mapped = lanes and not of_rows
        if late is None or not lanes:
            terms.append(_linear_at(f, coefficients, values, mapped))
        elif any(c is not None for c in coefficients):
            make = partial(_linear_at, late, coefficients, values, mapped)
            terms.append(put_off(value, jets, k, make, lanes=not of_rows))
        else:
            terms.append(None)
    return terms


def _linear_at(
    f: Callable[..., Any],
    coefficients: Sequence[Coefficient | Later],
    values: Sequence[Tensor],
    mapped: bool,
    part: slice | None = None,
) -> Any:
    """``f`` of coefficients of one order, which zeros like the values fill up.

    It is mapped over the directions where they are a dimension that it does not expect.
    """
    if len(coefficients) == 1:
        c = found(coefficients[0], part)
        if c is None:
            return None
        return vmap(f)(c) if mapped else f(c)
    terms = [found(c, part) for c in coefficients]
    if all(c is None for c in terms):
        return None
    lanes = tuple(None if c is None else 0 for c in terms)
    filled = [
        torch.zeros_like(value) if c is None else c
        for value, c in zip(values, terms, strict=True)
    ]
    return vmap(f, in_dims=lanes)(*filled) if mapped else f(*filled)


def plus(a: Coefficient, b: Coefficient) -> Coefficient:
    """The sum of two coefficients."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def scaled(a: Coefficient, c: float) -> Coefficient:
    """A coefficient times a number."""
    if a is None or c == 1:
        return a
    return -a if c == -1 else a * c


def bilinear(f: Callable[[Tensor, Tensor], Tensor], a: Jet, b: Jet) -> Jet:
    r"""``f(a, b)`` for a function linear in each: :math:`y_k = \sum_j f(a_j, b_{k-j})`."""
    coefficients: list[Coefficient] = []
    for k in range(1, a.order + 1):
        total: Coefficient = None
        for j in range(k + 1):
            total = plus(total, bilinear_term(f, a, b, j, k - j))
        coefficients.append(total)
    return like(a, f(a.value, b.value), coefficients)


def bilinear_term(
    f: Callable[[Tensor, Tensor], Tensor], a: Jet, b: Jet, i: int, j: int
) -> Coefficient:
    left, right = a.coefficient(i), b.coefficient(j)
    if left is None or right is None:
        return None
    lanes = (0 if has_lanes(a, i) else None, 0 if has_lanes(b, j) else None)
    if lanes == (None, None):
        return f(left, right)
    term = vmap(f, in_dims=lanes)(left, right)
    return term.sum(0) if i + j == a.summed else term


def convolution(
    a: Sequence[Coefficient | Later],
    b: Sequence[Coefficient | Later],
    k: int,
    *,
    summed: int | None,
    weight: Callable[[int], float] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Coefficient:
    r""":math:`\sum_j w_j a_j b_{k-j}`, elementwise, over ``start <= j <= stop``."""
    total: Coefficient = None
    # The sum grows in place where no transform looks on.
    alone = not transforms()
    orders = range(start, (k if stop is None else stop) + 1)
    # From that end whose weight is one, if there is: then nothing is scaled at first.
    for j in orders if weight is None or weight(start) == 1 else reversed(orders):
        w = 1 if weight is None else weight(j)
        if a[j] is None or b[k - j] is None or not w:
            continue
        if k == summed and 0 < j < k:
            total = plus(total, scaled(sum_of_products(a[j], b[k - j]), w))
            continue
        left, right = found(a[j]), found(b[k - j])
        if left is None or right is None:
            continue
        if total is None:
            total = left * right if w == 1 else _scaled_product(left, right, w, alone)
        # A series to which a constant of a wider dtype was added has two dtypes.
        elif not alone or not total.dtype == left.dtype == right.dtype:
            total = torch.addcmul(total, left, right, value=w)
        elif w == 1:  # not handed over: that takes a third of a small call
            total.addcmul_(left, right)
        else:
            total.addcmul_(left, right, value=w)
    return total


def _scaled_product(a: Tensor, b: Tensor, c: float, alone: bool) -> Tensor:
    """``c * a * b`` in as few passes over the memory as can be."""
    if alone:
        return (a * b).mul_(c)
    return torch.addcmul(a.new_zeros(()), a, b, value=c)


def product(a: Jet, b: Jet) -> Jet:
    r"""The Cauchy product :math:`y_k = \sum_j a_j b_{k-j}`, elementwise."""
    a, b = aligned(a, b)
    x, y = series(a), series(b)
    coefficients = [
        convolution(x, y, k, summed=a.summed) for k in range(1, a.order + 1)
    ]
    return like(a, a.value * b.value, coefficients)


def integral(x: Jet, slope: Jet, value: Tensor) -> Jet:
    r""":math:`\int s\,dx`, by :math:`k\,y_k = \sum_{j=1}^k j\,x_j\,s_{k-j}`.

    Args:
        x: The argument.
        slope: The derivative with respect to it; its highest coefficient is not used.
        value: The integral at order zero.
    """
    x, slope = aligned(x, slope)
    u, s = _variable(x), series(slope)
    coefficients = [_integral_at(u, s, k, x.summed) for k in range(1, x.order + 1)]
    return like(x, value, coefficients)


class Axis(Jet):
    """The variable itself, ``x + t``; its slope, one, is made where it is asked for.

    A compiler drops by itself what nobody asks for.
    """

    __slots__ = ()

    def __init__(self, value: Tensor, order: int) -> None:
        traced = torch.compiler.is_compiling()
        one = (
            torch.ones_like(value)
            if traced
            else Later(lambda _: torch.ones_like(value))
        )
        super().__init__(value, [one, *[None] * (order - 1)])


def _variable(x: Jet) -> Series | None:
    """The series of ``x``; none for the axis, with which nothing is multiplied."""
    return None if isinstance(x, Axis) else series(x)


def _integral_at(
    u: Series | None, s: Series, k: int, summed: int | None, above: float = 1
) -> Coefficient:
    if u is None:
        return scaled(s[k - 1], 1 if k == 1 else above / k)

    def weight(j: int) -> float:
        return j / k if j == k else above * j / k

    return convolution(u, s, k, summed=summed, weight=weight, start=1)


def ode(
    x: Jet,
    value: Tensor,
    slope: Callable[[Series, int], Coefficient],
    above: float = 1,
) -> Jet:
    r"""The solution of :math:`dy/dx = s(y)`, order by order.

    Args:
        x: The argument.
        value: The solution at order zero.
        slope: ``slope(y, k)`` is the coefficient of order ``k`` of ``s``, from the
            coefficients of ``y`` up to that order.
        above: By what those above order zero are still to be multiplied.
    """
    u = _variable(x)
    y: list[Coefficient] = [value]
    s: list[Coefficient] = []
    for k in range(1, x.order + 1):
        s.append(slope(y, k - 1))
        y.append(_integral_at(u, s, k, x.summed, above))
    return like(x, value, y[1:])


def elementwise(x: Jet, value: Tensor, derivative: Callable[[Jet, Jet], Jet]) -> Jet:
    """``y`` with ``dy/dx = derivative(x, y)``, written with jets.

    Each order is found from those below it, so that the derivative may depend on ``y``.
    """
    u = _variable(x)
    y = like(x, value, [])
    for k in range(x.order):
        slope = lift(x, derivative(like(x, x.value, x.terms[:k]), y))
        new = _integral_at(u, series(slope), k + 1, x.summed)
        y = like(x, value, [*y.coefficients, new])
    return y


def taylor(x: Jet, value: Tensor, outer: Series) -> Jet:
    r"""The composition :math:`c_0 + \sum_n c_n u^n` with :math:`u = x - x_0`.

    Args:
        x: The argument.
        value: The outer function :math:`c_0` at the value of ``x``.
        outer: The coefficients :math:`c_1, \dots, c_K` there: the derivatives of the
            outer function over the factorials.
    """
    if may_wait(x, 1):
        # Read late: by then the value itself may have been written to.
        outer = [_apart(c, value, x.value) for c in outer]
    u = (None, *x.terms)
    powers: list[Sequence[Coefficient | Later]] = [u]
    for n in range(2, len(u)):  # the n-th power begins at order n
        new: list[Coefficient | Later] = [None] * n
        for k in range(n, len(u)):
            power = convolution(u, powers[-1], k, summed=x.summed, start=1, stop=k - 1)
            new.append(power)
        powers.append(new)

    def term(k: int, part: slice | None) -> Coefficient:
        total: Coefficient = None
        for c, power in zip(outer[:k], powers[:k], strict=True):
            p = None if c is None else found(power[k], part)
            if c is not None and p is not None:
                total = c * p if total is None else torch.addcmul(total, c, p)
        return total

    # A product with a constant is as soon made again as read again.
    return like(
        x,
        value,
        [later(value, [x], k, partial(term, k), kept=False) for k in range(1, len(u))],
    )


def _apart(c: Coefficient, *values: Tensor) -> Coefficient:
    """In memory of its own, if it is one of these very tensors."""
    for value in values:
        if c is value:
            return value.clone()
    return c


def univariate(rule: Callable[..., Jet]) -> Callable[..., Jet]:
    """The rule of an elementwise function of one variable, also for many directions.

    All directions share the value, and with it the derivatives of the function there:
    these are found once, along the axis, and composed with each direction.
    """

    @wraps(rule)
    def apply(x: Jet, *args: Any, **kwargs: Any) -> Jet:
        if x.summed is None:
            return rule(x, *args, **kwargs)
        y = rule(Axis(x.value, x.order), *args, **kwargs)
        return taylor(x, y.value, y.coefficients)

    return apply
