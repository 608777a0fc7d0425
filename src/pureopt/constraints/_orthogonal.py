"""Orthonormal columns: square, tall and wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import (
    cayley_blocks,
    cayley_columns,
    cayley_log_abs_det,
    chart_signs,
    check_signs,
    flip,
    orthonormality_error,
    orthonormality_tolerance,
    polar_factor,
)
from pureopt.constraints._domains import SEMI_ORTHOGONAL, VECTOR, Domain
from pureopt.constraints._numeric import (
    max_abs,
    or_nan,
    shape_of,
    tall,
    working,
    working_eps,
)
from pureopt.constraints._skew import pack, unpack


class OrthogonalStatic(NamedTuple):
    """What :meth:`Orthogonal.bind` returns.

    Attributes:
        signs: One sign per orthonormal vector.
        shape: An empty tensor that carries the shape of the matrix through vmap.

    Example:
        >>> import torch
        >>> static = Orthogonal().bind(torch.eye(5, 3))
        >>> static.signs.shape, static.shape.shape
        (torch.Size([3]), torch.Size([5, 3, 0]))
    """

    signs: Int8[Tensor, "*batch k"]
    shape: Int8[Tensor, "*batch rows columns 0"]


@final
@dataclass(frozen=True)
class Orthogonal(Constraint):
    r"""Matrices with orthonormal columns, or orthonormal rows if they are wide.

    The first ``k`` columns of a signed Cayley transform of a skew-symmetric matrix, of
    which only the first ``k`` columns are free:

    .. math::
        F = Y^T Y - X, \quad Q = \begin{bmatrix} (I - F)(I + F)^{-1} \\
        2 Y (I + F)^{-1} \end{bmatrix} D, \quad
        x \mapsto 2X \text{ skew } (k \times k),\ 2Y\ ((n - k) \times k)

    A square matrix is ``Skew() >> Cayley()``. ``x`` has ``n k - k (k + 1) / 2`` entries,
    as many as the set has dimensions; the cost is ``O(n k^2)``. At ``x = 0`` the map is
    an isometry. Without ``static`` it is the square chart with all signs +1;
    ``bind(torch.eye(n, k))`` is the standard chart of a rectangle.

    References:
        Jauch, Hoff and Dunson, *Random orthogonal matrices and the Cayley transform*,
        Bernoulli 26(2), 1560-1586, 2020.

    Example:
        >>> import torch
        >>> w = torch.nn.init.orthogonal_(torch.empty(3, 7, dtype=torch.float64))
        >>> static = Orthogonal().bind(w)
        >>> x = Orthogonal().right_inverse(w, static)
        >>> x.shape, bool((Orthogonal().forward(x, static) - w).abs().max() < 1e-14)
        (torch.Size([15]), True)
        >>> y = Orthogonal().forward(x + torch.ones_like(x), static)
        >>> bool((y @ y.mT - torch.eye(3)).abs().max() < 1e-14)
        True
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n k - k (k + 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices with orthonormal columns or rows."""
        return SEMI_ORTHOGONAL

    @property
    def rule(self) -> str:
        """The largest deviation from orthonormal columns, or rows."""
        return "max|Y^T Y - I| (Y Y^T if wide)"

    def dim(self, shape: Sequence[int]) -> int:
        """``n k - k (k + 1) / 2``."""
        n, k = max(shape[-2:]), min(shape[-2:])
        return n * k - k * (k + 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``eps^(-1/4)``, with the eps of at least float32: 54 there, 8192 in float64.

        The condition number of ``I + F`` grows as the square of ``x``, and the error
        before the Newton-Schulz step with it.
        """
        del n
        return working_eps(dtype) ** -0.25

    def bind(self, y: Float[Tensor, "*batch rows columns"]) -> OrthogonalStatic:
        """The signs of the chart around ``y``, and its shape."""
        SEMI_ORTHOGONAL.require("Orthogonal.bind(y)", y)
        signs = chart_signs(working(tall(y)))
        return OrthogonalStatic(signs, shape_of(y))

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch rows columns"]:
        """The matrix; see the class."""
        rows, columns, signs = _chart("Orthogonal.forward", x, static)
        q = flip(cayley_columns(*_blocks(working(x), rows, columns)), signs)
        return (q if rows >= columns else q.mT).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch rows columns"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not orthogonal or not in the chart."""
        SEMI_ORTHOGONAL.require("Orthogonal.right_inverse(y)", y)
        q = tall(working(y))
        signs = static.signs if isinstance(static, OrthogonalStatic) else static
        check_signs(
            "Orthogonal.right_inverse(static=...)",
            signs,
            torch.Size((*q.shape[:-2], q.shape[-1])),
        )
        a, b, inside = cayley_blocks(flip(q, signs))
        radius = self.radius(q.shape[-2], y.dtype)
        keep = self.check(y) & inside & (max_abs(torch.cat([a, b], -2)) <= radius)
        return or_nan(keep, torch.cat([pack(a), b.flatten(-2)], -1), 1).to(y.dtype)

    def violation(
        self, y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch"]:
        """The largest deviation from orthonormal columns, or rows."""
        SEMI_ORTHOGONAL.require("Orthogonal(y)", y)
        return orthonormality_error(tall(y))

    def tolerance(
        self, y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch"]:
        """``10 max(rows, columns) eps``, at most one half."""
        return orthonormality_tolerance(y)

    def project(
        self, y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch rows columns"]:
        """The orthogonal polar factor of ``y``."""
        SEMI_ORTHOGONAL.require("Orthogonal.project(y)", y)
        return polar_factor(y)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`-(n - 1) \log\det(I + F)`, zero at ``x = 0``."""
        rows, columns, _ = _chart("Orthogonal.log_abs_det", x, static)
        blocks = _blocks(working(x), rows, columns)
        return cayley_log_abs_det(*blocks).to(x.dtype)


def _blocks(x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The skew block and the block below it."""
    n, k = max(rows, columns), min(rows, columns)
    top = k * (k - 1) // 2
    return unpack(x[..., :top]), x[..., top:].reshape(*x.shape[:-1], n - k, k)


def _chart(where: str, x: Tensor, static: Any) -> tuple[int, int, Any]:
    """The shape of the matrix and the signs, checked against ``x``."""
    VECTOR.require(f"{where}(x)", x)
    if not isinstance(static, OrthogonalStatic):
        check_signs(f"{where}(static=...)", static, x.shape)
        n = unpack(x).shape[-1]
        return n, n, ()
    *batch, rows, columns, _ = static.shape.shape
    n, k = max(rows, columns), min(rows, columns)
    dim = n * k - k * (k + 1) // 2
    if x.shape != (*batch, dim):
        raise ConstraintError(
            f"{where}(x)",
            f"have shape {(*batch, dim)} for the static of a {rows} by {columns} matrix",
            str(tuple(x.shape)),
            "Under vmap, map over the free value and the static alike.",
        )
    check_signs(f"{where}(static=...)", static.signs, torch.Size((*batch, k)))
    return rows, columns, static.signs
