"""Positive definite matrices by the matrix exponential."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import SYMMETRIC, Domain
from pureopt.constraints._numeric import (
    matrix_exp,
    or_nan,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._positive_definite import (
    DEFINITE_RULE,
    POSITIVE_DEFINITE,
    definite_violation,
    raise_eigenvalues,
)
from pureopt.constraints._positive_semidefinite import (
    eigenvalues,
    eigenvectors,
    largest_sum,
    spectral_tolerance,
    symmetric_part,
)


@final
@dataclass(frozen=True)
class LogEuclidean(Constraint):
    r"""Positive definite matrices by the matrix exponential of symmetric ones.

    .. math:: Y = e^A = e^{A/2} (e^{A/2})^T

    A link: ``Symmetric() >> LogEuclidean()`` starts from vectors of length
    ``n (n + 1) / 2``. One-to-one onto the whole set, and the only one of the two maps
    onto it that knows no order of the coordinates:
    ``forward(Q A Q^T) = Q forward(A) Q^T``. The square keeps ``Y`` semidefinite to
    rounding error. The right inverse is the logarithm of the eigenvalues, at least
    ``eps / 8`` of the largest, so that a matrix that is singular but for rounding has
    one. Some thirty times the cost of :class:`PositiveDefinite`.

    References:
        Arsigny, Fillard, Pennec and Ayache (2006), section 3.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Symmetric
        >>> c = Symmetric() >> LogEuclidean()
        >>> x = c.right_inverse(torch.diag(torch.tensor([1.0, torch.e])))
        >>> torch.allclose(x, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)
        True
        >>> c.forward(torch.zeros(3))
        tensor([[1., 0.],
                [0., 1.]])
    """

    @property
    def domain(self) -> Domain:
        """Symmetric matrices."""
        return SYMMETRIC

    @property
    def codomain(self) -> Domain:
        """Positive definite matrices."""
        return POSITIVE_DEFINITE

    @property
    def rule(self) -> str:
        """Asymmetry and negative eigenvalues."""
        return DEFINITE_RULE

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        self._require_shape("dim", shape)
        return shape[-1] * (shape[-1] + 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``-log(tiny) / n``, less a tenth: eigenvalues up to ``n max|x|`` are normal."""
        return -0.9 * math.log(torch.finfo(dtype).tiny) / n

    def forward(
        self, x: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The exponential; see the class."""
        del static
        SYMMETRIC.require("LogEuclidean.forward(x)", x)
        half = symmetric_part(matrix_exp(scaled(working(x), 0.5)))
        return symmetric_part(half @ half.mT).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The logarithm; NaN where ``y`` is not positive definite."""
        del static
        keep = self.check(y)
        values, vectors = eigenvectors(working(y))
        floor = scaled(values[..., -1:], working_eps(y.dtype) / 8)
        floor = floor.clamp(min=torch.finfo(values.dtype).tiny)
        logs = torch.maximum(values, floor).log().unsqueeze(-2)
        a = symmetric_part((vectors * logs) @ vectors.mT)
        return or_nan(keep, a, 2).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Asymmetry and negative eigenvalues; infinite unless the diagonal is > 0."""
        return definite_violation("LogEuclidean(y)", y)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``(eps + 4 n eps') |Y|``: storage, and linear algebra in at least float32."""
        return spectral_tolerance(y)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """Five times the tolerance, times one plus the largest row sum of ``|x|``.

        The exponential takes the rounding of ``x`` to a relative one of ``Y``.
        """
        reach = largest_sum(working(x)) + 1
        return scaled(spectral_tolerance(y), 5) * reach

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The symmetric part, eigenvalues raised to at least ``n eps |Y|``.

        The set is open: the nearest point exists only where that changes nothing.
        """
        POSITIVE_DEFINITE.require("LogEuclidean.project(y)", y)
        return raise_eigenvalues(working(y), torch.finfo(y.dtype).eps).to(y.dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""From the eigenvalues of ``A``, by divided differences of the exponential.

        .. math:: \tfrac{n + 1}{2} \operatorname{tr} A + \sum_{i < j} \log
            \frac{\sinh \delta_{ij}}{\delta_{ij}}, \qquad
            \delta_{ij} = \tfrac12 (\lambda_i - \lambda_j)

        Its second derivatives lose ``eps`` over the relative gap of two eigenvalues, and
        are NaN where two are equal; the first ones are right there too.
        """
        del static
        SYMMETRIC.require("LogEuclidean.log_abs_det(x)", x)
        values = scaled(eigenvalues(working(x)), 0.5)
        trace = scaled(values.sum(-1), x.shape[-1] + 1.0)
        return (trace + log_sinhc_of_gaps(values)).to(x.dtype)


def log_sinhc_of_gaps(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    r""":math:`\sum_{i < j} \log(\sinh(\delta) / \delta)` for all differences of values."""
    n = values.shape[-1]
    row, column = torch.tril_indices(n, n, -1, device=values.device)
    return _log_sinhc(values[..., row] - values[..., column]).sum(-1)


# Of log(sinh(x) / x) in x^2, the highest power first: the next term of the series,
# 2 x^14 / 127702575, is below 1e-16 where |x| < 1/4.
_SERIES = (-691 / 3831077250, 1 / 467775, -1 / 37800, 1 / 2835, -1 / 180, 1 / 6)
_SERIES_RADIUS = 0.25


def _log_sinhc(x: Tensor) -> Tensor:
    """``log(sinh(x) / x)``, also its derivatives, at zero and where sinh overflows."""
    small = x.abs() < _SERIES_RADIUS
    square = torch.where(small, x * x, torch.zeros_like(x))
    series = torch.zeros_like(x)
    for coefficient in _SERIES:
        series = (series + coefficient) * square
    a = torch.where(small, torch.ones_like(x), x).abs()
    direct = a + (-torch.expm1(scaled(a, -2.0))).log() - scaled(a, 2.0).log()
    return torch.where(small, series, direct)
