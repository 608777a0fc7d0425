"""Correlation matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt.constraints._base import Constraint
from pureopt.constraints._cholesky_factor import diagonal
from pureopt.constraints._correlation_cholesky import (
    correlation_factor,
    free_of_factor,
    log_cosh,
    log_remainders,
    sample_factor,
    unpack_below,
)
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    identity,
    max_abs,
    or_nan,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._positive_definite import POSITIVE_DEFINITE, cholesky_factor
from pureopt.constraints._positive_semidefinite import (
    asymmetry,
    eigenvalues,
    root,
    spectral_tolerance,
    symmetric_part,
)

CORRELATION = Domain(
    "a correlation matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="Correlation()",
    inside=(POSITIVE_DEFINITE,),
)

# The alternating projections converge linearly; after these, projections of random
# matrices with up to 50 rows move by less than 1e-9.
_PROJECTIONS = 100


@final
@dataclass(frozen=True)
class Correlation(Constraint):
    r"""Correlation matrices: positive definite with a unit diagonal.

    .. math:: Y = L L^T, \qquad L = \text{CorrelationCholesky}(x)

    A vector of length ``n (n - 1) / 2`` gives an ``n`` by ``n`` matrix, one-to-one onto
    the whole set; the diagonal is exactly one. The smallest eigenvalue can shrink as
    the exponential of ``n``: where rounding makes ``Y`` singular,
    :class:`CorrelationCholesky` still has its factor. As for :class:`PositiveDefinite`,
    :meth:`check` takes a matrix that is singular but for rounding, and the right
    inverse of such a matrix is the one of a factor whose diagonal is at least ``eps``.

    References:
        Lewandowski, Kurowicka and Joe (2009), sections 2 and 3. Higham (2002a),
        algorithm 3.3 (the projection).

    Example:
        >>> import torch
        >>> c = Correlation()
        >>> y = c.forward(torch.tensor([0.5, -1.0, 2.0]))
        >>> y.diagonal(), bool(c.check(y)), bool(c.check(2 * y))
        (tensor([1., 1., 1.]), True, False)
        >>> c.project(torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
        tensor([[1., 1.],
                [1., 1.]])
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n - 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Correlation matrices."""
        return CORRELATION

    @property
    def rule(self) -> str:
        """Asymmetry, the diagonal, and negative eigenvalues."""
        return "max(n |Y - Y^T|, n |Y_ii - 1|, -lambda_min(Y))"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        self._require_shape("dim", shape)
        return shape[-1] * (shape[-1] - 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where a sum of ``n`` logarithms overflows."""
        return torch.finfo(dtype).max / (4 * n)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The matrix; see the class."""
        del static
        factor = correlation_factor(unpack_below("Correlation.forward(x)", x))
        return _unit_diagonal(symmetric_part(factor @ factor.mT)).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not a correlation matrix."""
        del static
        keep = self.check(y)
        factor = cholesky_factor(working(y))
        floor = factor.clamp(min=working_eps(y.dtype))
        factor = torch.where(identity(factor) > 0, floor, factor)
        return or_nan(keep, free_of_factor(factor), 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Asymmetry, the diagonal, and negative eigenvalues."""
        CORRELATION.require("Correlation(y)", y)
        a = working(y)
        unit = scaled(max_abs(diagonal(a) - 1, 1), a.shape[-1] + 0.0)
        return torch.stack([asymmetry(a), unit, -eigenvalues(a)[..., 0]]).amax(0)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``(eps + 4 n eps') |Y|``: storage, and linear algebra in at least float32."""
        return spectral_tolerance(y).clamp(max=0.5)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """Five times the tolerance, about ``20 n eps |Y|``; no condition number."""
        del x
        return scaled(spectral_tolerance(y), 5)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The nearest correlation matrix, by 100 alternating projections.

        Between the semidefinite matrices and those with a unit diagonal, with Dykstra's
        correction, which makes the limit the nearest point and not only a common one.
        At the end rows and columns are scaled to a unit diagonal.
        """
        CORRELATION.require("Correlation.project(y)", y)
        a = working(y)
        near = symmetric_part(finite_or_zero(a))
        correction = torch.zeros_like(near)
        semidefinite = near
        for _ in range(_PROJECTIONS):
            shifted = near - correction
            u = root(shifted, a.shape[-1])
            semidefinite = u @ u.mT
            correction = semidefinite - shifted
            near = _unit_diagonal(semidefinite)
        size = diagonal(semidefinite).clamp(min=working_eps(y.dtype)).sqrt()
        scale = size.unsqueeze(-1) * size.unsqueeze(-2)
        nearest = _unit_diagonal(symmetric_part(semidefinite / scale))
        return or_nan(all_finite(a), nearest, 2).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Correlation matrices drawn uniformly (LKJ with eta = 1), by the onion method."""
        self._require_shape("sample", shape, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        factor = sample_factor(key, shape, wide)
        return _unit_diagonal(symmetric_part(factor @ factor.mT)).to(dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""With the Frobenius norm of ``Y``, where each correlation counts twice.

        .. math:: \tfrac n4 (n - 1) \log 2 - \sum_{i > j} \Bigl(2 c_{ij}
            + \sum_{k < j} (c_{ik} + c_{jk})\Bigr), \qquad c_{ij} = \log \cosh x_{ij}
        """
        del static
        a = unpack_below("Correlation.log_abs_det(x)", x)
        n = a.shape[-1]
        logs = log_remainders(a)
        own = diagonal(logs).unsqueeze(-2)
        cosh = log_cosh(a)
        i = torch.arange(n, device=a.device)
        terms = torch.where(i[:, None] > i, cosh + cosh + logs + own, 0)
        return (n * (n - 1) / 4 * math.log(2) - terms.sum((-1, -2))).to(x.dtype)


def _unit_diagonal(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    return torch.where(identity(y) > 0, torch.ones_like(y), y)
