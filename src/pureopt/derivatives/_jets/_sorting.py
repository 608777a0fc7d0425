"""Rules of functions that choose elements: sorting, largest and smallest, quantiles.

They choose by the values, and the derivatives are those of what is chosen.
"""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt.derivatives._jets._algebra import like, linear
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._piecewise import maximum, minimum
from pureopt.derivatives._jets._reductions import dims_of
from pureopt.derivatives._jets._register import rule


class Selection(NamedTuple):
    """What is chosen and where it was, as torch's functions return it."""

    values: Any
    indices: Tensor


class Extremes(NamedTuple):
    """As ``torch.aminmax`` returns them."""

    min: Any
    max: Any


def picked(x: Jet, indices: Tensor, dim: int) -> Jet:
    """The elements at ``indices`` along ``dim``."""
    return linear(lambda c: torch.gather(c, dim, indices), x)


def _reduced(x: Jet, indices: Tensor, dim: int, keepdim: bool) -> Selection:
    if not x.ndim:
        return Selection(x, indices)
    y = picked(x, indices, dim)
    if keepdim:
        return Selection(y, indices)
    return Selection(y.squeeze(dim), indices.squeeze(dim))


@rule("sort")
def sort(
    input: Jet,  # noqa: A002
    dim: int = -1,
    descending: bool = False,
    stable: bool = False,
) -> Selection:
    found = torch.sort(input.value, dim=dim, descending=descending, stable=stable)
    return Selection(picked(input, found.indices, dim), found.indices)


@rule("msort")
def msort(input: Jet) -> Jet:  # noqa: A002
    return sort(input, 0).values


@rule("topk")
def topk(
    input: Jet,  # noqa: A002
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,  # noqa: A002
) -> Selection:
    indices = torch.topk(input.value, k, dim, largest, sorted).indices
    return Selection(picked(input, indices, dim), indices)


@rule("kthvalue")
def kthvalue(
    input: Jet,  # noqa: A002
    k: int,
    dim: int = -1,
    keepdim: bool = False,
) -> Selection:
    indices = torch.kthvalue(input.value, k, dim, keepdim=True).indices
    return _reduced(input, indices, dim, keepdim)


def _median(op: Callable[..., Any], along: int | None = None) -> Callable[..., Any]:
    """Torch's default is all dimensions for medians, the last for the mode."""

    def choose(
        input: Jet,  # noqa: A002
        dim: int | None = along,
        keepdim: bool = False,
    ) -> Any:
        if dim is None:
            flat = input.reshape(-1)
            return _reduced(flat, op(flat.value, 0, True).indices, 0, False).values
        return _reduced(input, op(input.value, dim, True).indices, dim, keepdim)

    return choose


rule("median")(_median(torch.median))
rule("nanmedian")(_median(torch.nanmedian))
rule("mode")(_median(torch.mode, -1))


def _shared(x: Jet, value: Tensor, dims: int | Sequence[int], keepdim: bool) -> Jet:
    """The extreme ``value``, kept in its dimensions: the mean of all that are equal."""
    mask = (x.value == value) | (x.value.isnan() & value.isnan())
    share = mask.to(x.dtype) / mask.sum(dims, keepdim=True)
    y = linear(
        lambda c: torch.where(mask, c * share, 0.0).sum(dims, keepdim=keepdim), x
    )
    final = value if keepdim else value.reshape(y.shape)
    return like(x, final, y.terms)


@rule("amax")
def amax(input: Jet, dim: Any = (), keepdim: bool = False) -> Jet:  # noqa: A002
    dims = dims_of(input, dim)
    return _shared(input, torch.amax(input.value, dims, keepdim=True), dims, keepdim)


@rule("amin")
def amin(input: Jet, dim: Any = (), keepdim: bool = False) -> Jet:  # noqa: A002
    dims = dims_of(input, dim)
    return _shared(input, torch.amin(input.value, dims, keepdim=True), dims, keepdim)


@rule("aminmax")
def aminmax(input: Jet, *, dim: int | None = None, keepdim: bool = False) -> Extremes:  # noqa: A002
    return Extremes(amin(input, dim, keepdim), amax(input, dim, keepdim))


@rule("max")
def max_(
    input: Any,  # noqa: A002
    dim: Any = None,
    keepdim: bool = False,
    *,
    other: Any = None,
) -> Any:
    if other is not None or isinstance(dim, Jet | Tensor):
        return maximum(input, dim if other is None else other)
    if dim is None:
        return amax(input)
    indices = torch.max(input.value, dim, keepdim=True).indices
    return _reduced(input, indices, dim, keepdim)


@rule("min")
def min_(
    input: Any,  # noqa: A002
    dim: Any = None,
    keepdim: bool = False,
    *,
    other: Any = None,
) -> Any:
    if other is not None or isinstance(dim, Jet | Tensor):
        return minimum(input, dim if other is None else other)
    if dim is None:
        return amin(input)
    indices = torch.min(input.value, dim, keepdim=True).indices
    return _reduced(input, indices, dim, keepdim)


@rule("cummax")
def cummax(input: Jet, dim: int) -> Selection:  # noqa: A002
    indices = torch.cummax(input.value, dim).indices
    return Selection(picked(input, indices, dim), indices)


@rule("cummin")
def cummin(input: Jet, dim: int) -> Selection:  # noqa: A002
    indices = torch.cummin(input.value, dim).indices
    return Selection(picked(input, indices, dim), indices)


@rule("quantile")
def quantile(
    input: Jet,  # noqa: A002
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Jet:
    if not isinstance(q, Tensor) and not 0 <= q <= 1:
        torch.quantile(input.value, q)  # which refuses it
    whole = dim is None or not input.ndim
    x = input.reshape(-1) if whole else input.movedim(dim, -1)
    ordered = sort(x).values
    levels = torch.as_tensor(q, dtype=x.dtype, device=x.device)
    at = levels * (x.shape[-1] - 1)
    y = _between(ordered, at.reshape(-1), interpolation)
    if keepdim:
        shape = [1] * input.ndim if whole else list(input.shape)
        if not whole:
            shape[dim] = 1
        y = y.movedim(-1, 0).reshape(-1, *shape)
    else:
        y = y.movedim(-1, 0)
    y = y if levels.dim() else y.squeeze(0)
    nan = x.value.isnan().any(-1).reshape(y.shape[levels.dim() :])
    return torch.where(nan, torch.nan, y)


def _between(x: Jet, at: Tensor, interpolation: str) -> Jet:
    """The elements of ``x`` at positions that are not whole, along the last dimension."""
    low, high = at.floor().long(), at.ceil().long()
    weight = {
        "linear": at - at.floor(),
        "lower": torch.zeros_like(at),
        "higher": torch.ones_like(at),
        "midpoint": torch.where(low == high, 0.0, 0.5).to(at),
        "nearest": at.round() - at.floor(),
    }[interpolation]
    return torch.lerp(x.index_select(-1, low), x.index_select(-1, high), weight)
