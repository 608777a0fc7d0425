"""Rules of eigenvalues and eigenvectors, each order from those below it."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportReturnType=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt._lu import lu_solve
from pureopt.derivatives._exactness import _spectra
from pureopt.derivatives._exactness._numeric import squares
from pureopt.derivatives._jets._algebra import (
    bilinear_term,
    like,
    linear,
    plus,
    scaled,
    series,
)
from pureopt.derivatives._jets._jet import Coefficient, Jet
from pureopt.derivatives._jets._register import rule


class Eigen(NamedTuple):
    """As ``torch.linalg.eigh`` returns it."""

    eigenvalues: Any
    eigenvectors: Any


@rule("linalg.eigh")
def eigh(A: Jet, UPLO: str = "L") -> Eigen:
    values, V = _spectra.eigh(A.value, UPLO)
    turned = linear(lambda c: V.mH @ (0.5 * (c + c.mH)) @ V, A)
    shift, mixing = _perturbed(turned, values)
    length = torch.sqrt(1 + squares(mixing).sum(-2, keepdim=True))
    shift = shift.real if A.dtype.is_complex else shift
    return Eigen(
        like(A, values, shift.coefficients), (V + torch.matmul(V, mixing)) / length
    )


@rule("linalg.eigvalsh")
def eigvalsh(A: Jet, UPLO: str = "L") -> Any:
    return eigh(A, UPLO).eigenvalues


@rule("linalg.eig")
def eig(A: Jet) -> Eigen:
    values, V = _spectra.eig(A.value)
    # Not finite, where there are too few of them.
    lu, pivots, _ = torch.linalg.lu_factor_ex(V)
    turned = linear(lambda c: lu_solve(lu, pivots, c.to(V.dtype) @ V), A)
    shift, mixing = _perturbed(turned, values)
    vectors = V + torch.matmul(V, mixing)
    length = torch.sqrt(squares(vectors).sum(-2, keepdim=True))
    return Eigen(like(A, values, shift.coefficients), vectors / length)


@rule("linalg.eigvals")
def eigvals(A: Jet) -> Any:
    return eig(A).eigenvalues


def _perturbed(turned: Jet, values: Tensor) -> tuple[Jet, Jet]:
    r"""As ``_spectra.perturbed``, with :math:`D_0 = 0`, so that no step is repeated.

    .. math::
        W_k = D_k + \sum_{0<j<k} D_j Z_{k-j}, \qquad \mu_k = \operatorname{diag} W_k, \qquad
        Z_k = \Bigl( W_k - \sum_{0<j<k} \mu_j Z_{k-j} \Bigr) / (\lambda_j - \lambda_i)

    What does not exist between tied eigenvalues is NaN.
    """
    gap, tied = _spectra.gaps(values)
    gap = torch.where(tied, torch.nan, gap)
    zero = torch.zeros_like(turned.value)
    moved = like(turned, zero, turned.coefficients)
    mixing = like(turned, zero, [])
    shift = like(turned, zero[..., 0], [])
    for k in range(1, moved.order + 1):
        new: Coefficient = series(moved)[k]
        rest: Coefficient = None
        for j in range(1, k):
            new = plus(new, bilinear_term(torch.matmul, moved, mixing, j, k - j))
            rest = plus(rest, bilinear_term(_columns, mixing, shift, k - j, j))
        diagonal = None if new is None else new.diagonal(dim1=-2, dim2=-1)
        top = plus(new, scaled(rest, -1))
        column = None if top is None else top / gap
        mixing = like(mixing, zero, [*mixing.coefficients, column])
        shift = like(shift, zero[..., 0], [*shift.coefficients, diagonal])
    return shift, mixing


def _columns(vectors: Tensor, factors: Tensor) -> Tensor:
    return vectors * factors.unsqueeze(-2)
