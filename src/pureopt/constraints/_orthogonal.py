"""Orthonormal columns: square, tall and wide."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from pureopt._errors import ConstraintError, HyperparameterError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import (
    SignedCayley,
    chart_signs,
    check_signs,
    flip,
    haar,
    orthonormality_error,
    orthonormality_tolerance,
    polar_factor,
)
from pureopt.constraints._domains import SEMI_ORTHOGONAL, VECTOR, Domain
from pureopt.constraints._numeric import (
    max_abs,
    or_nan,
    scaled,
    shape_of,
    tall,
    working,
)
from pureopt.constraints._orthogonal_map import OrthogonalMap
from pureopt.constraints._skew import pack, unpack


class OrthogonalStatic(NamedTuple):
    """What :meth:`Orthogonal.bind` returns.

    Attributes:
        signs: One sign per orthonormal vector.
        shape: An empty tensor that carries the shape of the matrix through vmap.
        base: The point that zero goes to, where the map has one; else ``()``.

    Example:
        >>> import torch
        >>> static = Orthogonal().bind(torch.eye(5, 3))
        >>> static.signs.shape, static.shape.shape
        (torch.Size([3]), torch.Size([5, 3, 0]))
    """

    signs: Int8[Tensor, "*batch k"]
    shape: Int8[Tensor, "*batch rows columns 0"]
    base: Any = ()


@final
@dataclass(frozen=True, repr=False)
class Orthogonal(Constraint):
    r"""Matrices with orthonormal columns, or orthonormal rows if they are wide.

    ``x`` holds the free half of a skew-symmetric matrix, of which only the first ``k``
    columns are free,

    .. math::
        x \mapsto A \text{ skew } (k \times k),\ B\ ((n - k) \times k), \qquad
        Q = f\!\left(\begin{bmatrix} A & -B^T \\ B & 0 \end{bmatrix}\right)
        \begin{bmatrix} I \\ 0 \end{bmatrix} D

    and ``f`` is the map: by default the Cayley transform, ``f(S) = (I - S/2)^{-1}
    (I + S/2)``. ``x`` has ``n k - k (k + 1) / 2`` entries, as many as the set has
    dimensions; the cost is ``O(n k^2)``. At ``x = 0`` the map is an isometry. Without
    ``static`` it is the square chart with all signs +1; ``bind(torch.eye(n, k))`` is
    the standard chart of a rectangle. Undefined nowhere.

    Args:
        map: :class:`SignedCayley`, :class:`Exponential`, :class:`Householder`, or an
            :class:`OrthogonalMap` of your own.

    Raises:
        HyperparameterError: If ``map`` is no such object.

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

    map: OrthogonalMap = field(default_factory=SignedCayley)

    def __post_init__(self) -> None:
        if not isinstance(self.map, OrthogonalMap):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                "Orthogonal(map=...)",
                "be a map such as `SignedCayley()`, `Exponential()` or `Householder()`",
                told(self.map),
            )

    def __repr__(self) -> str:
        """The expression that makes it."""
        told = "" if self.map == SignedCayley() else repr(self.map)
        return f"Orthogonal({told})"

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n k - k (k + 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices with orthonormal columns or rows."""
        return SEMI_ORTHOGONAL

    @property
    def bijective(self) -> bool:
        """Whether the map is."""
        return self.map.bijective

    @property
    def rule(self) -> str:
        """The largest deviation from orthonormal columns, or rows."""
        return "max|Y^T Y - I| (Y Y^T if wide)"

    def dim(self, shape: Sequence[int]) -> int:
        """``n k - k (k + 1) / 2``."""
        self._require_shape("dim", shape)
        n, k = max(shape[-2:]), min(shape[-2:])
        return n * k - k * (k + 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """That of the map."""
        return self.map.radius(n, dtype)

    def bind(self, y: Float[Tensor, "*batch rows columns"]) -> OrthogonalStatic:
        """The chart around ``y``, and its shape."""
        SEMI_ORTHOGONAL.require("Orthogonal.bind(y)", y)
        q = tall(working(y))
        signs = chart_signs(q)
        return OrthogonalStatic(signs, shape_of(y), self.map.bind(flip(q, signs)))

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch rows columns"]:
        """The matrix; see the class."""
        rows, columns, signs, base = self._chart("Orthogonal.forward", x, static)
        q = flip(self.map.columns(*_blocks(working(x), rows, columns), base), signs)
        return (q if rows >= columns else q.mT).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch rows columns"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not orthogonal or not in the chart."""
        SEMI_ORTHOGONAL.require("Orthogonal.right_inverse(y)", y)
        q = tall(working(y))
        if isinstance(static, OrthogonalStatic) and static.shape.shape[:-1] != y.shape:
            raise ConstraintError(
                "Orthogonal.right_inverse(y)",
                f"have the shape of its static, {tuple(static.shape.shape[:-1])}",
                str(tuple(y.shape)),
                "Under vmap, map over the value and the static alike.",
            )
        signs, base = self._parts("Orthogonal.right_inverse", static, q.shape)
        a, b, inside = self.map.blocks(flip(q, signs), base)
        x = torch.cat([pack(a), b.flatten(-2)], -1)
        return or_nan(self.check(y) & inside, x, 1).to(y.dtype)

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

    def rounding(
        self, x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch"]:
        """``20 eps sqrt(n)`` times :meth:`OrthogonalMap.amplification`."""
        q = tall(y)
        reach = max_abs(x, 1).to(y.dtype).clamp(min=1)
        least = 20 * math.sqrt(q.shape[-2]) * torch.finfo(y.dtype).eps
        return scaled(self.map.amplification(reach, q.shape), least)

    def project(
        self, y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch rows columns"]:
        """The orthogonal polar factor of ``y``."""
        SEMI_ORTHOGONAL.require("Orthogonal.project(y)", y)
        return polar_factor(y)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch rows columns"]:
        """Uniform in the invariant (Haar) measure; square ones of either determinant."""
        self._require_shape("sample", shape, dtype)
        *batch, rows, columns = shape
        q = haar(key, (*batch, max(rows, columns), min(rows, columns)), dtype)
        return q if rows >= columns else q.mT

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """That of the map, zero at ``x = 0``."""
        rows, columns, *_ = self._chart("Orthogonal.log_abs_det", x, static)
        return self.map.log_abs_det(*_blocks(working(x), rows, columns)).to(x.dtype)

    def _chart(self, where: str, x: Tensor, static: Any) -> tuple[int, int, Any, Any]:
        """The shape of the matrix, the signs and the base, checked against ``x``."""
        VECTOR.require(f"{where}(x)", x)
        if not isinstance(static, OrthogonalStatic):
            n = unpack(x).shape[-1]
            shape = torch.Size((*x.shape[:-1], n, n))
            return n, n, *self._parts(where, static, shape)
        # Numbers even if the compiler takes sizes as symbols: one program per shape.
        *batch, rows, columns = map(operator.index, static.shape.shape[:-1])
        dim = self.dim((rows, columns))
        if x.shape != (*batch, dim):
            raise ConstraintError(
                f"{where}(x)",
                f"have shape {(*batch, dim)} for the static of a {rows} by {columns} matrix",
                str(tuple(x.shape)),
                "Under vmap, map over the free value and the static alike.",
            )
        shape = torch.Size((*batch, max(rows, columns), min(rows, columns)))
        return rows, columns, *self._parts(where, static, shape)

    def _parts(self, where: str, static: Any, shape: torch.Size) -> tuple[Any, Any]:
        """The signs and the base, checked against a tall shape; may be absent."""
        at = f"{where}(static=...)"
        whole = isinstance(static, OrthogonalStatic)
        signs, base = (static.signs, static.base) if whole else (static, ())
        check_signs(at, signs, torch.Size((*shape[:-2], shape[-1])))
        self.map.require(at, base, shape)
        return signs, base


def _blocks(x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The skew block and the block below it."""
    n, k = max(rows, columns), min(rows, columns)
    top = k * (k - 1) // 2
    return unpack(x[..., :top]), x[..., top:].reshape(*x.shape[:-1], n - k, k)
