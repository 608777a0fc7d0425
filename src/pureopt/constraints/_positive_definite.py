"""Positive definite matrices by their Cholesky factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._base import Constraint
from pureopt.constraints._cholesky_factor import (
    diagonal,
    infinite_unless,
    inverse_softplus_diagonal,
    log_softplus_slope,
    pack_triangle,
    softplus_diagonal,
    triangle_size,
    unpack_triangle,
)
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    or_nan,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._positive_semidefinite import (
    POSITIVE_SEMIDEFINITE,
    asymmetry,
    eigenvalues,
    eigenvectors,
    factor_rounding,
    largest_sum,
    root,
    rotate_to_triangle,
    spectral_tolerance,
    symmetric_part,
)

POSITIVE_DEFINITE = Domain(
    "a positive definite matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="PositiveDefinite()",
    inside=(POSITIVE_SEMIDEFINITE,),
)


@final
@dataclass(frozen=True)
class PositiveDefinite(Constraint):
    r"""Positive definite matrices by their Cholesky factor.

    .. math:: Y = L L^T, \qquad L_{ii} = \log(1 + e^{x_{ii}}), \qquad
        L_{ij} = x_{ij} \quad (i > j)

    ``x`` is the lower triangle, packed row by row: ``n (n + 1) / 2`` numbers,
    one-to-one onto the whole set. :meth:`check` asks for a positive diagonal and for
    eigenvalues above ``-n eps |Y|``: a matrix that is singular but for rounding passes,
    as :meth:`forward` itself returns such matrices. The right inverse is the Cholesky
    factor, or, where rounding has made the matrix indefinite, the factor of the nearest
    semidefinite one: it is stable for every condition number. :class:`CholeskyFactor`
    keeps the digits of the factor that ``Y`` cannot hold.

    References:
        Pinheiro and Bates (1996), section 2.1, with softplus in place of exp.

    Example:
        >>> import torch
        >>> y = torch.tensor([[4.0, 2.0], [2.0, 3.0]])
        >>> c = PositiveDefinite()
        >>> bool((c.forward(c.right_inverse(y)) - y).abs().max() < 1e-6)
        True
        >>> c.right_inverse(-y)
        tensor([nan, nan, nan])
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n + 1) / 2``."""
        return VECTOR

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
        """Where the squares of the diagonal underflow, or those of a row overflow."""
        info = torch.finfo(dtype)
        return min(-math.log(info.tiny) / 2, math.sqrt(info.max / (2 * n)))

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The matrix; see the class."""
        del static
        n = triangle_size("PositiveDefinite.forward(x)", x)
        factor = softplus_diagonal(unpack_triangle(working(x), n))
        return symmetric_part(factor @ factor.mT).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The packed factor; NaN where ``y`` is not positive definite."""
        del static
        keep = self.check(y)
        x = pack_triangle(inverse_softplus_diagonal(cholesky_factor(working(y))))
        return or_nan(keep, x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Asymmetry and negative eigenvalues; infinite unless the diagonal is > 0."""
        return definite_violation("PositiveDefinite(y)", y)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``(eps + 4 n eps') |Y|``: storage, and linear algebra in at least float32."""
        return spectral_tolerance(y)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """About ``20 n eps |Y|``; no condition number."""
        del x
        return factor_rounding(y)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The symmetric part, eigenvalues raised to at least ``n eps |Y|``.

        With the eps of at least float32. The set is open: the nearest point exists only
        where that changes nothing.
        """
        POSITIVE_DEFINITE.require("PositiveDefinite.project(y)", y)
        return raise_eigenvalues(working(y), working_eps(y.dtype)).to(y.dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""With the Frobenius norm of ``Y``, where entries off the diagonal count twice.

        .. math:: \sum_i (n + 1 - i) \log L_{ii} + \log \sigma(x_{ii})
            + \tfrac n4 (n + 3) \log 2
        """
        del static
        n = triangle_size("PositiveDefinite.log_abs_det(x)", x)
        a = unpack_triangle(working(x), n)
        weights = torch.arange(n, 0, -1, dtype=a.dtype, device=a.device)
        # Not a product with the weights: a compiled vmap(jacfwd) refuses it.
        weighted = diagonal(softplus_diagonal(a)).log() @ weights
        constant = n * (n + 3) / 4 * math.log(2)
        return (weighted + log_softplus_slope(a) + constant).to(x.dtype)


DEFINITE_RULE = "max(n |Y - Y^T|, -lambda_min(Y)) (infinite unless every Y_ii > 0)"


def definite_violation(
    where: str, y: Float[Tensor, "*batch n n"]
) -> Float[Tensor, "*batch"]:
    """Asymmetry and negative eigenvalues; infinite unless the diagonal is positive."""
    POSITIVE_DEFINITE.require(where, y)
    a = working(y)
    violation = torch.maximum(asymmetry(a), -eigenvalues(a)[..., 0])
    return infinite_unless(diagonal(a) > 0, violation)


def cholesky_factor(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The Cholesky factor, or that of the nearest semidefinite matrix if it fails."""
    a = symmetric_part(finite_or_zero(y))
    factor, info = torch.linalg.cholesky_ex(a)
    nearest = rotate_to_triangle(root(a, a.shape[-1]))
    return torch.where((info == 0)[..., None, None], factor, nearest)


def raise_eigenvalues(
    y: Float[Tensor, "*batch n n"], eps: float
) -> Float[Tensor, "*batch n n"]:
    """The symmetric part with eigenvalues of at least ``n eps |Y|``; NaN stays."""
    values, vectors = eigenvectors(y)
    floor = scaled(largest_sum(finite_or_zero(y)), y.shape[-1] * eps)
    floor = floor.clamp(min=torch.finfo(y.dtype).tiny).unsqueeze(-1)
    raised = torch.maximum(values, floor).unsqueeze(-2)
    nearest = symmetric_part((vectors * raised) @ vectors.mT)
    return or_nan(all_finite(y), nearest, 2)
