"""Products and their scans as compositions: trees of multiplications.

A product is a polynomial: where factors are zero its derivatives need the products of
the others, which a quotient by the factor does not give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import Table, is_inexact


def product(x: Tensor) -> Tensor:
    """The product over the last dimension, halved until one factor is left."""
    if not x.shape[-1]:
        return x.sum(-1) + 1
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        y = x[..., :half] * x[..., half : 2 * half]
        x = torch.cat([y, x[..., 2 * half :]], -1) if x.shape[-1] % 2 else y
    return x[..., 0]


def prod(
    input: Tensor,  # noqa: A002
    dim: int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.prod``."""
    x = _promoted(input, dtype)
    if dim is None:
        return product(x.reshape(-1))
    if not x.dim():
        return x.clone()
    y = product(x.movedim(dim, -1))
    return y.unsqueeze(dim) if keepdim else y


def cumprod(
    input: Tensor,  # noqa: A002
    dim: int,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.cumprod``."""
    return _scan(torch.mul, _promoted(input, dtype), dim)


def logcumsumexp(input: Tensor, dim: int) -> Tensor:  # noqa: A002
    """``torch.logcumsumexp``: no prefix is measured by the largest element of all."""
    if not input.dtype.is_floating_point:  # as `logaddexp`
        return torch.logcumsumexp(input, dim)
    return _scan(logaddexp, input, dim)


def logaddexp(input: Tensor, other: Tensor) -> Tensor:  # noqa: A002
    r"""``torch.logaddexp``: :math:`a + \log(1 + e^{b - a})` with ``a`` the larger.

    The formula holds whichever is the larger, hence no derivative jumps where they are
    equal. Beside an infinity, and between two, the derivatives are those of the larger,
    or of the first. Complex numbers, of which none is the larger, are left to torch.
    """
    if input.dtype.is_complex or other.dtype.is_complex:
        return torch.logaddexp(input, other)
    first = input >= other
    a = torch.where(first, input, other)
    b = torch.where(first, other, input)
    apart = a.isinf() | b.isinf()
    gap = torch.where(apart, 0.0, b) - torch.where(apart, 0.0, a)
    more = gap.exp().log1p()
    return torch.where(apart & ~b.isnan(), a, a + more)


def _scan(op: Callable[..., Tensor], x: Tensor, dim: int) -> Tensor:
    """All prefixes, in as many rounds as their number has binary digits.

    References:
        Hillis and Steele (1986), "Data parallel algorithms".
    """
    if not x.dim():
        return x.clone()
    y = x.movedim(dim, -1)
    shift = 1
    while shift < y.shape[-1]:
        y = torch.cat([y[..., :shift], op(y[..., :-shift], y[..., shift:])], -1)
        shift *= 2
    return y.movedim(-1, dim)


def scatter_reduce(
    input: Tensor,  # noqa: A002
    dim: int,
    index: Tensor,
    src: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Tensor:
    """``torch.scatter_reduce``, with products as such; the other reductions are torch's.

    Each place along ``dim`` meets each element of ``src``: the memory is that of ``src``
    times the length of ``input`` along ``dim``.
    """
    if reduce != "prod":
        return torch.scatter_reduce(
            input, dim, index, src, reduce, include_self=include_self
        )
    if not input.dim():
        row, i, x = input.unsqueeze(0), index.reshape(-1), src.reshape(-1)
        return scatter_reduce(row, 0, i, x, reduce, include_self=include_self)[0]
    n = input.shape[dim]
    used = src[tuple(slice(size) for size in index.shape)].movedim(dim, -1)
    places = torch.arange(n, device=index.device)
    meets = index.movedim(dim, -1).unsqueeze(-2) == places.unsqueeze(-1)
    factor = product(torch.where(meets, used.unsqueeze(-2), 1)).movedim(-1, dim)
    hit = meets.any(-1).movedim(-1, dim)
    factor, hit = _grown(factor, input, 1), _grown(hit, input, False)
    kept = input if include_self else torch.where(hit, 1, input)
    return (kept * factor).to(input.dtype)


def _grown(x: Tensor, like: Tensor, value: Any) -> Tensor:
    """``x`` in the shape of ``like``: an index may leave the ends of other dimensions out."""
    pads = [n for a, b in zip(x.shape, like.shape, strict=True) for n in (b - a, 0)]
    return torch.constant_pad_nd(x, pads[::-1], value)


def index_reduce(
    input: Tensor,  # noqa: A002
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Tensor:
    """``torch.index_reduce``: a :func:`scatter_reduce` with one index for each slice."""
    shape = [1] * source.dim()
    if shape:
        shape[dim] = -1
    each = index.reshape(shape).expand(source.shape)
    return scatter_reduce(input, dim, each, source, reduce, include_self=include_self)


def _promoted(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None:
        return x.to(dtype)
    return x if is_inexact(x) else x.long()


PRODUCTS: Table = {
    **dict.fromkeys((torch.prod, torch.Tensor.prod), prod),
    **dict.fromkeys((torch.cumprod, torch.Tensor.cumprod), cumprod),
    **dict.fromkeys((torch.logcumsumexp, torch.Tensor.logcumsumexp), logcumsumexp),
    **dict.fromkeys((torch.logaddexp, torch.Tensor.logaddexp), logaddexp),
    **dict.fromkeys(
        (torch.scatter_reduce, torch.Tensor.scatter_reduce), scatter_reduce
    ),
    **dict.fromkeys((torch.index_reduce, torch.Tensor.index_reduce), index_reduce),
}
