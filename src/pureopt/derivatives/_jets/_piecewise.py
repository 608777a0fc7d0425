"""Rules of functions that are made of pieces: clamps, choices of two, remainders.

The derivatives are those of the piece that holds the value. On a border they are what
torch's own are.
"""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._jets._algebra import aligned, lift, like, linear
from pureopt.derivatives._jets._arithmetic import belongs
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._register import rule
from pureopt.derivatives._jets._shapes import value_of


def kept(mask: Tensor, x: Jet) -> Jet:
    """``x`` where ``mask``, zero elsewhere."""
    return linear(lambda c: torch.where(mask, c, 0.0), x)


def _sides(input: Any, other: Any) -> tuple[Jet, Jet]:  # noqa: A002
    first = belongs(input, other)
    a, b = aligned(lift(first, input), lift(first, other))
    return a, b


@rule("clamp", "clip")
def clamp(input: Any, min: Any = None, max: Any = None) -> Any:  # noqa: A002
    y = input
    if min is not None:
        y = torch.where(value_of(y) < value_of(min), min, y)
    if max is not None:
        y = torch.where(value_of(y) > value_of(max), max, y)
    return y


@rule("clamp_min")
def clamp_min(input: Any, min: Any) -> Any:  # noqa: A002
    return clamp(input, min=min)


@rule("clamp_max")
def clamp_max(input: Any, max: Any) -> Any:  # noqa: A002
    return clamp(input, max=max)


@rule("maximum")
def maximum(input: Any, other: Any) -> Jet:  # noqa: A002
    """The mean of both where they are equal."""
    a, b = _sides(input, other)
    # Not a weighted sum: the other side may be infinite, as `log(x)` is at zero.
    first, equal = a.value > b.value, a.value == b.value
    y = linear(
        lambda c, d: torch.where(equal, (c + d) / 2, torch.where(first, c, d)), a, b
    )
    return like(a, torch.maximum(a.value, b.value), y.terms)


@rule("minimum")
def minimum(input: Any, other: Any) -> Jet:  # noqa: A002
    a, b = _sides(input, other)
    return -maximum(-a, -b)


@rule("fmax")
def fmax(input: Any, other: Any) -> Jet:  # noqa: A002
    """The first where they are equal, and the other where one is NaN."""
    a, b = _sides(input, other)
    return torch.where((a.value >= b.value) | b.value.isnan(), a, b)


@rule("fmin")
def fmin(input: Any, other: Any) -> Jet:  # noqa: A002
    a, b = _sides(input, other)
    return torch.where((a.value <= b.value) | b.value.isnan(), a, b)


def _less_whole(
    op: Callable[..., Tensor],
    rounding: str,
    input: Any,  # noqa: A002
    other: Any,
) -> Jet:
    """``input - n * other`` for the whole number ``n`` that ``op`` takes off."""
    a, b = _sides(input, other)
    n = torch.div(a.value, b.value, rounding_mode=rounding)
    y = linear(lambda c, d: c - n * d, a, b)
    return like(a, op(a.value, b.value), y.terms)


@rule("remainder", "__mod__")
def remainder(input: Any, other: Any) -> Jet:  # noqa: A002
    return _less_whole(torch.remainder, "floor", input, other)


@rule("__rmod__")
def rmod(input: Any, other: Any) -> Jet:  # noqa: A002
    return remainder(other, input)


@rule("fmod")
def fmod(input: Any, other: Any) -> Jet:  # noqa: A002
    return _less_whole(torch.fmod, "trunc", input, other)


@rule("floor_divide", "__floordiv__")
def floor_divide(input: Any, other: Any) -> Any:  # noqa: A002
    return torch.div(input, other, rounding_mode="floor")


@rule("__rfloordiv__")
def rfloordiv(input: Any, other: Any) -> Any:  # noqa: A002
    return floor_divide(other, input)


@rule("frac")
def frac(x: Jet) -> Jet:
    return like(x, torch.frac(x.value), x.terms)


@rule("rad2deg")
def rad2deg(x: Jet) -> Jet:
    return linear(torch.rad2deg, x)


@rule("deg2rad")
def deg2rad(x: Jet) -> Jet:
    return linear(torch.deg2rad, x)


@rule("copysign")
def copysign(input: Any, other: Any) -> Jet:  # noqa: A002
    a, b = _sides(input, other)
    value = torch.copysign(a.value, b.value)
    sign = torch.sign(a.value) * torch.sign(value)
    return like(a, value, linear(lambda c: c * sign, a).terms)
