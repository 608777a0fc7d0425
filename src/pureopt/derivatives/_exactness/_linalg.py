"""Linear systems and products of reflections as compositions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.derivatives._exactness._numeric import RESULTS, Table


def solve(A: Float[Tensor, "*batch n n"], B: Tensor, *, left: bool = True) -> Tensor:
    """``torch.linalg.solve`` by an LU factorization."""
    return solve_ex(A, B, left=left, check_errors=True)[0]


def solve_ex(
    A: Float[Tensor, "*batch n n"],
    B: Tensor,
    *,
    left: bool = True,
    check_errors: bool = False,
) -> tuple[Tensor, Tensor]:
    """``torch.linalg.solve_ex`` by an LU factorization."""
    vector = _is_vector(A, B)
    lu, pivots, info = torch.linalg.lu_factor_ex(A, check_errors=check_errors)
    b = B.unsqueeze(-1) if vector else B
    x = torch.linalg.lu_solve(lu, pivots, b, left=left or vector)
    return RESULTS.linalg_solve_ex((x.squeeze(-1) if vector else x, info))


def _is_vector(A: Tensor, B: Tensor) -> bool:
    """As torch decides: one vector, or one for each matrix of the batch."""
    return B.dim() == 1 or (A.dim() - 1 == B.dim() and B.shape == A.shape[:-1])


def tensorsolve(A: Tensor, B: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """``torch.linalg.tensorsolve``: a system of reshaped tensors."""
    if dims is not None:
        last = tuple(range(A.dim() - len(dims), A.dim()))
        return tensorsolve(A.movedim(tuple(dims), last), B)
    shape = A.shape[B.dim() :]
    n = prod(shape)
    return solve(A.reshape(n, n), B.reshape(n)).reshape(shape)


def householder_product(
    input: Float[Tensor, "*batch m n"],  # noqa: A002
    tau: Float[Tensor, "*batch k"],
) -> Float[Tensor, "*batch m n"]:
    """``torch.linalg.householder_product``: the first columns of a product of reflections."""
    eye = torch.eye(*input.shape[-2:], dtype=input.dtype, device=input.device)
    return _reflected(input, tau, eye, adjoint=False)


def ormqr(
    input: Float[Tensor, "*batch m n"],  # noqa: A002
    tau: Float[Tensor, "*batch k"],
    other: Tensor,
    left: bool = True,
    transpose: bool = False,
) -> Tensor:
    """``torch.ormqr``: that product, or its adjoint, times a matrix or a matrix times it."""
    if left:
        return _reflected(input, tau, other, adjoint=transpose)
    return _reflected(input, tau, other.mH, adjoint=not transpose).mH


def _reflected(A: Tensor, tau: Tensor, c: Tensor, *, adjoint: bool) -> Tensor:
    """``H_1 ... H_k c`` with ``H_i = I - tau_i v_i v_i^H``, one reflection at a time."""
    k = tau.shape[-1]
    below = A.tril(-1)
    unit = torch.eye(*A.shape[-2:], dtype=A.dtype, device=A.device)
    for i in range(k) if adjoint else reversed(range(k)):
        v = (below[..., :, i] + unit[:, i]).unsqueeze(-1)
        scale = tau[..., i, None, None]
        c = c - (scale.conj() if adjoint else scale) * v @ (v.mH @ c)
    return c


def cholesky_solve(
    B: Float[Tensor, "*batch n k"], L: Float[Tensor, "*batch n n"], upper: bool = False
) -> Float[Tensor, "*batch n k"]:
    """``torch.cholesky_solve``: two triangular systems."""
    first, second = (L.mH, L) if upper else (L, L.mH)
    half = torch.linalg.solve_triangular(first, B, upper=False)
    return torch.linalg.solve_triangular(second, half, upper=True)


def cholesky_inverse(
    L: Float[Tensor, "*batch n n"], upper: bool = False
) -> Float[Tensor, "*batch n n"]:
    """``torch.cholesky_inverse``: the solutions for the unit vectors."""
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    return cholesky_solve(eye.expand(L.shape), L, upper)


def triangular_solve(
    b: Float[Tensor, "*batch n k"],
    A: Float[Tensor, "*batch n n"],
    upper: bool = True,
    transpose: bool = False,
    unitriangular: bool = False,
) -> tuple[Tensor, Tensor]:
    """``torch.triangular_solve``, by the function that replaced it."""
    x = torch.linalg.solve_triangular(
        A.mT if transpose else A,
        b,
        upper=upper != transpose,
        unitriangular=unitriangular,
    )
    return RESULTS.triangular_solve((x, A.clone()))


LINALG: Table = {
    torch.linalg.solve: solve,
    torch.linalg.solve_ex: solve_ex,
    torch.linalg.tensorsolve: tensorsolve,
    **dict.fromkeys(
        (torch.linalg.householder_product, torch.orgqr, torch.Tensor.orgqr),
        householder_product,
    ),
    **dict.fromkeys((torch.ormqr, torch.Tensor.ormqr), ormqr),
    **dict.fromkeys(
        (torch.cholesky_solve, torch.Tensor.cholesky_solve), cholesky_solve
    ),
    **dict.fromkeys(
        (torch.cholesky_inverse, torch.Tensor.cholesky_inverse), cholesky_inverse
    ),
    **dict.fromkeys(
        (torch.triangular_solve, torch.Tensor.triangular_solve), triangular_solve
    ),
}
