"""Rules of indexing: reading at positions that do not depend on the variable."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness._numeric import is_inexact
from pureopt.derivatives._jets._algebra import lift, linear
from pureopt.derivatives._jets._jet import RULES, Jet
from pureopt.derivatives._jets._register import (
    linear_in_first,
    rule,
    spellings,
    views_of_first,
)
from pureopt.derivatives._jets._shapes import value_of

views_of_first(spellings("__getitem__"))
linear_in_first(
    spellings(
        "index_select",
        "take_along_dim",
        "gather",
        "masked_select",
        "take",
    )
)


def _scattering(op: Callable[..., Any]) -> Callable[..., Any]:
    """Linear in the tensor written to and the tensor that is written, together."""

    def scatter(
        x: Any, dim: int, index: Any, source: Any = None, src: Any = None, **kwargs: Any
    ) -> Any:
        source = src if source is None else source
        first = x if isinstance(x, Jet) else source
        return linear(
            lambda a, b: op(a, dim, index, b, **kwargs),
            lift(first, x),
            lift(first, source),
        )

    return scatter


for _op in spellings("scatter_add", "index_add", "index_copy"):
    RULES[_op] = _scattering(_op)


@rule("scatter")
def scatter(
    input: Any,  # noqa: A002
    dim: int,
    index: Any,
    src: Any = None,
    *,
    value: Any = None,
) -> Any:
    src = value if src is None else src
    first = input if isinstance(input, Jet) else src
    if not isinstance(src, Jet | torch.Tensor):
        src = input.value.new_full((), src).expand(index.shape)
    return linear(
        lambda a, b: torch.scatter(a, dim, index, b),
        lift(first, input),
        lift(first, src),
    )


def _pasting(op: Callable[..., Any]) -> Callable[..., Any]:
    """Linear in both tensors, of which the second is put into the first."""

    def paste(input: Any, src: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
        first = input if isinstance(input, Jet) else src
        jets = lift(first, input), lift(first, src)
        return linear(lambda a, b: op(a, b, *args, **kwargs), *jets)

    return paste


for _op in spellings("select_scatter", "slice_scatter", "diagonal_scatter"):
    RULES[_op] = _pasting(_op)


@rule("index_fill")
def index_fill(input: Any, dim: int, index: Any, value: Any) -> Any:  # noqa: A002
    if isinstance(value, Jet | torch.Tensor):
        if value.ndim or not is_inexact(input):  # which it refuses, or rounds
            return torch.index_fill(value_of(input), dim, index, value_of(value))
        value = value.to(input.dtype)
    # Not by the function itself: of many directions of `value` vmap fills in one.
    shape = [1] * input.ndim
    if shape:
        shape[dim] = input.shape[dim]
    filled = torch.zeros(shape, dtype=torch.bool, device=input.device)
    return torch.where(filled.index_fill(dim, index, True), value, input)


@rule("index_put")
def index_put(input: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:  # noqa: A002
    first = input if isinstance(input, Jet) else values
    jets = lift(first, input), lift(first, values)
    return linear(lambda a, b: torch.index_put(a, indices, b, accumulate), *jets)


def assigned(x: Jet, index: Any, value: Any) -> Jet:
    """``x`` after ``x[index] = value``, where a place is written to once."""
    y = lift(x, value)
    if y.dtype.is_complex and not x.dtype.is_complex:
        got = f"{y.dtype} into {x.dtype}"
        raise DerivativeError("jet(f=...)", "keep the dtype of what it writes to", got)
    index = value_of(index)
    if not y.ndim and _is_mask(index) and index.shape == x.shape[: index.dim()]:
        chosen = index.reshape(*index.shape, *[1] * (x.ndim - index.dim()))
        return torch.where(chosen, y.to(x.dtype), x)  # how many are chosen is not asked
    places = torch.arange(x.value.numel(), device=x.device).reshape(x.shape)[index]
    extra = max(y.ndim - places.ndim, 0)  # of length one, as torch asks
    shape = (*[1] * extra, *places.shape)

    def assign(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        parts = b.to(a.dtype).expand(shape).reshape(-1)
        return a.reshape(-1).scatter(0, places.reshape(-1), parts).reshape(x.shape)

    return linear(assign, x, y)


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


@rule("embedding")
def embedding(
    input: Any,  # noqa: A002
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    indices = value_of(input)
    if isinstance(weight, Jet) and max_norm is not None:
        raise DerivativeError(
            "jet(f=...)",
            "not write in place",
            "`embedding` with `max_norm`, which shortens rows of its weight",
            "Shorten those of a copy: `torch.renorm(weight, 2, 0, max_norm)`.",
        )
    if not isinstance(weight, Jet):  # floating indices: torch says so
        return F.embedding(indices, weight, padding_idx, max_norm, *args, **kwargs)
    y = linear(lambda w: F.embedding(indices, w), weight)
    if padding_idx is None:
        return y
    F.embedding(indices, weight.value, padding_idx)  # which refuses one that is no row
    # Its row is a constant: to gradients, and hence in forward mode, too.
    padding = indices == padding_idx % weight.shape[0]
    return torch.where(padding.unsqueeze(-1), y.value, y)


def _embedding(
    weight: Any, indices: Any, padding_idx: int = -1, *args: Any, **kwargs: Any
) -> Any:
    """The kernel, which has the weight in front."""
    del args, kwargs  # of its gradient
    return embedding(indices, weight, padding_idx if padding_idx >= 0 else None)


RULES[torch.embedding] = _embedding


@rule("pad")
def pad(
    input: Jet,  # noqa: A002
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
) -> Jet:
    y = linear(lambda c: F.pad(c, pad, mode), input)
    if mode == "constant" and value:
        y.value = F.pad(input.value, pad, mode, value)
    return y


@rule("constant_pad_nd")
def constant_pad_nd(input: Jet, pad: Any, value: float = 0) -> Jet:  # noqa: A002
    return F.pad(input, pad, "constant", value)
