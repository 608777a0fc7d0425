"""Products with what stands in for a sparse matrix, its sums and softmaxes.

Those of ``torch.sparse`` have derivatives with respect to what is stored, those of ``torch``
with respect to all elements: there the rest, which is zero, is multiplied too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import Table
from pureopt.derivatives._exactness._sparse import (
    RULES,
    SparseStandIn,
    as_stand_in,
    flat_places,
    from_dense,
    is_forward,
    mask_of,
    refused,
    scattered,
)
from pureopt.derivatives._exactness._sparse_rules import (
    beside_stored,
    dimension,
    finite,
    is_sparse,
    register,
)

_MATRIX = 2
# In `torch.sparse.mm` and `addmm`.
_NAMES = {0: ("sparse", "dense"), 1: ("input", "mat1", "mat2")}


def _matrix(x: Any) -> SparseStandIn:
    s = as_stand_in(x)
    if s.ndim != _MATRIX or s.places.shape[0] != _MATRIX:
        raise refused("multiply sparse matrices", f"one of {s.ndim} dimensions")
    return s


def _times(
    x: SparseStandIn, dense: Float[Tensor, "n k"], whole: bool
) -> Float[Tensor, "m k"]:
    """Each stored number times a row; with ``whole`` the rest has derivatives too."""
    factors = beside_stored(x, dense.index_select(0, x.places[1]))
    product = _added(x.stored, factors, x.places[0], x.shape[0])
    return product + x.rest @ finite(dense) if whole else product


def _added(
    stored: Float[Tensor, " nnz"], factors: Float[Tensor, "nnz k"], rows: Tensor, m: int
) -> Float[Tensor, "m k"]:
    """The products with the stored numbers of a row, added."""
    shape = torch.Size((m, factors.shape[1]))
    return scattered(stored.unsqueeze(1) * factors, rows.unsqueeze(0), shape)


def _product(input: Any, other: Any, whole: bool) -> SparseStandIn | Tensor:  # noqa: A002
    first, second = (v.shape[-1 if i == 0 else 0] for i, v in enumerate((input, other)))
    if input.ndim > _MATRIX or other.ndim > _MATRIX or first != second:
        shapes = f"{tuple(input.shape)} and {tuple(other.shape)}"
        raise refused(
            "multiply by dense tensors of one or two dimensions that fit", shapes
        )
    if is_sparse(input) and is_sparse(other):
        return _both(_matrix(input), _matrix(other), whole)
    if is_sparse(input):
        columns = other if other.ndim == _MATRIX else other.unsqueeze(1)
        y = _times(_matrix(input), columns, whole)
        return y if other.ndim == _MATRIX else y.squeeze(1)
    y = _product(
        _matrix(other).t(), input.mT if input.ndim == _MATRIX else input, whole
    )
    return y.t() if input.ndim == _MATRIX else y


def _both(x: SparseStandIn, y: SparseStandIn, whole: bool) -> SparseStandIn:
    """Stored where a product of two stored numbers is added; by way of dense ones."""
    kept = x.kept.float() @ y.kept.float() > 0
    if whole:
        return from_dense(x.whole() @ y.whole(), kept, x.layout)
    return from_dense(x.masked() @ y.masked(), kept, x.layout)


def _sparse_mm(
    sparse: Any, dense: Any, reduce: str | None = None
) -> SparseStandIn | Tensor:
    """``torch.sparse.mm``."""
    if reduce is not None:
        raise refused("multiply sparse matrices by sums", f"`reduce={reduce!r}`")
    return _product(sparse, dense, whole=False)


def _matmul(
    input: Any,  # noqa: A002
    other: Any = None,
    *,
    mat2: Any = None,
    vec: Any = None,
) -> SparseStandIn | Tensor:
    given = [x for x in (other, mat2, vec) if x is not None]
    return _product(input, *given, whole=True)


def _linear(
    input: Any,  # noqa: A002
    weight: Any,
    bias: Tensor | None = None,
) -> Any:
    y: Any = _matmul(input, weight.t())
    return y if bias is None else y + bias


def _addmm(whole: bool) -> Callable[..., Any]:
    def rule(
        input: Any,  # noqa: A002
        mat1: Any,
        mat2: Any,
        *,
        beta: float | Tensor = 1,
        alpha: float | Tensor = 1,
    ) -> Any:
        if is_sparse(input):
            raise refused("add products to dense matrices", "a sparse one")
        product = _product(mat1, mat2, whole)
        if isinstance(product, SparseStandIn):
            product = product.whole()
        return _scaled_sum(input, product, beta, alpha)

    return rule


def _scaled_sum(
    input: Tensor,  # noqa: A002
    product: Tensor,
    beta: float | Tensor,
    alpha: float | Tensor,
) -> Tensor:
    """Not a product with the number zero: the input may be NaN."""
    if not isinstance(beta, Tensor) and beta == 0:
        return alpha * product
    return beta * input + alpha * product


def _dims(x: SparseStandIn, dim: int | Sequence[int] | None) -> list[int]:
    if dim is None:
        return [*range(x.ndim)]
    dims = [dimension(x, d) for d in ([dim] if isinstance(dim, int) else dim)]
    if not dims or len({*dims}) < len(dims):
        raise refused("sum over one dimension or more, each once", f"{dim}")
    return sorted(dims)


def _sum(
    input: SparseStandIn,  # noqa: A002
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    axis: int | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> SparseStandIn | Tensor:
    dim = axis if dim is None else dim
    if keepdim:
        raise refused("leave the dimensions out that it sums over", "`keepdim`")
    return _summed(input, dim, dtype, whole=True)


def _sparse_sum(
    input: SparseStandIn,  # noqa: A002
    dim: int | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> SparseStandIn | Tensor:
    """``torch.sparse.sum``: dense where it is over all sparse dimensions."""
    return _summed(input, dim, dtype, whole=False)


def _summed(
    x: SparseStandIn, dim: Any, dtype: torch.dtype | None, whole: bool
) -> SparseStandIn | Tensor:
    if dtype is not None:
        x = x.like(x.stored.to(dtype), x.rest.to(dtype))
    dims, d = _dims(x, dim), x.places.shape[0]
    if dim is None or len(dims) == x.ndim:
        return x.stored.sum() + x.rest.sum() if whole else x.stored.sum()
    inner = [k - d + 1 for k in dims if k >= d]
    stored = x.stored.sum(inner) if inner else x.stored
    rest = x.rest.sum(dims)
    left = [k for k in dims if k < d]
    if len(left) == d:
        return stored.sum(0) + rest if whole else stored.sum(0)
    places = x.places[[k for k in range(d) if k not in left]]
    total = scattered(stored, places, rest.shape)
    kept = x.kept.any(left) if left else x.kept
    return from_dense(total + rest, kept) if whole else mask_of(total, kept)


def _softmax(log: bool) -> Callable[..., Any]:
    """Over what is stored along a sparse dimension; what is not is minus infinity."""

    def rule(
        input: SparseStandIn,  # noqa: A002
        dim: int,
        dtype: torch.dtype | None = None,
    ) -> SparseStandIn:
        input.same_in_all_lanes("a softmax")
        x = input.stored if dtype is None else input.stored.to(dtype)
        d = input.places.shape[0]
        along = dimension(input, dim)
        inner = along >= d
        y = x.log_softmax(along - d + 1) if inner else x - _log_sums(input, x, along)
        return input.like(y if log else y.exp(), torch.zeros_like(input.rest))

    return rule


def _log_sums(s: SparseStandIn, x: Tensor, dim: int) -> Tensor:
    """The logarithms of the sums of exponentials along a dimension, at all places."""
    others = [k for k in range(s.places.shape[0]) if k != dim]
    shape = torch.Size(s.shape[k] for k in others)
    line = flat_places(s.places[others], shape)
    index = line.reshape(-1, *(1,) * (x.ndim - 1)).expand(x.shape)
    start = x.detach().new_full((math.prod(shape), *x.shape[1:]), -torch.inf)
    # A constant, which the sums do not depend on.
    top = start.scatter_reduce(0, index, x.detach(), "amax").index_select(0, line)
    sums = torch.zeros_like(start).index_add(0, line, (x - top).exp())
    return sums.index_select(0, line).log() + top


def _of_constants(func: Any, at: int) -> Callable[..., Any]:
    """For a sparse matrix of torch's own, and a dense one that moves in forward mode.

    Args:
        func: Multiplies the matrix at this place of its arguments and the next one.
        at: The place.
    """

    def composition(*args: Any, **named: Any) -> Any:
        given = (*args, *(named[k] for k in _NAMES[at][len(args) :] if k in named))
        scales = {k: v for k, v in named.items() if k in {"beta", "alpha"}}
        if (
            torch.compiler.is_compiling()
            or len(given) + len(scales) != len(args) + len(named)
            or not _is_moved_by_a_constant(*given[at:])
        ):
            return func(*args, **named)
        a, b = given[at:]
        swap = a.layout == torch.strided
        sparse, dense = (b.t(), a.t()) if swap else (a, b)
        sparse = sparse.coalesce()
        rows, columns = sparse.indices()
        picked = dense.index_select(0, columns)
        y = _added(sparse.values(), picked, rows, sparse.shape[0])
        y = y.t() if swap else y
        if not at:
            return y
        beta, alpha = scales.get("beta", 1), scales.get("alpha", 1)
        return _scaled_sum(given[0], y, beta, alpha)

    composition.__name__ = func.__name__
    return composition


def _is_moved_by_a_constant(*factors: Any) -> bool:
    """Whether these are two matrices that fit, a sparse and a dense one that moves."""
    if len(factors) != _MATRIX or not all(isinstance(x, Tensor) for x in factors):
        return False
    a, b = factors
    layouts = {a.layout, b.layout}
    if layouts != {torch.sparse_coo, torch.strided} or a.dtype != b.dtype:
        return False
    sparse, dense = (b, a) if a.layout == torch.strided else (a, b)
    if not is_forward(dense) or sparse.sparse_dim() != _MATRIX:
        return False
    return a.dim() == b.dim() == _MATRIX and a.shape[1] == b.shape[0]


SPARSE_PRODUCTS: Table = {
    torch.sparse.mm: _of_constants(torch.sparse.mm, 0),
    torch.sparse.addmm: _of_constants(torch.sparse.addmm, 1),
}

RULES.update(
    {
        torch.sparse.mm: _sparse_mm,
        torch.sparse.addmm: _addmm(whole=False),
        torch.sparse.softmax: _softmax(log=False),
        torch.sparse.log_softmax: _softmax(log=True),
        vars(torch)["_sparse_sum"]: _sparse_sum,
        F.linear: _linear,
    }
)
register(_matmul, "mm", "mv", "matmul", "__matmul__")
register(lambda x, y: _matmul(y, x), "__rmatmul__")
register(_addmm(whole=True), "addmm")
register(_sum, "sum")
