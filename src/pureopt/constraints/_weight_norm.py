"""Weight normalization: a magnitude and a direction for each row or column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import ConstraintError, HyperparameterError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import MATRIX, VECTOR, Domain
from pureopt.constraints._numeric import all_finite, max_abs, or_nan, scaled, working

PARTS = Domain(
    "magnitudes and directions, as `WeightNormParts`", "(..., n) and (..., n, k)", 2
)


class WeightNormParts(NamedTuple):
    """The free value of :class:`WeightNorm`.

    Attributes:
        magnitude: The norm of each row (column), of any sign.
        direction: A matrix whose rows (columns) have any norm.

    Example:
        >>> import torch
        >>> x = WeightNorm().right_inverse(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        >>> x.magnitude
        tensor([5., 2.])
    """

    magnitude: Float[Tensor, "*batch n"]
    direction: Float[Tensor, "*batch n k"]


@final
@dataclass(frozen=True)
class WeightNorm(Constraint):
    r"""All matrices, from a magnitude and a direction for each row or column.

    .. math:: Y_{i \cdot} = g_i \, \frac{v_{i \cdot}}{\|v_{i \cdot}\|}

    The free value has two leaves, so that an optimizer can treat them apart:
    :class:`WeightNormParts`. The set is the whole space of matrices; the map is
    redundant by one number per row, the norm of ``v``. A zero row of ``v``, where the
    map has no limit, counts as the first basis vector. The right inverse is
    ``g = |Y|``, ``v = Y``; for a zero row ``g = 0`` and ``v`` is the first basis vector.
    ``torch.nn.utils.parametrizations.weight_norm`` with ``dim=0`` is ``axis=-2``.

    Args:
        axis: The dimension that keeps its norms: -2, one for each row, or -1, one for
            each column.

    References:
        Salimans and Kingma (2016), equation 2.

    Raises:
        HyperparameterError: If ``axis`` is neither -2 nor -1.

    Example:
        >>> import torch
        >>> w = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> g, v = WeightNorm().right_inverse(w)
        >>> bool((WeightNorm().forward((g, v)) == w).all())
        True
        >>> WeightNorm().forward((g + 10, v))
        tensor([[ 9., 12.],
                [10.,  0.]])
    """

    axis: int = -2

    def __post_init__(self) -> None:
        if self.axis not in {-2, -1}:
            raise HyperparameterError(
                "WeightNorm(axis=...)",
                "be -2 (a norm for each row) or -1 (for each column)",
                repr(self.axis),
            )

    @property
    def domain(self) -> Domain:
        """Pairs of magnitudes and directions."""
        return PARTS

    @property
    def codomain(self) -> Domain:
        """All matrices."""
        return MATRIX

    @property
    def bijective(self) -> bool:
        """False: the norm of a direction does not matter."""
        return False

    @property
    def rule(self) -> str:
        """Nothing but finite entries."""
        return "0 max|Y|"

    def dim(self, shape: Sequence[int]) -> int:
        """``n k``."""
        self._require_shape("dim", shape)
        return shape[-2] * shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow of a norm."""
        return torch.finfo(dtype).max / n

    def forward(self, x: Any, static: Any = ()) -> Float[Tensor, "*batch n k"]:
        """The matrix; see the class."""
        del static
        magnitude, direction = self._parts(x)
        v, norm = unit(working(direction), self._over)
        v = torch.where(norm == 0, self._first(v), v)
        return (working(magnitude).unsqueeze(self._over) * v).to(direction.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> WeightNormParts:
        """The norms, and ``y`` itself; a basis vector for a zero row."""
        del static
        keep = self.check(y)
        norm = unit(working(y), self._over)[1]
        v = torch.where(norm == 0, self._first(y), y)
        g = norm.squeeze(self._over).to(y.dtype)
        return WeightNormParts(or_nan(keep, g, 1), or_nan(keep, v, 2))

    def violation(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """Zero, and NaN where ``y`` is not finite."""
        MATRIX.require("WeightNorm(y)", y)
        size = max_abs(working(y))
        return or_nan(size.isfinite(), torch.zeros_like(size), 0)

    def tolerance(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """Zero."""
        return torch.zeros_like(max_abs(working(y)))

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n k"]
    ) -> Float[Tensor, "*batch"]:
        """Some roundings of the largest entry: of a norm, a quotient and a product."""
        del x
        return scaled(max_abs(working(y)), 8 * torch.finfo(y.dtype).eps)

    def project(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
        """``y``: every matrix is in the set."""
        MATRIX.require("WeightNorm.project(y)", y)
        return or_nan(all_finite(y), y, 2)

    @property
    def _over(self) -> int:
        """The dimension that a norm sums over."""
        return -1 if self.axis == -2 else -2  # noqa: PLR2004

    def _first(self, y: Tensor) -> Tensor:
        """The first basis vector along the dimension that a norm sums over."""
        first = (torch.arange(y.shape[self._over], device=y.device) == 0).to(y.dtype)
        return first if self._over == -1 else first[:, None]

    def _parts(self, x: Any) -> tuple[Tensor, Tensor]:
        """The two leaves, checked against one another."""
        where = "WeightNorm.forward(x)"
        if not isinstance(x, tuple) or len(x) != len(WeightNormParts._fields):
            raise ConstraintError(
                where,
                "be `WeightNormParts(magnitude, direction)`",
                told(x),
                "`right_inverse` of a matrix gives one.",
            )
        magnitude, direction = WeightNormParts(*x)
        MATRIX.require(f"{where}.direction", direction)
        VECTOR.require(f"{where}.magnitude", magnitude)
        *batch, rows, columns = direction.shape
        want = (*batch, columns if self._over == -2 else rows)  # noqa: PLR2004
        if magnitude.shape != want:
            raise ConstraintError(
                f"{where}.magnitude",
                f"have shape {want} for directions of shape {tuple(direction.shape)}",
                str(tuple(magnitude.shape)),
            )
        return magnitude, direction


def unit(v: Tensor, *dims: int) -> tuple[Tensor, Tensor]:
    """``v / |v|`` over ``dims``, which stay with size one, and ``|v|``; 0 for zero.

    The largest entry comes out first, so that the squares neither overflow nor vanish.
    """
    top = v.abs().amax(dims, keepdim=True)
    one = torch.ones_like(top)
    u = v / torch.where(top == 0, one, top)
    square = (u * u).sum(dims, keepdim=True)
    norm = torch.where(square == 0, one, square).sqrt()
    return u / norm, torch.where(top == 0, torch.zeros_like(top), top * norm)
