"""Rules of norms that are made of pieces; the others are compositions."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness import _products, _vector_norms
from pureopt.derivatives._jets._algebra import constant, like
from pureopt.derivatives._jets._jet import Jet, missing
from pureopt.derivatives._jets._linalg import refused_by_torch
from pureopt.derivatives._jets._register import rule
from pureopt.derivatives._jets._singular import nuclear_norm, svdvals

Dims = int | Sequence[int] | None


def _without(op: Callable[..., Any], option: str) -> DerivativeError:
    where, words, got, hint = missing(op).args
    return DerivativeError(where, words, f"{got} with `{option}`", hint)


@rule("linalg.vector_norm")
def vector_norm(
    x: Jet,
    ord: float = 2,  # noqa: A002
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Jet:
    """The derivatives are those of the elements that count, and shared by equal ones."""
    x = x if dtype is None else x.to(dtype)
    dims = tuple(range(x.ndim)) if dim is None else dim
    if ord == 1:
        return torch.abs(x).sum(dims, keepdim=keepdim)
    if ord == torch.inf:
        return torch.amax(torch.abs(x), dims, keepdim)
    if ord == -torch.inf:
        return torch.amin(torch.abs(x), dims, keepdim)
    if ord == 0:
        return torch.sign(torch.abs(x)).sum(dims, keepdim=keepdim)
    return _vector_norms.vector_norm(x, ord, dim, keepdim)


@rule("linalg.matrix_norm")
def matrix_norm(
    A: Jet,
    ord: float | str = "fro",  # noqa: A002
    dim: Sequence[int] = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """Of all elements, of singular values, or of the sums over rows or columns."""
    ord = _order(ord)  # noqa: A001
    if ord == "fro":
        return vector_norm(A, 2, dim, keepdim, dtype=dtype)
    refused_by_torch(torch.linalg.matrix_norm, A, ord, dim, keepdim, dtype=dtype)
    if not A.value.numel():
        value = torch.linalg.matrix_norm(A.value, ord, dim, keepdim, dtype=dtype)
        return constant(A, value)
    x = A if dtype is None else A.to(dtype)
    rows, columns = (d % x.ndim for d in dim)
    if ord in {2, -2, "nuc"}:
        y = _of_singular_values(x.movedim((rows, columns), (-2, -1)), ord)
        if not keepdim:
            return y
        first, second = sorted((rows, columns))
        return y.unsqueeze(first).unsqueeze(second)
    x = torch.abs(x)
    along, over = (rows, columns) if abs(ord) == 1 else (columns, rows)
    choose = torch.amax if ord > 0 else torch.amin
    y = choose(x.sum(along, keepdim=True), over, True)
    return y if keepdim else y.squeeze(dim)


def _order(ord: Any) -> Any:  # noqa: A002
    """A number where it is one, also in a tensor, which no set of numbers contains."""
    return ord if ord is None or isinstance(ord, str) else float(ord)


def _of_singular_values(A: Jet, ord: float | str) -> Any:  # noqa: A002
    if ord == "nuc":
        return nuclear_norm(A)
    choose = torch.amax if ord == 2 else torch.amin  # noqa: PLR2004
    return choose(svdvals(A), -1)


@rule("linalg.cond")
def cond(A: Jet, p: float | str | None = None) -> Any:
    """Infinite for a singular matrix, where the derivatives are NaN."""
    p = _order(p)
    refused_by_torch(torch.linalg.cond, A, p)
    if not A.value.numel():
        return constant(A, torch.linalg.cond(A.value, p))
    if p in {None, 2, -2}:
        values = svdvals(A)
        largest, smallest = values[..., 0], values[..., -1]
        return smallest / largest if p == -2 else largest / smallest  # noqa: PLR2004
    regular = torch.linalg.inv_ex(A.value).info == 0
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    inverse = torch.linalg.inv(torch.where(regular[..., None, None], A, eye))
    y = matrix_norm(A, p) * matrix_norm(inverse, p)
    value = torch.where(regular, y.value, torch.linalg.cond(A.value.detach(), p))
    terms = y.coefficients
    return like(
        A, value, [c if c is None else c.where(regular, torch.nan) for c in terms]
    )


@rule("scatter_reduce")
def scatter_reduce(
    input: Any,  # noqa: A002
    dim: int,
    index: Any,
    src: Any,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    """Sums and products."""
    if reduce == "prod":
        return _products.scatter_reduce(
            input, dim, index, src, reduce, include_self=include_self
        )
    if reduce != "sum" or not include_self:
        raise _without(torch.scatter_reduce, f"reduce={reduce!r}, {include_self=}")
    return torch.scatter_add(input, dim, index, src)
