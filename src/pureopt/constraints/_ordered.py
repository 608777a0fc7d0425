"""Vectors in increasing order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._gaps import (
    gap_rounding,
    gap_tolerance,
    gaps_inverse,
    isotonic,
    missing_gap,
    ramp,
)
from pureopt.constraints._numeric import all_finite, or_nan, working
from pureopt.constraints._positive import check_margin, softplus

ORDERED = Domain(
    "a vector in increasing order",
    "(..., k)",
    1,
    made_by="Ordered()",
    inside=(VECTOR,),
)


@final
@dataclass(frozen=True)
class Ordered(Constraint):
    r"""Vectors in increasing order, from the middle entry and softplus gaps.

    .. math::
        y_c = x_c, \qquad
        y_{i+1} - y_i = g + \log(1 + e^{x_j}), \quad
        j = i + 1 \text{ above the middle } c,\ j = i \text{ below it}

    The middle entry is :math:`c = \lfloor (k - 1) / 2 \rfloor`: gaps are summed outwards
    from it, so that rounding errors stay half as large as from an end. ``x`` has as
    many entries as ``y``.

    The set is closed, ``y[i + 1] - y[i] >= min_gap`` up to rounding: at an offset of
    1000, gaps of 1e-5 are ties in float32, and ties stay ties through a round trip. A
    tie is a gap below what the dtype can tell, whose derivative is as small, and so is
    that of a gap of just ``min_gap``: such neighbors do not part. Begin with neighbors
    that are apart, for example at ``Ordered(min_gap=0.1).project(y)``.

    Args:
        min_gap: The smallest gap :math:`g` between neighbors, at least zero.

    Raises:
        HyperparameterError: If ``min_gap`` is negative or not finite.

    References:
        Stan Development Team (2024), *Reference Manual*, ordered vectors (from the first
        entry, with exponential gaps).

    Example:
        >>> import torch
        >>> y = torch.tensor([-1.0, 0.0, 0.5, 7.0])
        >>> x = Ordered().right_inverse(y)
        >>> x
        tensor([ 0.5413,  0.0000, -0.4328,  6.4985])
        >>> bool((Ordered().forward(x) - y).abs().max() < 1e-6)
        True
        >>> Ordered(min_gap=1.0).check(torch.tensor([[0.0, 1.0], [0.0, 0.9]]))
        tensor([ True, False])
    """

    min_gap: float = 0.0

    def __post_init__(self) -> None:
        check_margin("Ordered(min_gap=...)", self.min_gap)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``k``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Vectors in increasing order."""
        return ORDERED

    @property
    def rule(self) -> str:
        """The largest gap that is missing."""
        return f"max({self.min_gap:g} - (Y[i+1] - Y[i]))"

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
        VECTOR.require("Ordered.forward(x)", x)
        below, middle, above = _parts(working(x))
        down = (softplus(below) + self.min_gap).flip(-1).cumsum(-1).flip(-1)
        up = (softplus(above) + self.min_gap).cumsum(-1)
        y = torch.cat([middle - down, middle, middle + up], -1)
        return y.to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch k"], static: Any = ()
    ) -> Float[Tensor, "*batch k"]:
        """The free vector; NaN where ``y`` is not in order."""
        del static
        keep = self.check(y)
        wide = working(y)
        free = gaps_inverse(wide[..., :-1], wide[..., 1:], self.min_gap, y.dtype)
        below, middle, _ = _parts(wide)
        c = below.shape[-1]
        x = torch.cat([free[..., :c], middle, free[..., c:]], -1)
        # A gap that overflows has no free number.
        return or_nan(keep & all_finite(x, 1), x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The largest gap that is missing, at least zero."""
        VECTOR.require("Ordered.check(y)", y)
        return missing_gap(working(y).diff(dim=-1), self.min_gap, y)

    def tolerance(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """``10 eps`` times the largest entry."""
        return gap_tolerance(y)

    def rounding(self, x: Any, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """``(k + 8) eps max|y|``, and ``(|x| + 8) eps`` times the slope of each gap."""
        below, _, above = _parts(working(x))
        missing = self.min_gap - working(y).diff(dim=-1)
        return gap_rounding(torch.cat([below, above], -1), missing, y)

    def project(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """Isotonic regression; NaN where ``y`` is not finite.

        References:
            Robertson, Wright and Dykstra (1988), section 1.4 (the max-min formulas).
        """
        VECTOR.require("Ordered.project(y)", y)
        wide = working(y)
        offset = ramp(wide, self.min_gap)
        nearest = isotonic(wide - offset) + offset
        return or_nan(all_finite(y, 1), nearest, 1).to(y.dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch k"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """The sum of the logarithms of the slopes of the gaps."""
        del static
        VECTOR.require("Ordered.log_abs_det(x)", x)
        below, _, above = _parts(working(x))
        return -softplus(-torch.cat([below, above], -1)).sum(-1).to(x.dtype)


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The entries below the middle one, the middle one, and those above."""
    c = max(x.shape[-1] - 1, 0) // 2
    return x[..., :c], x[..., c : c + 1], x[..., c + 1 :]
