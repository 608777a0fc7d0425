"""Rules of reductions and scans."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pureopt.derivatives._exactness._numeric import squares
from pureopt.derivatives._jets._algebra import (
    lift,
    like,
    linear,
)
from pureopt.derivatives._jets._arithmetic import belongs, quotient
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._register import linear_in_first, rule, spellings

linear_in_first(spellings("sum", "mean", "cumsum", "diff", "nansum", "nanmean"))

Dims = int | Sequence[int] | None


def dims_of(x: Jet, dim: Dims) -> tuple[int, ...]:
    """The dimensions; none named is all of them."""
    if dim is None or (not isinstance(dim, int) and not len(dim)):
        return tuple(range(x.ndim))
    return (dim,) if isinstance(dim, int) else tuple(dim)


def _shifted(x: Jet, dims: tuple[int, ...]) -> Jet:
    """``x`` less its largest value, which is as good as constant."""
    if not x.value.numel():
        return x
    top = x.value.detach().amax(dims, keepdim=True) if dims else x.value.detach()
    return x - torch.where(top.isinf(), 0.0, top)


@rule("softmax", "_softmax")
def softmax(
    input: Jet,  # noqa: A002
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Jet:
    x = input if dtype is None else input.to(dtype)
    if dim is None:
        dim = 0 if x.ndim in {0, 1, 3} else 1
    e = torch.exp(_shifted(x, (dim,)))
    total = linear(lambda c: c.sum(dim, keepdim=True).expand(e.shape), e)
    return quotient(e, total)


@rule("softmin")
def softmin(
    input: Jet,  # noqa: A002
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Jet:
    return softmax(-input, dim, dtype=dtype)


@rule("log_softmax", "_log_softmax")
def log_softmax(
    input: Jet,  # noqa: A002
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Jet:
    x = input if dtype is None else input.to(dtype)
    if dim is None:
        dim = 0 if x.ndim in {0, 1, 3} else 1
    y = x - logsumexp(x, dim, keepdim=True)
    return like(x, torch.log_softmax(x.value, dim), y.terms)


@rule("logsumexp")
def logsumexp(input: Jet, dim: Dims, keepdim: bool = False) -> Jet:  # noqa: A002
    dims = dims_of(input, dim)
    total: Any = torch.exp(_shifted(input, dims)).sum(dims, keepdim=keepdim)
    y: Any = torch.log(total)
    return like(input, torch.logsumexp(input.value, dims, keepdim), y.terms)


@rule("logaddexp2")
def logaddexp2(input: Any, other: Any) -> Jet:  # noqa: A002
    log_2 = math.log(2)
    y: Any = torch.logaddexp(input * log_2, other * log_2) / log_2
    first = belongs(input, other)
    a, b = lift(first, input), lift(first, other)
    return like(first, torch.logaddexp2(a.value, b.value), y.terms)


@rule("trapezoid", "trapz")
def trapezoid(y: Any, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Any:
    n = y.shape[dim]
    pair = y.narrow(dim, 1, n - 1) + y.narrow(dim, 0, n - 1)
    if x is None:
        return pair.sum(dim) * (dx / 2)
    if len(x.shape) == 1:
        x = x.reshape(-1, *[1] * (len(y.shape) - 1 - dim % len(y.shape)))
        return (pair * torch.diff(x, dim=0)).sum(dim) / 2
    return (pair * torch.diff(x, dim=dim)).sum(dim) / 2


def _spread_of(
    x: Jet, dim: Any, unbiased: bool | None, correction: float | None, keepdim: bool
) -> tuple[Jet, Jet]:
    """Variance and mean; ``dim`` may be ``unbiased``, as torch has it."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if unbiased is not None:
        correction = float(unbiased)
    dims = dims_of(x, dim)
    n = 1
    for d in dims:
        n *= x.shape[d]
    mean = x.mean(dims, keepdim=True)
    centered = x - mean
    total: Any = squares(centered).sum(dims, keepdim=keepdim)
    degrees = max(0.0, n - (1.0 if correction is None else correction))
    # A division by zero is NaN, as torch has it.
    variance = total / degrees if degrees else total / total.value.new_zeros(())
    return variance, mean if keepdim else mean.reshape(variance.shape)


@rule("var_mean")
def var_mean(
    input: Jet,  # noqa: A002
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Jet, Jet]:
    return _spread_of(input, dim, unbiased, correction, keepdim)


@rule("var")
def var(
    input: Jet,  # noqa: A002
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Jet:
    return _spread_of(input, dim, unbiased, correction, keepdim)[0]
