"""Matrices of positive determinant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._domains import INVERTIBLE, Domain
from pureopt.constraints._lu_chart import (
    LUForm,
    preserves_orientation,
    sensitivity,
    sensitivity_tolerance,
)

POSITIVE_DETERMINANT = Domain(
    "a matrix of positive determinant",
    "(..., n, n)",
    2,
    square=True,
    made_by="PositiveDeterminant()",
    inside=(INVERTIBLE,),
)


@final
@dataclass(frozen=True)
class PositiveDeterminant(LUForm):
    r"""Matrices of positive determinant, by triangular factors.

    The map of :class:`Invertible` from ``n^2`` numbers, on the half of its charts that
    keep orientation: ``P`` is even and the number of negative signs too, or both are
    odd. Matrices of negative determinant are not in the set.

    References:
        Kingma and Dhariwal (2018), equation 10.

    Example:
        >>> import torch
        >>> rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> static = PositiveDeterminant().bind(rotation)
        >>> x = PositiveDeterminant().right_inverse(rotation, static)
        >>> bool((PositiveDeterminant().forward(x, static) == rotation).all())
        True
        >>> PositiveDeterminant().check(rotation.flip(0))
        tensor(False)
    """

    @property
    def codimension(self) -> int:
        """Zero: an open set."""
        return 0

    @property
    def codomain(self) -> Domain:
        """Matrices of positive determinant."""
        return POSITIVE_DETERMINANT

    @property
    def rule(self) -> str:
        """How much the determinant changes with relative changes of the entries."""
        return "sum_ij |Y_ij (Y^-1)_ji|, infinite if det Y <= 0,"

    def logs(self, head: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The numbers themselves."""
        return head

    def head(self, logs: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The numbers themselves."""
        return logs

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """That of :class:`Invertible`; infinite where the determinant is negative."""
        POSITIVE_DETERMINANT.require("PositiveDeterminant(y)", y)
        ratio = sensitivity(y)
        keep = preserves_orientation(y) | ratio.isnan()
        return torch.where(keep, ratio, torch.full_like(ratio, torch.inf))

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``1 / (2 eps)``, with the eps of at least float32."""
        return sensitivity_tolerance(y)
