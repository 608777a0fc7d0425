"""Rules of linear algebra: factorizations and systems, each order from those below it.

Every order costs products with matrices and one solution with the factors of the value.
"""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt import _lu
from pureopt._errors import DerivativeError, told
from pureopt.derivatives._jets._algebra import (
    bilinear_term,
    lift,
    like,
    linear,
    plus,
    scaled,
    series,
    spread,
)
from pureopt.derivatives._jets._arithmetic import belongs
from pureopt.derivatives._jets._directions import has_lanes
from pureopt.derivatives._jets._jet import Coefficient, Jet
from pureopt.derivatives._jets._register import rule
from pureopt.derivatives._jets._shapes import value_of


class CholeskyFactor(NamedTuple):
    """As ``torch.linalg.cholesky_ex`` returns it."""

    L: Any
    info: Tensor


class LuFactor(NamedTuple):
    """As ``torch.linalg.lu_factor`` returns it."""

    LU: Any
    pivots: Tensor


class LuFactorEx(NamedTuple):
    """As ``torch.linalg.lu_factor_ex`` returns it."""

    LU: Any
    pivots: Tensor
    info: Tensor


def convolved(a: Jet, b: Jet, k: int, start: int, stop: int) -> Coefficient:
    r""":math:`\sum_j a_j b_{k-j}` of matrices, over ``start <= j <= stop``."""
    total: Coefficient = None
    for j in range(start, stop + 1):
        total = plus(total, bilinear_term(torch.matmul, a, b, j, k - j))
    return total


def _solved(a: Jet, b: Jet, back: Callable[[Tensor], Tensor]) -> Jet:
    r"""``a @ x == b``: :math:`x_k = a_0^{-1} (b_k - \sum_{j=1}^k a_j x_{k-j})`."""
    x = like(a, back(b.value), [])
    for k in range(1, a.order + 1):
        rest = convolved(a, x, k, 1, k)
        top = plus(series(b)[k], scaled(rest, -1))
        x = like(a, x.value, [*x.coefficients, None if top is None else back(top)])
    return x


def _batched(a: Jet, b: Jet) -> Jet:
    """``b`` with the batch dimensions of the solution."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return spread(b, (*batch, *b.shape[-2:]))


@rule("linalg.solve")
def solve(A: Any, B: Any, *, left: bool = True) -> Any:
    first = belongs(A, B)
    a, b = lift(first, A), lift(first, B)
    if b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1]):
        return solve(a, b.unsqueeze(-1)).squeeze(-1)
    if not left:
        return solve(a.mT, b.mT).mT
    packed, pivots = torch.linalg.lu_factor(a.value)

    def back(c: Tensor) -> Tensor:
        return _lu.lu_solve(packed, pivots, c)

    return _solved(a, _batched(a, b), back)


@rule("linalg.inv", "inverse")
def inv(A: Jet) -> Jet:
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return solve(A, eye.expand(A.shape))


def refused_by_torch(f: Callable[..., Any], A: Jet, *args: Any, **kwargs: Any) -> None:
    """Raise as torch does of such a shape and such options, without its work."""
    f(torch.empty(A.shape, dtype=A.dtype, device="meta"), *args, **kwargs)


class Inverse(NamedTuple):
    """As ``torch.linalg.inv_ex`` returns it."""

    inverse: Any
    info: Tensor


@rule("linalg.inv_ex")
def inv_ex(A: Jet, *, check_errors: bool = False) -> Inverse:
    """Of a singular matrix what torch makes of it, whose derivatives are not finite."""
    found = torch.linalg.inv_ex(A.value, check_errors=check_errors)
    packed, pivots, _ = torch.linalg.lu_factor_ex(A.value)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(A.shape)
    x = _solved(A, lift(A, eye), lambda c: _lu.lu_solve(packed, pivots, c))
    return Inverse(like(A, found.inverse, x.coefficients), found.info)


@rule("linalg.tensorinv")
def tensorinv(A: Jet, ind: int = 2) -> Any:
    value = torch.linalg.tensorinv(A.value, ind)  # torch refuses what is not square
    rows = math.prod(A.shape[:ind])
    return inv(A.reshape(rows, -1)).reshape(value.shape)


@rule("linalg.solve_triangular")
def solve_triangular(
    A: Any,
    B: Any,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Any:
    first = belongs(A, B)
    a, b = lift(first, A), lift(first, B)
    if not left:
        flags = {"upper": not upper, "unitriangular": unitriangular}
        return solve_triangular(a.mT, b.mT, **flags).mT
    edge = 1 if unitriangular else 0
    used = torch.triu(a, edge) if upper else torch.tril(a, -edge)

    def back(c: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(
            a.value, c, upper=upper, unitriangular=unitriangular
        )

    return _solved(used, _batched(a, b), back)


@rule("linalg.cholesky_ex")
def cholesky_ex(
    A: Jet, *, upper: bool = False, check_errors: bool = False
) -> CholeskyFactor:
    r""":math:`L_k = L_0 \Phi(L_0^{-1} (A_k - \sum_{0<j<k} L_j L_{k-j}^H) L_0^{-H})`.

    :math:`\Phi` is the lower triangle with half of the diagonal.

    References:
        Murray (2016), "Differentiation of the Cholesky decomposition", for the first
        order.
    """
    value, info = torch.linalg.cholesky_ex(A.value, check_errors=check_errors)
    a, factor = linear(lambda c: (c + c.mH) / 2, A), like(A, value, [])
    for k in range(1, A.order + 1):
        rest = convolved(factor, factor.mH, k, 1, k - 1)
        top = plus(series(a)[k], scaled(rest, -1))
        new = None if top is None else torch.matmul(value, _lower_half(value, top))
        factor = like(A, value, [*factor.coefficients, new])
    return CholeskyFactor(factor.mH if upper else factor, info)


def _lower_half(L: Tensor, R: Tensor) -> Tensor:
    half = torch.linalg.solve_triangular(L, R, upper=False)
    both = torch.linalg.solve_triangular(L, half.mH, upper=False)
    diagonal = torch.diagonal(both, dim1=-2, dim2=-1)
    return both.tril() - torch.diag_embed(diagonal) / 2


@rule("cholesky")
def cholesky(A: Jet, upper: bool = False) -> Jet:
    return cholesky_ex(A, upper=upper, check_errors=True).L


@rule("linalg.lu_factor_ex")
def lu_factor_ex(
    A: Jet, *, pivot: bool = True, check_errors: bool = False
) -> LuFactorEx:
    r""":math:`L_k + U_k` from :math:`M = L_0^{-1} (P^T A_k - \sum_{0<j<k} L_j U_{k-j}) U_0^{-1}`.

    Its lower triangle without the diagonal is :math:`L_0^{-1} L_k`, its upper one
    :math:`U_k U_0^{-1}`. The rows that are exchanged are those of the value.
    """
    if A.shape[-1] != A.shape[-2]:
        where = "jet(f=...)"
        raise DerivativeError(where, "factor square matrices", told(A.value))
    packed, pivots, info = torch.linalg.lu_factor_ex(
        A.value, pivot=pivot, check_errors=check_errors
    )
    P, L0, U0 = torch.lu_unpack(packed, pivots)
    a = linear(lambda c: P.mT @ c, A)
    low, up = like(A, L0, []), like(A, U0, [])
    for k in range(1, A.order + 1):
        top = plus(series(a)[k], scaled(convolved(low, up, k, 1, k - 1), -1))
        below = above = None
        if top is not None:
            right = torch.linalg.solve_triangular(U0, top, upper=True, left=False)
            M = torch.linalg.solve_triangular(
                L0, right, upper=False, unitriangular=True
            )
            below, above = L0 @ M.tril(-1), M.triu() @ U0
        low = like(A, L0, [*low.coefficients, below])
        up = like(A, U0, [*up.coefficients, above])
    both = [plus(x, y) for x, y in zip(low.coefficients, up.coefficients, strict=True)]
    return LuFactorEx(like(A, packed, both), pivots, info)


@rule("lu_factor")
def lu_factor(A: Jet, *, pivot: bool = True) -> LuFactor:
    return LuFactor(*lu_factor_ex(A, pivot=pivot, check_errors=True)[:2])


@rule("matrix_power")
def matrix_power(A: Jet, n: int) -> Jet:
    if n < 0:
        return matrix_power(inv(A), -n)
    if n == 0:
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        return lift(A, eye.expand(A.shape).clone())
    if n == 1:
        return A.frozen()  # a copy
    half = matrix_power(A, n // 2)
    even = torch.matmul(half, half)
    return torch.matmul(even, A) if n % 2 else even


@rule("linalg.multi_dot", "chain_matmul")
def multi_dot(tensors: Any, *more: Any) -> Any:
    factors = (tensors, *more) if more else tensors
    return functools.reduce(torch.matmul, factors)


def _powers(x: Jet, n: int | None) -> list[Any]:
    powers: list[Any] = [torch.ones_like(x)]
    for _ in range(1, x.shape[-1] if n is None else n):
        powers.append(powers[-1] * x)
    return powers


@rule("vander")
def vander_(x: Jet, N: int | None = None, increasing: bool = False) -> Any:
    value = torch.vander(x.value, N, increasing)
    if not value.numel():
        return like(x, value, [None] * x.order)
    powers = _powers(x, N)
    return torch.stack(powers if increasing else powers[::-1], -1)


@rule("linalg.vander")
def vander(x: Jet, *, N: int | None = None) -> Any:
    refused_by_torch(torch.linalg.vander, x, N=N)
    return torch.stack(_powers(x, N), -1)


@rule("matrix_exp")
def matrix_exp(A: Jet) -> Jet:
    r"""The first block row of the exponential of the block Toeplitz matrix of the series.

    References:
        Higham (2008), "Functions of Matrices", section 3.2, for the first order.
    """
    u = series(A)
    last = A.order if A.summed is None else min(A.order, A.summed - 1)
    value = torch.matrix_exp(A.value)
    if all(c is None for c in u[1:]):
        return like(A, value, u[1:])
    rows = _exponential_of(u[: last + 1], A, last)
    coefficients: list[Coefficient] = [*rows[1:]]
    if last < A.order:
        # The coefficient that is a sum enters linearly; the others for each direction.
        total = _exponential_of([*u[: last + 1], None], A, last + 1)[-1]
        top = None if u[-1] is None else _exponential_of([u[0], u[-1]], A, 0)[-1]
        some = any(c is not None for c in u[1:-1])
        coefficients.append(plus(total.sum(0) if some else None, top))
    return like(A, value, coefficients)


def _exponential_of(u: Sequence[Coefficient], A: Jet, laned: int) -> list[Tensor]:
    """The series of the exponential; coefficients 1 to ``laned`` may have directions."""
    lanes = [
        c.shape[0]
        for k, c in enumerate(u)
        if c is not None and 0 < k <= laned and has_lanes(A, k)
    ]
    shape = (*lanes[:1], *A.shape)
    zero = A.value.new_zeros(shape)
    filled = [zero if c is None else c.expand(shape) for c in u]
    K, n = len(u), A.shape[-1]
    rows = [torch.cat([zero] * i + filled[: K - i], -1) for i in range(K)]
    first = torch.matrix_exp(torch.cat(rows, -2))[..., :n, :]
    return list(first.split(n, -1))


@rule("linalg.lu")
def lu(A: Jet, *, pivot: bool = True) -> tuple[Tensor, Jet, Jet]:
    LU, pivots, _ = lu_factor_ex(A, pivot=pivot)
    P, L, _ = torch.lu_unpack(value_of(LU), pivots)
    below: Any = torch.tril(LU, -1)
    return P, like(A, L, below.terms), torch.triu(LU)
