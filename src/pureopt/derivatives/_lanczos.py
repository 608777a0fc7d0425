"""The Lanczos tridiagonalization of a symmetric operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt._tree import ravel
from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._operator import (
    Product,
    eigh,
    flat,
    norm,
    size,
    stacked,
    working_dtype,
)


class Lanczos(NamedTuple):
    """The matrix :math:`T` of an operator in an orthonormal Krylov basis, and the basis.

    Attributes:
        alphas: The diagonal of :math:`T`, in the units of the operator.
        betas: ``betas[:-1]`` are the off-diagonal of :math:`T`. The last couples to the
            vector that would come next: times the last entry of an eigenvector of
            :math:`T` it bounds the distance of the eigenvalue from one of the operator.
        vectors: A tree like ``start`` with the basis along a leading dimension.
    """

    alphas: Float[Tensor, "steps"]
    betas: Float[Tensor, "steps"]
    vectors: Any


def lanczos(matvec: Callable[[P], P], start: P, steps: int) -> Lanczos:
    r"""An orthonormal basis of the Krylov space, in which the operator is tridiagonal.

    .. math::
        \beta_j q_{j+1} = A q_j - \alpha_j q_j - \beta_{j-1} q_{j-1}, \qquad
        \alpha_j = q_j^\top A q_j, \qquad q_1 = v / |v|

    Each new vector is orthogonalized twice against all before it: without that a
    converged eigenvalue comes back as a copy of itself.

    Where the Krylov space is exhausted, :math:`\beta_j` is rounding noise (below
    ``10 eps`` times the largest entries so far) and set to 0. The vectors after it are
    0, and the ``alphas`` repeat the first one, a value inside the spectrum, so that a
    function of :math:`T` is defined wherever it is so on the spectrum, and unchanged.
    It is differentiable where that does not happen. A zero or not finite ``start`` gives
    NaN.

    Costs ``steps`` products with the operator, ``steps`` vectors of memory and
    ``4 steps^2 n`` multiplications.

    Args:
        matvec: A symmetric linear function of trees like ``start``.
        start: The first vector :math:`v`, of any length.
        steps: The dimension of the Krylov space, at most that of ``start``.

    Raises:
        HyperparameterError: If ``steps`` is no integer from 1 to the dimension.
        TreeError: If ``start`` is no tree of real floating tensors, or ``matvec``
            returns another tree.

    References:
        Lanczos (1950). Golub and Van Loan (2013), sections 10.1 and 10.3 (with complete
        reorthogonalization).

    Example:
        The second difference is tridiagonal already, and its unit vectors are the basis:

        >>> import torch
        >>> import pureopt as po
        >>> def second_difference(x):
        ...     return 2 * x - torch.roll(x, 1) * inner - torch.roll(x * inner, -1)
        >>> inner = torch.tensor([0.0, 1.0, 1.0, 1.0])
        >>> start = torch.tensor([3.0, 0.0, 0.0, 0.0])
        >>> alphas, betas, vectors = po.derivatives.lanczos(second_difference, start, 4)
        >>> alphas, betas
        (tensor([2., 2., 2., 2.]), tensor([1., 1., 1., 0.]))
        >>> vectors.abs()
        tensor([[1., 0., 0., 0.],
                [0., 1., 0., 0.],
                [0., 0., 1., 0.],
                [0., 0., 0., 1.]])
    """
    n = size("lanczos(start=...)", start)
    _checks.positive("lanczos(steps=...)", steps)
    if steps > n:
        rule = f"be at most the dimension of `start`, {n}"
        raise HyperparameterError("lanczos(steps=...)", rule, str(steps))
    v = ravel(start, working_dtype(start))
    alphas, betas, basis = tridiagonalize(flat("lanczos", matvec, start), v, steps)
    return Lanczos(alphas, betas, stacked(basis, start))


def tridiagonalize(
    product: Product, start: Float[Tensor, "n"], steps: int
) -> tuple[Float[Tensor, "steps"], Float[Tensor, "steps"], Float[Tensor, "steps n"]]:
    """:func:`lanczos` of flat vectors; the basis vectors are rows."""
    noise = 10 * torch.finfo(start.dtype).eps
    q = start / norm(start)
    basis = q[None]
    alive = torch.ones_like(q[0], dtype=torch.bool)
    scale = torch.zeros_like(q[0])
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    for j in range(steps):
        w = product(q)
        alpha = q @ w
        for _ in range(2):
            w = w - (basis @ w) @ basis
        beta = norm(w)
        alphas.append(torch.where(alive, alpha, alphas[0]) if j else alpha)
        scale = torch.maximum(scale, alpha.abs() + beta)
        # NaN compares false, so that it stays alive and reaches what comes after.
        alive = ~(beta <= noise * scale)
        betas.append(torch.where(alive, beta, 0.0))
        if j + 1 < steps:
            q = torch.where(alive, w / torch.where(alive, beta, 1.0), 0.0)
            basis = torch.cat([basis, q[None]])
    return torch.stack(alphas), torch.stack(betas), basis


def gauss_quadrature(
    alphas: Float[Tensor, "*batch steps"], betas: Float[Tensor, "*batch steps"]
) -> tuple[Float[Tensor, "*batch steps"], Float[Tensor, "*batch steps"]]:
    """Nodes, ascending, and weights, of sum one: eigenpairs of the tridiagonal matrix.

    References:
        Golub and Meurant (2010), chapter 6.
    """
    off = betas[..., :-1]
    t = alphas.diag_embed() + off.diag_embed(1) + off.diag_embed(-1)
    nodes, vectors = eigh(t)
    return nodes, vectors[..., 0, :].square()
