"""Linear systems by an LU factorization."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._tracing import as_traced


def lu_solve(
    lu: Float[Tensor, "*batch n n"],
    pivots: Int[Tensor, "*batch n"],
    b: Float[Tensor, "*#batch n k"],
    *,
    transposed: bool = False,
) -> Float[Tensor, "*batch n k"]:
    r"""The ``x`` of ``P L U x = b`` or ``(P L U)^T x = b``; not finite where singular.

    Not ``torch.linalg.lu_solve``, which in torch 2.13 is silently wrong in the lanes of
    ``vmap`` where ``b`` has more batch dimensions than the factors have: those of a
    ``jacfwd`` or ``jacrev`` inside the lanes, too. So is what calls it: in
    ``vmap(jacfwd(f))`` ``torch.linalg.solve``, ``det``, ``slogdet`` and ``logdet``.
    """
    # Not `@`, whose operands a compiler exchanges if a power series is one of them.
    constant = exchanges(lu, pivots)
    P = as_traced(constant, b[..., :1, :1]) if b.numel() else constant
    if transposed:
        half = torch.linalg.solve_triangular(lu.mT, b, upper=False)
        x = torch.linalg.solve_triangular(lu.mT, half, upper=True, unitriangular=True)
        return torch.matmul(P, x)
    half = torch.linalg.solve_triangular(
        lu, torch.matmul(P.mT, b), upper=False, unitriangular=True
    )
    return torch.linalg.solve_triangular(lu, half, upper=True)


def exchanges(
    lu: Float[Tensor, "*batch n k"], pivots: Int[Tensor, "*batch m"]
) -> Float[Tensor, "*batch n n"]:
    """The ``P`` of ``P L U``.

    Of constants, because in the lanes of ``vmap`` ``torch.lu_unpack`` has no forward mode,
    and with the data, because without it a ``vmap`` in a ``vmap`` raises.
    """
    return torch.lu_unpack(lu.detach(), pivots)[0]
