"""Lower triangular matrices with a positive diagonal."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import SQUARE, VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    identity,
    max_abs,
    or_nan,
    scaled,
    working,
)
from pureopt.constraints._positive import softplus, softplus_inverse

CHOLESKY_FACTOR = Domain(
    "a lower triangular matrix with a positive diagonal",
    "(..., n, n)",
    2,
    square=True,
    made_by="CholeskyFactor()",
    inside=(SQUARE,),
)


@final
@dataclass(frozen=True)
class CholeskyFactor(Constraint):
    r"""Lower triangular matrices with a positive diagonal.

    .. math:: L_{ii} = \log(1 + e^{x_{ii}}), \qquad L_{ij} = x_{ij} \quad (i > j)

    Packed row by row: a vector of length ``n (n + 1) / 2`` gives an ``n`` by ``n``
    matrix. One-to-one onto the whole set, and the right inverse works entry by entry,
    so no condition number spoils it.

    References:
        Pinheiro and Bates (1996), section 2.1, with softplus in place of exp.

    Example:
        >>> import torch
        >>> c = CholeskyFactor()
        >>> factor = c.forward(torch.tensor([-30.0, 7.0, 40.0]))
        >>> factor[1], bool(c.check(factor)), bool(c.check(-factor))
        (tensor([ 7., 40.]), True, False)
        >>> c.right_inverse(factor)
        tensor([-30.,   7.,  40.])
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n + 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Lower triangular matrices with a positive diagonal."""
        return CHOLESKY_FACTOR

    @property
    def rule(self) -> str:
        """The largest entry above the diagonal."""
        return "max|Y_ij| over i < j (infinite unless every Y_ii > 0)"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        self._require_shape("dim", shape)
        return shape[-1] * (shape[-1] + 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``-log(tiny)``: below, the diagonal leaves the normal numbers."""
        del n
        return -math.log(torch.finfo(dtype).tiny)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The factor; see the class."""
        del static
        n = triangle_size("CholeskyFactor.forward(x)", x)
        return softplus_diagonal(unpack_triangle(working(x), n)).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """Entry by entry; NaN where ``y`` is not such a factor."""
        del static
        keep = self.check(y)
        x = pack_triangle(inverse_softplus_diagonal(working(y)))
        return or_nan(keep, x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The largest entry above the diagonal; infinite unless the diagonal is > 0.

        NaN where ``y`` is not finite.
        """
        CHOLESKY_FACTOR.require("CholeskyFactor(y)", y)
        above = or_nan(all_finite(y), max_abs(y.triu(1)), 0)
        return infinite_unless(diagonal(y) > 0, above)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Eight roundings of the largest entry."""
        return scaled(max_abs(y), 8 * torch.finfo(y.dtype).eps)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """``8 eps m (1 + |log m|)`` with ``m = max|Y|``.

        A small entry ``m`` of the diagonal is the exponential of ``log m``, whose
        rounding is ``eps |log m|``.
        """
        del x
        m = max_abs(y)
        return scaled(m + m * m.log().abs(), 8 * torch.finfo(y.dtype).eps)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The lower triangle, its diagonal raised to at least ``eps max|Y|``.

        The set is open: the nearest point exists only where that changes nothing.
        """
        CHOLESKY_FACTOR.require("CholeskyFactor.project(y)", y)
        info = torch.finfo(y.dtype)
        floor = scaled(max_abs(y), info.eps).clamp(min=info.tiny)[..., None, None]
        raised = torch.where(y < floor, floor, y)
        nearest = torch.where(identity(y) > 0, raised, y).tril()
        return or_nan(all_finite(y), nearest, 2)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """The sum of ``log sigmoid`` over the diagonal of the free values."""
        del static
        n = triangle_size("CholeskyFactor.log_abs_det(x)", x)
        return log_softplus_slope(unpack_triangle(working(x), n)).to(x.dtype)


def softplus_diagonal(a: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
    """``a``, which is lower triangular, with softplus on the diagonal."""
    i, j = _indices(a)
    # On the diagonal alone: on all entries it takes most of the time of a map.
    return torch.where(i == j, softplus(diagonal(a)).unsqueeze(-2), a)


def inverse_softplus_diagonal(
    factor: Float[Tensor, "*batch n k"],
) -> Float[Tensor, "*batch n k"]:
    """The inverse of :func:`softplus_diagonal`; ``log(tiny)`` at and below ``tiny``.

    So the boundary has a finite preimage, which goes to the smallest normal number.
    """
    i, j = _indices(factor)
    positive = factor.clamp(min=torch.finfo(factor.dtype).tiny)
    return torch.where(i == j, softplus_inverse(positive), factor)


def log_softplus_slope(a: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
    """The log volume ratio of :func:`softplus_diagonal`."""
    return -softplus(-diagonal(a)).sum(-1)


def diagonal(a: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch k"]:
    """The diagonal of a square or tall matrix, as a gather."""
    i = torch.arange(min(a.shape[-2:]), device=a.device)
    return a[..., i, i]


def infinite_unless(keep: Bool[Tensor, "*batch k"], violation: Tensor) -> Tensor:
    """The violation, infinite where a strict inequality fails; NaN stays."""
    broken = ~keep.all(-1) & ~violation.isnan()
    return torch.where(broken, torch.full_like(violation, torch.inf), violation)


def unpack_triangle(x: Float[Tensor, "*batch d"], n: int, k: int = 0) -> Tensor:
    """The lower triangle of ``n`` rows and ``k`` (or ``n``) columns, row by row."""
    k = k or n
    i = torch.arange(n, device=x.device).unsqueeze(-1)
    j = torch.arange(k, device=x.device)
    full = i.clamp(max=k)
    index = full * (full + 1) // 2 + (i - full) * k + j
    # A gather: of the ways to fill a triangle the one that compiles for all sizes.
    a = x[..., torch.where(i >= j, index, torch.zeros_like(index))]
    return torch.where(i >= j, a, torch.zeros_like(a))


def pack_triangle(a: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch d"]:
    """The inverse of :func:`unpack_triangle`."""
    row, column = torch.tril_indices(*a.shape[-2:], device=a.device)
    return a[..., row, column]


def triangle_size(where: str, x: Tensor) -> int:
    """The ``n`` of a packed length ``n (n + 1) / 2``.

    Raises:
        ConstraintError: If there is none.
    """
    VECTOR.require(where, x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    n = (math.isqrt(8 * length + 1) - 1) // 2
    if n == 0 or n * (n + 1) // 2 != length:
        raise ConstraintError(
            where,
            "have a last dimension n (n + 1) / 2: 1, 3, 6, 10, ...",
            str(tuple(x.shape)),
            "`right_inverse` of an n by n matrix gives the right one.",
        )
    return n


def _indices(a: Tensor) -> tuple[Tensor, Tensor]:
    i = torch.arange(max(a.shape[-2:]), device=a.device)
    return i[: a.shape[-2], None], i[: a.shape[-1]]
