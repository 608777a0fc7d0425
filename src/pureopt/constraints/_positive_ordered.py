"""Vectors of positive numbers in increasing order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pureopt.constraints._base import Constraint
from pureopt.constraints._bounds import smallest
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._gaps import (
    gap_rounding,
    gap_tolerance,
    gaps_inverse,
    isotonic,
    missing_gap,
    ramp,
)
from pureopt.constraints._numeric import all_finite, max_abs, or_nan, working
from pureopt.constraints._ordered import ORDERED
from pureopt.constraints._positive import check_margin, softplus

POSITIVE_ORDERED = Domain(
    "a vector of positive numbers in increasing order",
    "(..., k)",
    1,
    made_by="PositiveOrdered()",
    inside=(ORDERED,),
)


@final
@dataclass(frozen=True)
class PositiveOrdered(Constraint):
    r"""Vectors of positive numbers in increasing order, from softplus gaps.

    .. math:: y_i - y_{i-1} = g + \log(1 + e^{x_i}), \qquad y_0 = 0

    Zero counts as a neighbor of the first entry. ``x`` has as many entries as ``y``.
    The first entry is larger than zero; the gaps are at least ``min_gap`` up to
    rounding, as in :class:`Ordered`. Small first entries keep their relative accuracy.

    Args:
        min_gap: The smallest gap :math:`g` between neighbors, at least zero.

    Raises:
        HyperparameterError: If ``min_gap`` is negative or not finite.

    Example:
        >>> import torch
        >>> x = PositiveOrdered().right_inverse(torch.tensor([1e-30, 1.0, 5.0]))
        >>> x
        tensor([-69.0776,   0.5413,   3.9815])
        >>> PositiveOrdered().forward(x)
        tensor([1.0000e-30, 1.0000e+00, 5.0000e+00])
    """

    min_gap: float = 0.0

    def __post_init__(self) -> None:
        check_margin("PositiveOrdered(min_gap=...)", self.min_gap)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``k``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Vectors of positive numbers in increasing order."""
        return POSITIVE_ORDERED

    @property
    def rule(self) -> str:
        """The largest gap that is missing, more where the first is not positive."""
        return f"max({self.min_gap:g} - (Y[i] - Y[i-1])) with Y[-1] = 0 < Y[0]"

    def dim(self, shape: Sequence[int]) -> int:
        """``k``."""
        self._require_shape("dim", shape)
        return shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """The sums of ``n`` gaps must not overflow."""
        return torch.finfo(dtype).max / (2 * n + 2)

    def forward(
        self, x: Float[Tensor, "*batch k"], static: Any = ()
    ) -> Float[Tensor, "*batch k"]:
        """The vector; see the class."""
        del static
        VECTOR.require("PositiveOrdered.forward(x)", x)
        y = (softplus(working(x)) + self.min_gap).cumsum(-1).to(x.dtype)
        # What underflows to zero is the smallest positive number instead.
        tiny = torch.full_like(y, smallest(y.dtype))
        return y + torch.where(y == 0, tiny, torch.zeros_like(y))

    def right_inverse(
        self, y: Float[Tensor, "*batch k"], static: Any = ()
    ) -> Float[Tensor, "*batch k"]:
        """The free vector; NaN where ``y`` is not positive or not in order."""
        del static
        keep = self.check(y)
        wide = working(y)
        lower = F.pad(wide, (1, 0))[..., :-1]
        return or_nan(
            keep, gaps_inverse(lower, wide, self.min_gap, y.dtype), 1
        ).to(y.dtype)  # fmt: skip

    def violation(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The largest gap that is missing; above the tolerance if one is not positive."""
        VECTOR.require("PositiveOrdered.check(y)", y)
        wide = working(y)
        first = wide[..., :1]
        # Zero must not pass as a small rounding error of a gap: the size of the vector
        # is larger than the tolerance.
        size = max_abs(wide, 1).unsqueeze(-1) + smallest(y.dtype)
        excess = torch.where(first > 0, torch.zeros_like(first), size)
        gaps = torch.cat([first - excess, wide.diff(dim=-1)], -1)
        return missing_gap(gaps, self.min_gap, y)

    def tolerance(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """``10 eps`` times the largest entry."""
        return gap_tolerance(y)

    def rounding(self, x: Any, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """``(k + 8) eps max|y|``, and ``(|x| + 8) eps`` times the slope of each gap."""
        missing = self.min_gap - working(F.pad(y, (1, 0))).diff(dim=-1)
        return gap_rounding(working(x), missing, y)

    def project(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """Isotonic regression, clamped to zero; NaN where ``y`` is not finite.

        References:
            Robertson, Wright and Dykstra (1988), section 1.4 (the max-min formulas).
        """
        VECTOR.require("PositiveOrdered.project(y)", y)
        wide = working(y)
        offset = ramp(wide, self.min_gap)
        offset = offset - offset[..., :1] + self.min_gap
        nearest = isotonic(wide - offset).clamp(min=0) + offset
        nearest = nearest.to(y.dtype).clamp(min=smallest(y.dtype))
        return or_nan(all_finite(y, 1), nearest, 1)

    def log_abs_det(
        self, x: Float[Tensor, "*batch k"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """The sum of the logarithms of the slopes of the gaps."""
        del static
        VECTOR.require("PositiveOrdered.log_abs_det(x)", x)
        return -softplus(-working(x)).sum(-1).to(x.dtype)
