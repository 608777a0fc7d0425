"""Determinants as compositions of the LU factorization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._lu import lu_solve
from pureopt._tracing import as_traced
from pureopt.derivatives._exactness._elementwise import sgn
from pureopt.derivatives._exactness._numeric import RESULTS, Table, is_square
from pureopt.derivatives._exactness._products import product
from pureopt.derivatives._exactness._vector_norms import absolute

# So many singular values may be zero where a determinant has right derivatives.
_CORANK = 3


def det(A: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""``torch.linalg.det``, which is a polynomial, around singular matrices too.

    .. math::
        \det A = \det B \, \det(I - V^H B^{-1} U C), \qquad B = A + U C V^H

    holds for any constants ``U, C, V``. They are the last three singular vectors at
    ``A``, and ``C`` is zero unless the singular value is: elsewhere ``B = A``. The second
    determinant, of a 3 x 3 matrix, is the polynomial that vanishes where ``A`` is singular.
    """
    if not is_square(A):
        return torch.linalg.det(A)  # which refuses it
    if not A.shape[-1]:
        return A.new_ones(A.shape[:-2])
    left, right = (as_traced(c, A[..., :1, :1]) for c in _deficiency(A.detach()))
    lu, pivots, _ = torch.linalg.lu_factor_ex(A + left @ right)
    # Not `@`, whose operands a compiler exchanges if one of them is a power series.
    small = torch.matmul(right, lu_solve(lu, pivots, left))
    eye = torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
    by_cofactors = _cofactors(eye - small)
    sign = as_traced(_parity(pivots, lu), lu[..., 0, 0])
    return product(lu.diagonal(dim1=-2, dim2=-1)) * sign * by_cofactors


def _deficiency(A: Tensor) -> tuple[Tensor, Tensor]:
    """``U C`` and ``V^H``: constants, hence of a matrix that is not differentiated."""
    # The SVD of a batch with one bad element raises for all of them.
    u, s, vh = torch.linalg.svd(torch.where(A.isfinite(), A, 0.0))
    largest = s[..., :1]
    nearly = s <= torch.finfo(s.dtype).eps ** 0.5 * largest
    c = torch.where(nearly, torch.where(largest == 0, 1.0, largest), 0.0)
    k = min(_CORANK, A.shape[-1])
    return u[..., -k:] * c[..., None, -k:], vh[..., -k:, :]


def _cofactors(A: Tensor) -> Tensor:
    """The determinant by expansion along the first row."""
    n = A.shape[-1]
    if n == 1:
        return A[..., 0, 0]
    columns = [[j for j in range(n) if j != i] for i in range(n)]
    terms = [A[..., 0, i] * _cofactors(A[..., 1:, columns[i]]) for i in range(n)]
    return sum(terms[2::2], terms[0]) - sum(terms[3::2], terms[1])


def _parity(pivots: Tensor, like: Tensor) -> Tensor:
    """The sign of a permutation, from the rows that LAPACK exchanged."""
    rows = torch.arange(1, pivots.shape[-1] + 1, device=pivots.device)
    odd = (pivots != rows).sum(-1) % 2 == 1
    return torch.where(odd, -1.0, 1.0).to(like.dtype)


def slogdet(A: Float[Tensor, "*batch n n"]) -> tuple[Tensor, Tensor]:
    r"""``torch.linalg.slogdet``: :math:`\sum_i \log |u_{ii}|`, and the sign of the product."""
    if not is_square(A):
        return torch.linalg.slogdet(A)  # which refuses it
    lu, pivots, _ = torch.linalg.lu_factor_ex(A)
    pivot = lu.diagonal(dim1=-2, dim2=-1)
    sign = product(sgn(pivot)) * _parity(pivots, lu)
    return RESULTS.linalg_slogdet((sign, absolute(pivot).log().sum(-1)))


def _named_input(f: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """What is ``A`` in ``torch.linalg`` is ``input`` in ``torch``."""

    def named(input: Tensor) -> Any:  # noqa: A002
        return f(input)

    return named


def logdet(input: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:  # noqa: A002
    """``torch.logdet``: NaN where the determinant is negative."""
    if not is_square(input):
        return torch.logdet(input)  # which refuses it
    sign, log_abs_det = slogdet(input)
    return log_abs_det + sign.log()


DETERMINANTS: Table = {
    **dict.fromkeys((torch.linalg.det, torch.Tensor.det), det),
    **dict.fromkeys((torch.linalg.slogdet, torch.Tensor.slogdet), slogdet),
    torch.det: _named_input(det),
    torch.slogdet: _named_input(slogdet),
    **dict.fromkeys((torch.logdet, torch.Tensor.logdet), logdet),
}
