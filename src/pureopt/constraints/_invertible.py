"""Invertible matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._domains import INVERTIBLE, Domain
from pureopt.constraints._lu_chart import (
    LUForm,
    sensitivity,
    sensitivity_tolerance,
)


@final
@dataclass(frozen=True)
class Invertible(LUForm):
    r"""Invertible matrices, of either sign of the determinant, by triangular factors.

    .. math:: Y = P L U, \qquad u_{ii} = s_i e^{d_i}, \qquad
        \log |\det Y| = \sum_i d_i

    with ``L`` unit lower triangular. ``x`` has ``n^2`` entries: ``d``, then those of
    ``L`` and ``U`` off the diagonal, row by row in one matrix. The permutation ``P`` and
    the signs ``s`` are the static data, an :class:`LUStatic`: every invertible matrix has
    a chart, however ill-conditioned, and the sign of the determinant never changes along
    a path in ``x``. A chart leaves out the matrices for which another order of rows or
    other signs are needed (NaN in :meth:`right_inverse`). Without ``static`` ``P = I``
    and all signs are +1. The condition number is not bounded: see
    :class:`BoundedCondition`.

    References:
        Kingma and Dhariwal (2018), equation 10. Golub and Van Loan (2013), section 3.4
        (partial pivoting).

    Example:
        >>> import torch
        >>> y = torch.tensor([[0.0, 2.0], [1.0, 1e-6]])
        >>> static = Invertible().bind(y)
        >>> x = Invertible().right_inverse(y, static)
        >>> torch.allclose(Invertible().forward(x, static), y)
        True
        >>> moved = Invertible().forward(x + torch.ones(4), static)
        >>> (
        ...     bool(moved.det() < 0),
        ...     bool((moved.det().abs().log() - x[:2].sum() - 2) < 1e-6),
        ... )
        (True, True)
        >>> Invertible().check(torch.ones(2, 2))
        tensor(False)
    """

    @property
    def codimension(self) -> int:
        """Zero: an open set."""
        return 0

    @property
    def codomain(self) -> Domain:
        """Invertible matrices."""
        return INVERTIBLE

    @property
    def rule(self) -> str:
        """How much the determinant changes with relative changes of the entries."""
        return "sum_ij |Y_ij (Y^-1)_ji|"

    def logs(self, head: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The numbers themselves."""
        return head

    def head(self, logs: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The numbers themselves."""
        return logs

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """How much the determinant changes with the entries; infinite if it is zero."""
        INVERTIBLE.require("Invertible(y)", y)
        return sensitivity(y)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``1 / (2 eps)``, with the eps of at least float32."""
        return sensitivity_tolerance(y)
