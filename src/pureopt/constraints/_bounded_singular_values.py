"""Matrices whose singular values lie between two bounds."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._errors import ConstraintError, HyperparameterError
from pureopt.constraints._base import Constraint
from pureopt.constraints._bounded_spectrum import BoundedSpectrum, check_bounds
from pureopt.constraints._cayley import haar
from pureopt.constraints._domains import MATRIX, VECTOR, Domain
from pureopt.constraints._low_rank import singular_value, truncated_svd
from pureopt.constraints._numeric import (
    all_finite,
    max_abs,
    or_nan,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._orthogonal import Orthogonal, OrthogonalStatic
from pureopt.constraints._positive_semidefinite import (
    eigenvalues,
    spectral_tolerance,
    symmetric_part,
)
from pureopt.constraints._symmetric import Symmetric

BOUNDED_SINGULAR_VALUES = Domain(
    "a matrix with bounded singular values",
    "(..., n, k)",
    2,
    made_by="BoundedSingularValues(low, high)",
    inside=(MATRIX,),
)

# Made once: the compiler cannot trace its making.
_ORTHOGONAL = Orthogonal()


@final
@dataclass(frozen=True)
class BoundedSingularValues(Constraint):
    r"""Matrices whose singular values lie between two bounds, by polar decomposition.

    .. math:: Y = Q S, \qquad Q = \text{Orthogonal}(x_1), \quad
        S = \text{BoundedSpectrum}(l, h)(x_2)

    (``S Q`` for wide matrices.) Exactly as many numbers as entries; one-to-one onto the
    matrices of full rank inside the bounds and inside the chart of ``Q``, whose static
    it takes, and smooth also where singular values meet. :meth:`check` takes the bounds
    themselves, as for :class:`BoundedSpectrum`. If ``low`` is zero, ``Q`` is not unique
    where ``Y`` is rank deficient, and the map is singular there. If ``low`` is
    positive, a square ``Y`` keeps the sign of its determinant.

    Args:
        low: The lower bound ``l``, at least zero.
        high: The upper bound ``h``, above ``low``.

    Raises:
        HyperparameterError: If the bounds are no finite numbers with ``0 <= l < h``.

    References:
        Higham (2008), chapter 8 (the polar decomposition).

    Example:
        >>> import torch
        >>> c = BoundedSingularValues(0.5, 2)
        >>> y = torch.diag(torch.tensor([2.0, 1.0, -0.5]))
        >>> x = c.right_inverse(y, c.bind(y))
        >>> x.shape, torch.allclose(c.forward(x, c.bind(y)), y, atol=1e-6)
        (torch.Size([9]), True)
        >>> bool(c.check(3 * y))
        False
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        check_bounds("BoundedSingularValues", self.low, self.high)
        if self.low < 0:
            raise HyperparameterError(
                "BoundedSingularValues(low=...)", "be >= 0", repr(self.low)
            )

    @property
    def domain(self) -> Domain:
        """Vectors with as many entries as the matrix."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices with bounded singular values."""
        return BOUNDED_SINGULAR_VALUES

    @property
    def rule(self) -> str:
        """How far the singular values are beyond the bounds."""
        return f"max({self.low} - sigma_min(Y), sigma_max(Y) - {self.high})"

    @property
    def _spectrum(self) -> BoundedSpectrum:
        return BoundedSpectrum(self.low, self.high)

    def dim(self, shape: Sequence[int]) -> int:
        """The number of entries."""
        self._require_shape("dim", shape)
        return shape[-2] * shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """The smaller one of the factors."""
        radii = _ORTHOGONAL.radius(n, dtype), self._spectrum.radius(n, dtype)
        return min(radii)

    def offers(self, method: str) -> bool:
        """As the class says, and ``sample`` only if ``low`` is zero."""
        return super().offers(method) and (method != "sample" or self.low == 0)

    def bind(self, y: Float[Tensor, "*batch m n"]) -> OrthogonalStatic:
        """The chart of the orthogonal factor."""
        BOUNDED_SINGULAR_VALUES.require("BoundedSingularValues.bind(y)", y)
        u, _, vh = truncated_svd(working(y), min(y.shape[-2:]))
        return _ORTHOGONAL.bind(u @ vh)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch m n"]:
        """The matrix; see the class."""
        m, n = _shape("BoundedSingularValues.forward(x)", x, static)
        first, second = _halves(x, m, n)
        q = _ORTHOGONAL.forward(first, static)
        s = self._spectrum.forward(second)
        return (q @ s if m >= n else s @ q).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch m n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not in the set or not in the chart."""
        BOUNDED_SINGULAR_VALUES.require("BoundedSingularValues.right_inverse(y)", y)
        u, s, vh = truncated_svd(working(y), min(y.shape[-2:]))
        first = _ORTHOGONAL.right_inverse(u @ vh, static)
        vectors = vh.mT if y.shape[-2] >= y.shape[-1] else u
        free = self._spectrum.free_values(s).unsqueeze(-2)
        second = Symmetric().right_inverse(symmetric_part(vectors * free @ vectors.mT))
        x = torch.cat([first, second], -1)
        return or_nan(self.check(y) & all_finite(first, 1), x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """How far the singular values are beyond the bounds."""
        BOUNDED_SINGULAR_VALUES.require("BoundedSingularValues(y)", y)
        a = working(y)
        smallest = singular_value(a, min(y.shape[-2:]) - 1)
        return torch.maximum(self.low - smallest, singular_value(a, 0) - self.high)

    def tolerance(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """``eps |Y|`` for storage, ``4 n eps'`` of ``|Y|`` and of the larger bound."""
        eps = 4 * max(y.shape[-2:]) * working_eps(y.dtype)
        return spectral_tolerance(y) + eps * self.high

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """Five times the tolerance, times ``max(1, max|x|)`` for the Cayley transform."""
        reach = max_abs(working(x), 1).clamp(min=1)
        return scaled(self.tolerance(y), 5) * reach

    def project(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
        """The singular values clamped."""
        BOUNDED_SINGULAR_VALUES.require("BoundedSingularValues.project(y)", y)
        u, s, vh = truncated_svd(working(y), min(y.shape[-2:]))
        nearest = (u * s.clamp(self.low, self.high).unsqueeze(-2)) @ vh
        return or_nan(all_finite(working(y)), nearest, 2).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Drawn uniformly: a corner of uniform orthonormal columns, if ``low`` is zero.

        Raises:
            ConstraintError: If ``low`` is not zero.

        References:
            Muirhead (1982), theorem 3.3.1.
        """
        if self.low != 0:
            self._lacks("sample")
        like = torch.empty(tuple(shape), dtype=dtype, device="meta")
        where = "BoundedSingularValues.sample(shape=...)"
        BOUNDED_SINGULAR_VALUES.require(where, like)
        m, n = shape[-2:]
        columns = haar(key, (*shape[:-2], m + n + 1, n), dtype)
        return columns[..., :m, :] * self.high

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""From those of the factors, and the singular values ``s``.

        .. math:: (m - n) \sum_i \log s_i + \sum_{i < j} \log \tfrac12 (s_i + s_j)

        Its second derivatives lose ``eps`` over the relative gap of two singular values,
        and are NaN where two are equal; the first ones are right there too.
        """
        m, n = _shape("BoundedSingularValues.log_abs_det(x)", x, static)
        first, second = _halves(x, m, n)
        free = eigenvalues(Symmetric().forward(second))
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        s = scaled(torch.tanh(free), half) + middle
        k = min(m, n)
        i, j = torch.tril_indices(k, k, -1, device=x.device)
        pairs = scaled(s[..., i] + s[..., j], 0.5).log().sum(-1)
        singles = scaled(s.log().sum(-1), abs(m - n) + 0.0)
        own = self._spectrum.log_volume(free)
        total = _ORTHOGONAL.log_abs_det(first, static) + own + singles + pairs
        return total.to(x.dtype)


def _shape(where: str, x: Tensor, static: Any) -> tuple[int, int]:
    """The shape of the matrix; a square one without static."""
    VECTOR.require(where, x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    m = n = math.isqrt(length)
    if isinstance(static, OrthogonalStatic):
        m, n = static.shape.shape[-3:-1]
    if m * n != length or length == 0:
        raise ConstraintError(
            where,
            f"have a last dimension {m} * {n} for a {m} by {n} matrix",
            str(tuple(x.shape)),
            "Without static the matrix is square; take the static from `bind`.",
        )
    return m, n


def _halves(x: Tensor, m: int, n: int) -> tuple[Tensor, Tensor]:
    """The free values of the two factors, in the working dtype."""
    k = min(m, n)
    cut = m * n - k * (k + 1) // 2
    return working(x[..., :cut]), working(x[..., cut:])
