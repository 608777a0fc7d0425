"""Skew-symmetric matrices."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import SKEW, VECTOR, Domain
from pureopt.constraints._numeric import max_abs, or_nan, scaled

_SQRT2 = math.sqrt(2.0)


@final
@dataclass(frozen=True)
class Skew(Constraint):
    r"""Skew-symmetric matrices from their strict lower triangle, packed row by row.

    .. math:: A_{ij} = x_{ij} / \sqrt 2 = -A_{ji} \quad (i > j), \qquad A_{ii} = 0

    An isometry, :math:`\|A\|_F = \|x\|_2`. A vector of length ``n (n - 1) / 2`` gives
    an ``n`` by ``n`` matrix; the empty vector gives the 1 by 1 zero.

    Example:
        >>> import torch
        >>> a = Skew().forward(torch.tensor([3.0, 0.0, 4.0]))
        >>> bool((a == -a.mT).all()), round(float(a.norm()), 4)
        (True, 5.0)
        >>> Skew().right_inverse(torch.eye(2))
        tensor([nan])
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n - 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Skew-symmetric matrices."""
        return SKEW

    @property
    def rule(self) -> str:
        """The largest symmetric part."""
        return "max|Y + Y^T|"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        return shape[-1] * (shape[-1] - 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow."""
        del n
        return torch.finfo(dtype).max / 2

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """Unpack; see the class."""
        del static
        return unpack(x)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """Pack the strict lower triangle; NaN where ``y`` is not skew."""
        del static
        return or_nan(self.check(y), pack(y), 1)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The largest symmetric part."""
        SKEW.require("Skew(y)", y)
        return max_abs(y + y.mT)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Eight roundings of the largest entry."""
        return scaled(max_abs(y), 8 * torch.finfo(y.dtype).eps)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The skew part, ``(Y - Y^T) / 2``."""
        SKEW.require("Skew.project(y)", y)
        return scaled(y - y.mT, 0.5)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """Zero: an isometry."""
        del static
        _size(x)
        return torch.zeros_like(x.sum(-1))


def unpack(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n n"]:
    """The skew matrix of a packed vector."""
    n = _size(x)
    i = torch.arange(n, device=x.device)
    row, column = i[:, None], i
    high, low = torch.maximum(row, column), torch.minimum(row, column)
    # A zero in front of the vector serves the diagonal, also for n = 1.
    index = torch.where(row == column, 0, high * (high - 1) // 2 + low + 1)
    # Not index_select: inductor gets its gradient wrong under vmap.
    a = scaled(F.pad(x, (1, 0))[..., index], 1 / _SQRT2)
    return torch.where(row < column, -a, a)


def pack(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch d"]:
    """The strict lower triangle, scaled to an isometry."""
    n = a.shape[-1]
    row, column = torch.tril_indices(n, n, -1, device=a.device)
    return scaled(a[..., row, column], _SQRT2)


def _size(x: Tensor) -> int:
    """The ``n`` of a packed length ``n (n - 1) / 2``."""
    VECTOR.require("Skew(x)", x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    n = (math.isqrt(8 * length + 1) + 1) // 2
    if n * (n - 1) // 2 != length:
        raise ConstraintError(
            "Skew.forward(x)",
            "have a last dimension n (n - 1) / 2: 0, 1, 3, 6, 10, ...",
            str(tuple(x.shape)),
            "`right_inverse` of an n by n matrix gives the right one.",
        )
    return n
