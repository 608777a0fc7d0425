"""Symmetric matrices."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import SYMMETRIC, VECTOR, Domain
from pureopt.constraints._numeric import max_abs, or_nan, scaled

_SQRT2 = math.sqrt(2.0)


@final
@dataclass(frozen=True)
class Symmetric(Constraint):
    r"""Symmetric matrices from their lower triangle, packed row by row.

    .. math:: Y_{ii} = x_{ii}, \qquad Y_{ij} = Y_{ji} = x_{ij} / \sqrt 2

    An isometry, :math:`\|Y\|_F = \|x\|_2`: a gradient step in ``x`` is the gradient
    step in ``Y``. A vector of length ``n (n + 1) / 2`` gives an ``n`` by ``n`` matrix.

    Example:
        >>> import torch
        >>> y = Symmetric().forward(torch.tensor([1.0, 2.0, 3.0]))
        >>> bool((y == y.mT).all()), round(float(y.norm()) ** 2, 4)
        (True, 14.0)
        >>> Symmetric().right_inverse(torch.tensor([[1.0, 5.0], [4.0, 1.0]]))
        tensor([nan, nan, nan])
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n + 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Symmetric matrices."""
        return SYMMETRIC

    @property
    def rule(self) -> str:
        """The largest asymmetry."""
        return "max|Y - Y^T|"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow."""
        del n
        return torch.finfo(dtype).max / 2

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """Unpack; see the class."""
        del static
        n = _size(x)
        i = torch.arange(n, device=x.device)
        high, low = torch.maximum(i[:, None], i), torch.minimum(i[:, None], i)
        index = high * (high + 1) // 2 + low
        # Not index_select: inductor gets its gradient wrong under vmap.
        y = x[..., index]
        return torch.where(high == low, y, scaled(y, 1 / _SQRT2))

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """Pack the lower triangle; NaN where ``y`` is not symmetric."""
        del static
        keep, n = self.check(y), y.shape[-1]
        row, column = torch.tril_indices(n, n, device=y.device)
        x = y[..., row, column]
        return or_nan(keep, torch.where(row == column, x, scaled(x, _SQRT2)), 1)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The largest asymmetry."""
        SYMMETRIC.require("Symmetric(y)", y)
        return max_abs(y - y.mT)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Eight roundings of the largest entry."""
        return scaled(max_abs(y), 8 * torch.finfo(y.dtype).eps)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The symmetric part, ``(Y + Y^T) / 2``."""
        SYMMETRIC.require("Symmetric.project(y)", y)
        return scaled(y + y.mT, 0.5)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """Zero: an isometry."""
        del static
        _size(x)
        return torch.zeros_like(x[..., 0])


def _size(x: Tensor) -> int:
    """The ``n`` of a packed length ``n (n + 1) / 2``."""
    VECTOR.require("Symmetric(x)", x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    n = (math.isqrt(8 * length + 1) - 1) // 2
    if n == 0 or n * (n + 1) // 2 != length:
        raise ConstraintError(
            "Symmetric.forward(x)",
            "have a last dimension n (n + 1) / 2: 1, 3, 6, 10, ...",
            str(tuple(x.shape)),
            "`right_inverse` of an n by n matrix gives the right one.",
        )
    return n
