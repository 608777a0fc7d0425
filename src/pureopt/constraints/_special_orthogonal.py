"""Rotations: orthogonal matrices of determinant +1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import SignedCayley, chart_signs, haar
from pureopt.constraints._domains import ORTHOGONAL, VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    or_nan,
    working,
)
from pureopt.constraints._orthogonal import Orthogonal, OrthogonalStatic
from pureopt.constraints._orthogonal_map import OrthogonalMap

SPECIAL_ORTHOGONAL = Domain(
    "a rotation matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="SpecialOrthogonal()",
    inside=(ORTHOGONAL,),
)


@final
@dataclass(frozen=True, repr=False)
class SpecialOrthogonal(Constraint):
    r"""Rotations, the orthogonal matrices of determinant +1.

    .. math:: Q^T Q = I, \qquad \det Q = \prod_i D_{ii} = 1

    The same maps as :class:`Orthogonal`, whose determinant never changes in a chart:
    what differs is the set. ``x`` has ``n (n - 1) / 2`` entries. A matrix of
    determinant -1 is off the set: :meth:`right_inverse` is NaN, :meth:`project` gives
    the nearest rotation.

    Args:
        map: As of :class:`Orthogonal`.

    Raises:
        HyperparameterError: If ``map`` is no such object.

    References:
        Kabsch (1976); Umeyama (1991), the nearest rotation.

    Example:
        >>> import torch
        >>> mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
        >>> SpecialOrthogonal().check(torch.stack([mirror, -mirror]))
        tensor([False,  True])
        >>> SpecialOrthogonal().violation(mirror)
        tensor(2.)
    """

    map: OrthogonalMap = field(default_factory=SignedCayley)

    def __post_init__(self) -> None:
        self._group()

    def __repr__(self) -> str:
        """The expression that makes it."""
        return f"Special{self._group()!r}"

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n - 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Rotations."""
        return SPECIAL_ORTHOGONAL

    @property
    def bijective(self) -> bool:
        """Whether the map is."""
        return self.map.bijective

    @property
    def rule(self) -> str:
        """The largest deviation from orthonormal columns; that of the determinant."""
        return "max|Y^T Y - I|, or 1 - det Y = 2 of a reflection"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        self._require_shape("dim", shape)
        return shape[-1] * (shape[-1] - 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """That of the map."""
        return self.map.radius(n, dtype)

    def bind(self, y: Float[Tensor, "*batch n n"]) -> OrthogonalStatic:
        """The chart around ``y``; see :meth:`Orthogonal.bind`."""
        SPECIAL_ORTHOGONAL.require("SpecialOrthogonal.bind(y)", y)
        return self._group().bind(y)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The rotation; see the class."""
        return self._group().forward(x, static)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is no rotation or not in the chart."""
        keep = self.check(y)
        return or_nan(keep, self._group().right_inverse(y, static), 1)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The largest deviation from orthonormal columns; at least 2 for a reflection."""
        SPECIAL_ORTHOGONAL.require("SpecialOrthogonal(y)", y)
        error = self._group().violation(y)
        return torch.where(_mirrored(working(y)), error.clamp(min=2), error)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``10 n eps``, at most one half."""
        return self._group().tolerance(y)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The nearest rotation: the polar factor with the last singular vector turned."""
        SPECIAL_ORTHOGONAL.require("SpecialOrthogonal.project(y)", y)
        a = working(y)
        u, _, vh = torch.linalg.svd(finite_or_zero(a))
        return or_nan(all_finite(a), _mended(u, _mirrored(u @ vh)) @ vh, 2).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n n"]:
        """Uniform in the invariant (Haar) measure of the rotations."""
        self._require_shape("sample", shape, dtype)
        q = haar(key, shape, dtype)
        return _mended(q, _mirrored(working(q)))

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """That of the map, zero at ``x = 0``."""
        return self._group().log_abs_det(x, static)

    def _group(self) -> Orthogonal:
        """All orthogonal matrices, by the same map."""
        return Orthogonal(self.map)


def _mirrored(q: Float[Tensor, "*batch n n"]) -> Bool[Tensor, "*batch"]:
    """Whether the determinant of an orthogonal matrix is -1: that of its signs."""
    return chart_signs(q).prod(-1) < 0


def _mended(q: Tensor, mirrored: Bool[Tensor, "*batch"]) -> Tensor:
    """The last column turned around where ``mirrored``."""
    n = q.shape[-1]
    last = torch.arange(n, device=q.device) == n - 1
    return torch.where(mirrored[..., None, None] & last, -q, q)
