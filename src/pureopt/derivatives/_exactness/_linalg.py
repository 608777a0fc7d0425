"""Linear systems and products of reflections as compositions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._lu import lu_solve
from pureopt.derivatives._exactness._numeric import RESULTS, Table, is_square

_CHECK_ERRORS: Any = vars(torch)["_linalg_check_errors"]


def solve(A: Float[Tensor, "*batch n n"], B: Tensor, *, left: bool = True) -> Tensor:
    """``torch.linalg.solve`` by an LU factorization."""
    return _solved(A, B, left, "torch.linalg.solve")[0]


def solve_ex(
    A: Float[Tensor, "*batch n n"],
    B: Tensor,
    *,
    left: bool = True,
    check_errors: bool = False,
) -> tuple[Tensor, Tensor]:
    """``torch.linalg.solve_ex`` by an LU factorization."""
    checked_by = "torch.linalg.solve_ex" if check_errors else None
    return RESULTS.linalg_solve_ex(_solved(A, B, left, checked_by))


def _solved(
    A: Tensor, B: Tensor, left: bool, checked_by: str | None
) -> tuple[Tensor, Tensor]:
    """The solution, and what LAPACK says, in an error of this function if there is one."""
    if not _fit(A, B, left):
        return torch.linalg.solve_ex(A, B, left=left)  # which refuses it
    vector = _is_vector(A, B)
    lu, pivots, info = torch.linalg.lu_factor_ex(A)
    if checked_by is not None:
        _CHECK_ERRORS(info, checked_by, is_matrix=A.dim() == 2)  # noqa: PLR2004
    b = B.unsqueeze(-1) if vector else B
    x = linalg_lu_solve(lu, pivots, b, left=left or vector)
    return x.squeeze(-1) if vector else x, info


def _fit(A: Tensor, B: Tensor, left: bool) -> bool:
    """Whether torch solves such a system."""
    along = -1 if _is_vector(A, B) or not left else -2
    return (
        is_square(A)
        and A.dtype == B.dtype
        and B.dim() > 0
        and B.shape[along] == A.shape[-1]
    )


def linalg_lu_solve(
    LU: Float[Tensor, "*batch n n"],
    pivots: Int[Tensor, "*batch n"],
    B: Float[Tensor, "*batch n k"],
    *,
    left: bool = True,
    adjoint: bool = False,
) -> Tensor:
    """``torch.linalg.lu_solve``, whose lanes are wrong under ``vmap``."""
    factors = LU.conj() if adjoint else LU
    if left:
        return lu_solve(factors, pivots, B, transposed=adjoint)
    return lu_solve(factors, pivots, B.mT, transposed=not adjoint).mT


def torch_lu_solve(
    input: Float[Tensor, "*batch n k"],  # noqa: A002
    LU_data: Float[Tensor, "*batch n n"],
    LU_pivots: Int[Tensor, "*batch n"],
) -> Float[Tensor, "*batch n k"]:
    """``torch.lu_solve``: the same."""
    return lu_solve(LU_data, LU_pivots, input)


def _is_vector(A: Tensor, B: Tensor) -> bool:
    """As torch decides: one vector, or one for each matrix of the batch."""
    return B.dim() == 1 or (A.dim() - 1 == B.dim() and B.shape == A.shape[:-1])


def tensorsolve(
    input: Tensor,  # noqa: A002
    other: Tensor,
    dims: Sequence[int] | None = None,
) -> Tensor:
    """``torch.linalg.tensorsolve``: a system of reshaped tensors."""
    if dims is not None:
        last = tuple(range(input.dim() - len(dims), input.dim()))
        return tensorsolve(input.movedim(tuple(dims), last), other)
    shape = input.shape[other.dim() :]
    n = prod(shape)
    return solve(input.reshape(n, n), other.reshape(n)).reshape(shape)


def householder_product(
    input: Float[Tensor, "*batch m n"],  # noqa: A002
    tau: Float[Tensor, "*batch k"],
) -> Float[Tensor, "*batch m n"]:
    """``torch.linalg.householder_product``: the first columns of a product of reflections."""
    eye = torch.eye(*input.shape[-2:], dtype=input.dtype, device=input.device)
    return _reflected(input, tau, eye, adjoint=False)


def orgqr(
    input: Float[Tensor, "*batch m n"],  # noqa: A002
    input2: Float[Tensor, "*batch k"],
) -> Float[Tensor, "*batch m n"]:
    """``torch.orgqr``: the same."""
    return householder_product(input, input2)


def ormqr(
    input: Float[Tensor, "*batch m n"],  # noqa: A002
    input2: Float[Tensor, "*batch k"],
    input3: Tensor,
    left: bool = True,
    transpose: bool = False,
) -> Tensor:
    """``torch.ormqr``: that product, or its adjoint, times a matrix or a matrix times it."""
    if left:
        return _reflected(input, input2, input3, adjoint=transpose)
    return _reflected(input, input2, input3.mH, adjoint=not transpose).mH


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


def cholesky(
    input: Float[Tensor, "*batch n n"],  # noqa: A002
    upper: bool = False,
) -> Float[Tensor, "*batch n n"]:
    """``torch.cholesky``, by the function that replaced it."""
    torch.cholesky(input.detach(), upper)  # which warns, and refuses in its words
    return torch.linalg.cholesky_ex(input, upper=upper)[0]


def cholesky_solve(
    input: Float[Tensor, "*batch n k"],  # noqa: A002
    input2: Float[Tensor, "*batch n n"],
    upper: bool = False,
) -> Float[Tensor, "*batch n k"]:
    """``torch.cholesky_solve``: two triangular systems."""
    first, second = (input2.mH, input2) if upper else (input2, input2.mH)
    half = torch.linalg.solve_triangular(first, input, upper=False)
    return torch.linalg.solve_triangular(second, half, upper=True)


def cholesky_inverse(
    input: Float[Tensor, "*batch n n"],  # noqa: A002
    upper: bool = False,
) -> Float[Tensor, "*batch n n"]:
    """``torch.cholesky_inverse``: the solutions for the unit vectors."""
    eye = torch.eye(input.shape[-1], dtype=input.dtype, device=input.device)
    return cholesky_solve(eye.expand(input.shape), input, upper)


def triangular_solve(
    input: Float[Tensor, "*batch n k"],  # noqa: A002
    A: Float[Tensor, "*batch n n"],
    upper: bool = True,
    transpose: bool = False,
    unitriangular: bool = False,
) -> tuple[Tensor, Tensor]:
    """``torch.triangular_solve``, by the function that replaced it."""
    x = torch.linalg.solve_triangular(
        A.mT if transpose else A,
        input,
        upper=upper != transpose,
        unitriangular=unitriangular,
    )
    return RESULTS.triangular_solve((x, A.clone()))


LINALG: Table = {
    torch.linalg.solve: solve,
    torch.linalg.solve_ex: solve_ex,
    torch.linalg.tensorsolve: tensorsolve,
    torch.linalg.lu_solve: linalg_lu_solve,
    **dict.fromkeys((torch.lu_solve, torch.Tensor.lu_solve), torch_lu_solve),
    torch.linalg.householder_product: householder_product,
    **dict.fromkeys((torch.orgqr, torch.Tensor.orgqr), orgqr),
    **dict.fromkeys((torch.ormqr, torch.Tensor.ormqr), ormqr),
    **dict.fromkeys((torch.cholesky, torch.Tensor.cholesky), cholesky),
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
