"""Rules of orthogonal factors, and of the least squares that are solved with them."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt.derivatives._jets._algebra import like, linear, plus, scaled, series
from pureopt.derivatives._jets._arithmetic import belongs
from pureopt.derivatives._jets._jet import Coefficient, Jet
from pureopt.derivatives._jets._linalg import convolved, solve_triangular
from pureopt.derivatives._jets._register import rule
from pureopt.derivatives._jets._shapes import value_of


class Factors(NamedTuple):
    """As ``torch.linalg.qr`` returns it."""

    Q: Any
    R: Any


class LeastSquares(NamedTuple):
    """As ``torch.linalg.lstsq`` returns it."""

    solution: Any
    residuals: Any
    rank: Tensor
    singular_values: Tensor


@rule("qr")
def qr_(input: Jet, some: bool = True) -> Factors:  # noqa: A002
    return qr(input, "reduced" if some else "complete")


@rule("linalg.qr")
def qr(A: Jet, mode: str = "reduced") -> Factors:
    """Of a wide matrix, the factors of its first columns, and theirs times the others."""
    if mode == "r":
        return Factors(A.value.new_empty(0), qr(A).R)
    Q, R = torch.linalg.qr(A.value, mode)
    rows, columns = A.shape[-2:]
    if rows < columns:
        first, upper = qr(A[..., :rows])
        whole: Any = torch.cat([upper, torch.matmul(first.mH, A[..., rows:])], -1)
        return Factors(first, like(A, R, whole.coefficients))
    if mode == "complete" and rows > columns:
        raise DerivativeError(
            "jet(f=...)",
            "call factorizations whose factors are determined by the matrix",
            f"`torch.linalg.qr(A, mode='complete')` of {rows} x {columns}",
            "Pass `mode='reduced'`.",
        )
    return _tall(A, Q, R)


def _tall(A: Jet, Q0: Tensor, R0: Tensor) -> Factors:
    r"""Each order from those below it, with real numbers on the diagonal of ``R``.

    .. math::
        C = \Bigl( A_k - \sum_{0<j<k} Q_j R_{k-j} \Bigr) R_0^{-1}, \qquad
        P = \sum_{0<j<k} Q_j^H Q_{k-j}, \qquad
        R_k = U R_0, \quad Q_k = C - Q_0 U

    The upper triangle :math:`U = Q_0^H C - X` leaves the rest to
    :math:`X = Q_0^H Q_k`, of which orthogonality asks :math:`X + X^H = -P`.

    References:
        Walter, Lehmann and Lamour (2012), "On evaluating higher-order derivatives of the
        QR decomposition of tall matrices with full column rank".
    """
    low, up = like(A, Q0, []), like(A, R0, [])
    for k in range(1, A.order + 1):
        top = plus(series(A)[k], scaled(convolved(low, up, k, 1, k - 1), -1))
        across = convolved(low.mH, low, k, 1, k - 1)
        new: Coefficient = None
        above: Coefficient = None
        if top is not None:
            C = torch.linalg.solve_triangular(R0, top, upper=True, left=False)
            U = _upper(Q0.mH @ C, across)
            above, new = U @ R0, C - Q0 @ U
        low = like(A, Q0, [*low.coefficients, new])
        up = like(A, R0, [*up.coefficients, above])
    return Factors(low, up)


def _upper(M: Tensor, across: Coefficient) -> Tensor:
    """``M - X``: below the diagonal ``X`` is ``M``, and above it what ``across`` asks."""
    upper = M.triu(1) + M.tril(-1).mH
    diagonal = M.diagonal(dim1=-2, dim2=-1).real
    if across is not None:
        upper = upper + across.triu(1)
        diagonal = diagonal + across.diagonal(dim1=-2, dim2=-1).real / 2
    return upper + torch.diag_embed(diagonal.to(M.dtype))


@rule("linalg.pinv")
def pinv(
    A: Jet,
    rcond: float | None = None,
    hermitian: bool = False,
    *,
    atol: float | Tensor | None = None,
    rtol: float | Tensor | None = None,
) -> Jet:
    """:math:`R^{-1} Q^H`; where the rank is not full, it is not continuous.

    There its derivatives are NaN.
    """
    rtol = rcond if rtol is None else rtol
    options = {"atol": atol, "rtol": rtol, "hermitian": hermitian}
    value = torch.linalg.pinv(A.value, **options)
    is_wide = A.shape[-2] < A.shape[-1]
    inverse: Any = _left_inverse(A.mH).mH if is_wide else _left_inverse(A)
    rank = torch.linalg.matrix_rank(A.value.detach(), **options)
    full = (rank == min(A.shape[-2:]))[..., None, None]
    terms = inverse.coefficients
    return like(A, value, [c if c is None else c.where(full, torch.nan) for c in terms])


def _left_inverse(A: Jet) -> Jet:
    Q, R = qr(A)
    return solve_triangular(R, Q.mH, upper=True)


@rule("pinverse")
def pinverse(input: Jet, rcond: float = 1e-15) -> Jet:  # noqa: A002
    return pinv(input, rcond)


@rule("linalg.lstsq")
def lstsq(
    A: Any,
    b: Any,
    rcond: float | None = None,
    *,
    driver: str | None = None,
) -> LeastSquares:
    """The solution has the derivatives of ``pinv(A) @ b``."""
    found = torch.linalg.lstsq(value_of(A), value_of(b), rcond, driver=driver)
    jet = belongs(A, b)
    is_vector = value_of(b).shape == value_of(A).shape[:-1]
    columns = b.unsqueeze(-1) if is_vector else b
    x: Any = torch.matmul(torch.linalg.pinv(A, rtol=rcond), columns)
    left = torch.matmul(A, x) - columns
    x = x.squeeze(-1) if is_vector else x
    residuals: Any = found.residuals
    if residuals.numel():
        squares = linear(torch.real, left * left.conj()).sum(-2)
        residuals = like(jet, residuals, squares.coefficients)
    solution = like(jet, found.solution, x.coefficients)
    return LeastSquares(solution, residuals, found.rank, found.singular_values)
