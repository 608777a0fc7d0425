"""Matrices of determinant one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._domains import Domain
from pureopt.constraints._lu_chart import (
    LUForm,
    diagonal,
    pivoted,
    preserves_orientation,
    sensitivity,
    sensitivity_tolerance,
)
from pureopt.constraints._numeric import finite_or_zero, inverse, scaled, working
from pureopt.constraints._positive_determinant import POSITIVE_DETERMINANT
from pureopt.constraints._sum_to_zero import helmert, helmert_adjoint

UNIT_DETERMINANT = Domain(
    "a matrix of determinant one",
    "(..., n, n)",
    2,
    square=True,
    made_by="UnitDeterminant()",
    inside=(POSITIVE_DETERMINANT,),
)


@final
@dataclass(frozen=True)
class UnitDeterminant(LUForm):
    r"""Matrices of determinant one, the special linear group, by triangular factors.

    .. math:: Y = P L U, \qquad u_{ii} = s_i e^{d_i}, \qquad d = H z, \quad
        \sum_i d_i = 0

    with ``L`` unit lower triangular and ``H`` the orthonormal basis of Helmert. ``x`` has
    ``n^2 - 1`` entries: ``z``, then those of ``L`` and ``U`` off the diagonal, row by row
    in one matrix. The static data are those of :class:`Invertible`.

    The determinant of a matrix of rounded entries is one only up to
    ``eps sum_ij |Y_ij (Y^-1)_ji|``, which grows with the condition number; so much
    :meth:`check` tolerates, and :meth:`forward` mends it.

    References:
        Kingma and Dhariwal (2018), equation 10. Egozcue, Pawlowsky-Glahn,
        Mateu-Figueras and Barceló-Vidal (2003) (the basis).

    Example:
        >>> import torch
        >>> shear = torch.tensor([[1.0, 5.0], [0.0, 1.0]])
        >>> static = UnitDeterminant().bind(shear)
        >>> x = UnitDeterminant().right_inverse(shear, static)
        >>> x.shape
        torch.Size([3])
        >>> moved = UnitDeterminant().forward(x + torch.ones(3), static)
        >>> round(float(moved.det()), 5)
        1.0
        >>> UnitDeterminant().check(2 * shear)
        tensor(False)
    """

    @property
    def codimension(self) -> int:
        """One equation."""
        return 1

    @property
    def codomain(self) -> Domain:
        """Matrices of determinant one."""
        return UNIT_DETERMINANT

    @property
    def rule(self) -> str:
        """The logarithm of the determinant."""
        return "|log det Y|, infinite if det Y <= 0,"

    def logs(self, head: Float[Tensor, "*batch h"]) -> Float[Tensor, "*batch n"]:
        """Numbers that add up to zero."""
        return helmert(head)

    def head(self, logs: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch h"]:
        """Their coordinates; what they add up to drops out."""
        return helmert_adjoint(logs)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The modulus of the log-determinant; infinite where there is none."""
        UNIT_DETERMINANT.require("UnitDeterminant(y)", y)
        ratio = sensitivity(y)
        u = diagonal(pivoted(finite_or_zero(working(y)))[1]).abs()
        singular = ~(ratio <= sensitivity_tolerance(y)) | (u == 0).any(-1)
        safe = torch.where(singular.unsqueeze(-1), torch.ones_like(u), u)
        keep = preserves_orientation(y) & ~singular
        found = torch.where(keep, safe.log().sum(-1).abs(), torch.inf)
        return torch.where(ratio.isnan(), ratio, found)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``10 eps sum_ij |Y_ij (Y^-1)_ji|``, at most one."""
        ratio = sensitivity(y)
        # Zero where Y is singular.
        known = torch.where(ratio.isfinite(), ratio, torch.zeros_like(ratio))
        return scaled(known, 10 * torch.finfo(y.dtype).eps).clamp(max=1)

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n n"]
    ) -> Float[Tensor, "*batch"]:
        """That of all, and what :meth:`check` tolerates and forward mends."""
        n = y.shape[-1]
        upper = self._factors(working(x), n)[1]
        # Each entry of the diagonal moves by its share of the log-determinant.
        share = scaled(self.tolerance(y), 2 / n) * diagonal(upper).amax(-1)
        return super().rounding(x, y) + share

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`\sum_i (n - i + 1) d_i + \log \|Y^{-1}\|_F - \tfrac12 \log n`.

        The first term is the volume with the log-determinant free as well, and the rest
        the slope of the latter, in units of its coordinate, on the matrices.
        """
        y = working(self.forward(x, static))
        inv = inverse(y)
        slope = scaled((inv * inv).sum((-2, -1)).log() - math.log(y.shape[-1]), 0.5)
        return super().log_abs_det(x, static) + slope.to(x.dtype)
