"""Rectangular matrices of low rank."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import ConstraintError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import MATRIX, VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    or_nan,
    scaled,
    shape_of,
    working,
)
from pureopt.constraints._positive_semidefinite import (
    check_rank,
    fitting_rank,
    spectral_tolerance,
)

LOW_RANK = Domain(
    "a matrix of low rank",
    "(..., n, k)",
    2,
    made_by="LowRank(rank)",
    inside=(MATRIX,),
)


@final
@dataclass(frozen=True)
class LowRank(Constraint):
    r"""Matrices whose rank is at most ``rank``, as a product of two factors.

    .. math:: Y = U V^T, \qquad x \mapsto U\ (m \times r),\ V\ (n \times r)

    ``x`` has ``(m + n) r`` numbers, ``r^2`` more than the set has dimensions: ``U G``
    and ``V G^{-T}`` give the same matrix for every invertible ``G``. The right inverse
    is balanced, ``U^T U = V^T V``. At ``x = 0`` the gradient vanishes. The static data
    is an empty tensor that carries the shape of the matrix; without it the matrix is
    square.

    Args:
        rank: The largest rank ``r``, at least 1.

    Raises:
        HyperparameterError: If ``rank`` is no integer of at least 1.

    References:
        Burer and Monteiro (2003), section 2. Eckart and Young (1936) (the projection).

    Example:
        >>> import torch
        >>> w = torch.arange(6.0).reshape(2, 3)
        >>> c = LowRank(1)
        >>> bool(c.check(w)), LowRank(2).right_inverse(w, LowRank(2).bind(w)).shape
        (False, torch.Size([10]))
        >>> y = c.project(w)
        >>> x = c.right_inverse(y, c.bind(y))
        >>> bool((c.forward(x, c.bind(y)) - y).abs().max() < 1e-5)
        True
    """

    rank: int

    def __post_init__(self) -> None:
        check_rank("LowRank(rank=...)", self.rank)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``(m + n) r``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices of low rank."""
        return LOW_RANK

    @property
    def bijective(self) -> bool:
        """False: there are ``r^2`` null directions."""
        return False

    @property
    def rule(self) -> str:
        """The first singular value too many."""
        return f"sigma_{self.rank + 1}(Y)"

    def dim(self, shape: Sequence[int]) -> int:
        """``r (m + n - r)``."""
        self._require_shape("dim", shape)
        r = fitting_rank("LowRank.dim(shape)", self.rank, shape)
        return r * (shape[-2] + shape[-1] - r)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where the products overflow."""
        return math.sqrt(torch.finfo(dtype).max / (2 * n * self.rank))

    def bind(self, y: Float[Tensor, "*batch m n"]) -> Tensor:
        """An empty tensor that carries the shape of ``y`` through vmap."""
        self._require("bind(y)", y)
        return shape_of(y)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch m n"]:
        """The product; see the class."""
        m, n = self._shape(x, static)
        u = working(x[..., : m * self.rank]).unflatten(-1, (m, self.rank))
        v = working(x[..., m * self.rank :]).unflatten(-1, (n, self.rank))
        return (u @ v.mT).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch m n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The balanced factors; NaN where the rank of ``y`` is too large."""
        self._require("right_inverse(y)", y)
        if _given(static):
            check_shape("LowRank.right_inverse(static=...)", static, y.shape)
        u, s, vh = truncated_svd(working(y), self.rank)
        half = s.sqrt().unsqueeze(-2)
        x = torch.cat([(u * half).flatten(-2), (vh.mT * half).flatten(-2)], -1)
        return or_nan(self.check(y), x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """The first singular value too many."""
        self._require("violation(y)", y)
        return singular_value(working(y), self.rank)

    def tolerance(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """``(eps + 4 max(m, n) eps') |Y|``: storage, and linear algebra."""
        return spectral_tolerance(y)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """Five times the tolerance, about ``20 max(m, n) eps |Y|``."""
        del x
        return scaled(spectral_tolerance(y), 5)

    def project(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
        """The ``r`` largest singular values and their vectors."""
        self._require("project(y)", y)
        u, s, vh = truncated_svd(working(y), self.rank)
        nearest = (u * s.unsqueeze(-2)) @ vh
        return or_nan(all_finite(y), nearest, 2).to(y.dtype)

    def _require(self, method: str, y: Tensor) -> None:
        LOW_RANK.require(f"LowRank.{method}", y)
        fitting_rank(f"LowRank.{method}", self.rank, y.shape)

    def _shape(self, x: Tensor, static: Any) -> tuple[int, int]:
        """The shape of the matrix, checked against ``x``."""
        VECTOR.require("LowRank.forward(x)", x)
        length = operator.index(x.shape[-1])
        m = n = length // (2 * self.rank)
        if _given(static):
            check_shape("LowRank.forward(static=...)", static, (*x.shape[:-1], -1, -1))
            m, n = static.shape[-3:-1]
        if min(m, n) < self.rank or (m + n) * self.rank != length:
            raise ConstraintError(
                "LowRank.forward(x)",
                f"have a last dimension ({m} + {n}) {self.rank} for a {m} by {n} matrix"
                f" of rank {self.rank}",
                str(tuple(x.shape)),
                "Without static the matrix is square; take the static from `bind`.",
            )
        return m, n


def _given(static: Any) -> bool:
    """Whether it is anything but the empty tuple."""
    return not (isinstance(static, tuple) and not static)


def truncated_svd(
    y: Float[Tensor, "*batch m n"], r: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``r`` singular values and vectors; no NaN, for masking."""
    u, s, vh = torch.linalg.svd(finite_or_zero(y), full_matrices=False)
    return u[..., :r], s[..., :r], vh[..., :r, :]


def singular_value(y: Float[Tensor, "*batch m n"], k: int) -> Float[Tensor, "*batch"]:
    """The singular value ``k`` of those sorted downward from 0; NaN if not finite."""
    if k < min(y.shape[-2:]):
        value = torch.linalg.svdvals(finite_or_zero(y))[..., k]
    else:
        value = torch.zeros_like(y[..., 0, 0])
    return or_nan(all_finite(y), value, 0)


def check_shape(where: str, carrier: Any, shape: Sequence[int]) -> None:
    """Raise unless an empty tensor carries this shape; -1 stands for any size.

    Raises:
        ConstraintError: Says what it is.
    """
    if isinstance(carrier, Tensor) and carrier.dim() == len(shape) + 1:
        pairs = zip(carrier.shape, (*shape, 0), strict=True)
        if all(want in (-1, got) for got, want in pairs):
            return
    wanted = ", ".join("n" if n < 0 else str(n) for n in (*shape, 0))
    raise ConstraintError(
        where,
        f"be an empty tensor of shape ({wanted})",
        told(carrier),
        "Take it from `bind`; under vmap, map over the free value and the static alike.",
    )
