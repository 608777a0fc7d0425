"""Rules of singular values, each order from those below it."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness import _spectra
from pureopt.derivatives._exactness._numeric import squares
from pureopt.derivatives._jets._algebra import (
    bilinear_term,
    constant,
    like,
    linear,
    plus,
    scaled,
    series,
)
from pureopt.derivatives._jets._jet import Coefficient, Jet
from pureopt.derivatives._jets._linalg import convolved
from pureopt.derivatives._jets._register import rule


class Singular(NamedTuple):
    """As ``torch.linalg.svd`` returns it."""

    U: Any
    S: Any
    Vh: Any


class SingularV(NamedTuple):
    """As ``torch.svd`` returns it."""

    U: Any
    S: Any
    V: Any


@rule("svd")
def svd_(input: Jet, some: bool = True, compute_uv: bool = True) -> SingularV:  # noqa: A002
    if not compute_uv:
        zeros = torch.svd(input.value, compute_uv=False)
        return SingularV(zeros.U, svdvals(input), zeros.V)
    U, S, Vh = svd(input, full_matrices=not some)
    return SingularV(U, S, _adjoint(Vh))


@rule("linalg.svd")
def svd(A: Jet, full_matrices: bool = True, *, driver: str | None = None) -> Singular:
    """Where singular values are equal, derivatives that do not exist are NaN."""
    U, S, Vh = torch.linalg.svd(A.value, full_matrices=False, driver=driver)
    rows, columns = A.shape[-2:]
    if full_matrices and rows != columns:
        raise DerivativeError(
            "jet(f=...)",
            "call factorizations whose factors are determined by the matrix",
            f"`torch.linalg.svd(A)` of {rows} x {columns} with `full_matrices=True`",
            "Pass `full_matrices=False`, or call `torch.linalg.svdvals`.",
        )
    if not A.value.numel():
        return Singular(*(constant(A, value) for value in (U, S, Vh)))
    if rows < columns:
        right, values, left = _tall(A.mH, Vh.mH, S, U)
        return Singular(left, values, _adjoint(right))
    left, values, right = _tall(A, U, S, Vh.mH)
    return Singular(left, values, _adjoint(right))


def _adjoint(x: Jet) -> Any:
    """Not as a view that is still to be conjugated, as torch has none here."""
    return linear(lambda c: c.mH.resolve_conj(), x)


@rule("linalg.svdvals")
def svdvals(A: Jet, *, driver: str | None = None) -> Any:
    return svd(A, full_matrices=False, driver=driver).S


def _turned(A: Jet, U: Tensor, V: Tensor) -> tuple[Jet, Jet]:
    """How ``U.mH @ A @ V`` moves, and what of ``A @ V`` is orthogonal to ``U``."""
    inside = linear(lambda c: U.mH @ c @ V, A)
    D = like(A, torch.zeros_like(inside.value), inside.coefficients)
    if A.shape[-2] == A.shape[-1]:
        return D, constant(A, torch.zeros_like(U))
    outside = linear(lambda c: c @ V - U @ (U.mH @ c @ V), A)
    return D, like(A, torch.zeros_like(U), outside.coefficients)


def _rounding(values: Tensor) -> Tensor:
    """Below it a singular value is zero up to rounding."""
    n, eps = values.shape[-1], torch.finfo(values.dtype).eps
    return n * eps * values.detach()[..., :1]


def _sums(values: Tensor) -> Tensor:
    """``sigma_i + sigma_j``, NaN where both are zero."""
    total = values.unsqueeze(-1) + values.unsqueeze(-2)
    return torch.where(total > _rounding(values)[..., None], total, torch.nan)


def _own(values: Tensor) -> Tensor:
    """``sigma_j`` of each column, NaN where it is zero."""
    return torch.where(values > _rounding(values), values, torch.nan).unsqueeze(-2)


def _tall(A: Jet, U: Tensor, values: Tensor, V: Tensor) -> tuple[Jet, Jet, Jet]:
    r"""The vectors :math:`u = U a + c`, with ``c`` orthogonal to ``U``, and :math:`v = V b`.

    With :math:`T = U^H A V = \Sigma + D` and :math:`E = (I - U U^H) A V`, what
    :math:`A v = \sigma u` and :math:`A^H u = \sigma v` ask is, for
    :math:`a = I + X + Y` and :math:`b = I + X - Y`,

    .. math::
        X_{ij} (\sigma_j - \sigma_i) &= (D b + D^H a + E^H c)_{ij} / 2 - X_{ij} \mu_j \\
        Y_{ij} (\sigma_j + \sigma_i) &= (D b - D^H a - E^H c)_{ij} / 2 - Y_{ij} \mu_j \\
        c_{ij} \sigma_j &= (E b)_{ij} - c_{ij} \mu_j

    and the change :math:`\mu_j` of a singular value is what the first asks on the
    diagonal, where ``X`` is zero. At order zero all of these are zero, so that each order
    follows from those below it: it is the perturbation series of the Hermitian matrix
    that has ``A`` and its adjoint beside a diagonal of zeros.

    On the diagonal the real part of ``Y`` is that for which ``u`` and ``v`` have one
    length, which is finite where :math:`\sigma_j` is zero.

    References:
        Kato (1995), chapter II, section 2.
    """
    D, E = _turned(A, U, V)
    x, y, c = like(A, D.value, []), like(A, D.value, []), like(A, E.value, [])
    shift = like(A, D.value[..., 0], [])
    gap, tied = _spectra.gaps(values)
    apart, sums = torch.where(tied, torch.nan, gap), _sums(values)
    if not A.dtype.is_complex:  # what stands on the diagonal is put there afterwards
        itself = torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
        sums = torch.where(itself, 1.0, sums)
    for k in range(1, A.order + 1):
        ahead = plus(series(D)[k], convolved(D, x - y, k, 1, k - 1))
        back = plus(series(D.mH)[k], convolved(D.mH, x + y, k, 1, k - 1))
        back = plus(back, convolved(E.mH, c, k, 1, k - 1))
        even = scaled(plus(ahead, back), 0.5)
        odd = scaled(plus(ahead, scaled(back, -1)), 0.5)
        rest = plus(series(E)[k], convolved(E, x - y, k, 1, k - 1))
        change = None if even is None else even.diagonal(dim1=-2, dim2=-1)
        x, y, c = (
            _longer(x, even, shift, apart),
            _balanced(_longer(y, odd, shift, sums), x, c),
            _longer(c, rest, shift, _own(values)),
        )
        shift = like(A, shift.value, [*shift.coefficients, change])
    eye = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
    b = x - y + eye
    length = torch.sqrt(squares(b).sum(-2, keepdim=True))
    left = (torch.matmul(U, x + y + eye) + c) / length
    moved = shift.real if A.dtype.is_complex else shift
    return left, like(A, values, moved.coefficients), torch.matmul(V, b) / length


def _longer(x: Jet, top: Coefficient, shift: Jet, gap: Tensor) -> Jet:
    r"""``x`` and its next order, of :math:`x_{ij} g_{ij} = t_{ij} - x_{ij} \mu_j`."""
    k = x.order + 1
    for j in range(1, k):
        top = plus(top, scaled(bilinear_term(_columns, x, shift, k - j, j), -1))
    return like(x, x.value, [*x.coefficients, None if top is None else top / gap])


def _balanced(y: Jet, x: Jet, c: Jet) -> Jet:
    r"""``y`` with the diagonal for which ``u`` and ``v`` have one length.

    .. math::
        \operatorname{Re} y_{jj} = - \sum_{0<l<k} \bigl( \langle x_j, y_j \rangle
            + \tfrac14 \langle c_j, c_j \rangle \bigr)

    with the products of orders ``l`` and ``k - l`` of a column.
    """
    *before, last = y.coefficients
    if last is None:
        return y
    k = len(before) + 1
    total: Coefficient = None
    for j in range(1, k):
        total = plus(total, bilinear_term(_inner, x, y, j, k - j))
        total = plus(total, scaled(bilinear_term(_inner, c, c, j, k - j), 0.25))
    diagonal = last.diagonal(dim1=-2, dim2=-1)
    real = torch.zeros_like(diagonal.real) if total is None else -total
    new = torch.complex(real, diagonal.imag) if last.is_complex() else real
    itself = torch.eye(last.shape[-1], dtype=torch.bool, device=last.device)
    return like(y, y.value, [*before, torch.where(itself, torch.diag_embed(new), last)])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).sum(-2).real


def _columns(vectors: Tensor, factors: Tensor) -> Tensor:
    return vectors * factors.unsqueeze(-2)


def nuclear_norm(A: Jet) -> Jet:
    r"""The trace of ``P`` in :math:`A = Q P`, which is smooth where singular values meet.

    With the singular vectors of the value, where :math:`Q_0 = I` and :math:`P_0 = \Sigma`,

    .. math::
        C = T_k - \sum_{0<j<k} Q_j P_{k-j}, \quad
        R = \sum_{0<j<k} Q_j^H Q_{k-j}, \quad
        (Q_k)_{ij} (\sigma_i + \sigma_j) = (C - C^H - \Sigma R)_{ij}, \quad
        P_k = C - Q_k \Sigma

    and, orthogonal to them, :math:`Q'_k \Sigma = E_k - \sum_{0<j<k} Q'_j P_{k-j}`. Where
    a singular value is zero, the first derivative is one of those at the kink, and the
    others are NaN.

    References:
        Higham (2008), "Functions of Matrices", chapter 8.
    """
    if A.shape[-2] < A.shape[-1]:
        return nuclear_norm(A.mH)
    U, values, Vh = torch.linalg.svd(A.value, full_matrices=False)
    D, E = _turned(A, U, Vh.mH)
    stretch, aside = torch.diag_embed(values.to(D.dtype)), _own(values)
    eye = torch.eye(Vh.shape[-1], dtype=D.dtype, device=D.device).expand(D.shape)
    p, q, outside = like(A, stretch, []), like(A, eye, []), like(A, E.value, [])
    for k in range(1, A.order + 1):
        C = plus(series(D)[k], scaled(convolved(q, p, k, 1, k - 1), -1))
        off = plus(series(E)[k], scaled(convolved(outside, p, k, 1, k - 1), -1))
        R = plus(
            convolved(q.mH, q, k, 1, k - 1),
            convolved(outside.mH, outside, k, 1, k - 1),
        )
        turn, new = _split(C, R, values)
        q = like(A, eye, [*q.coefficients, turn])
        p = like(A, stretch, [*p.coefficients, new])
        new = None if off is None else off / aside
        outside = like(A, E.value, [*outside.coefficients, new])
    trace = linear(lambda c: c.diagonal(dim1=-2, dim2=-1).sum(-1).real, p)
    return like(A, values.sum(-1), trace.coefficients)


def _split(
    C: Coefficient, R: Coefficient, values: Tensor
) -> tuple[Coefficient, Coefficient]:
    """The next orders of the two factors."""
    if C is None:
        return None, None
    skew = C - C.mH
    if R is not None:
        skew = skew - values.unsqueeze(-1) * R
    turn, own = skew / _sums(values), _own(values)
    stretched = torch.where(own.isnan(), 0.0, turn * own)
    return turn, C - stretched
