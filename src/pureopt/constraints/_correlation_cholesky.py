"""Cholesky factors of correlation matrices."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt import _random as random
from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._cholesky_factor import (
    CHOLESKY_FACTOR,
    diagonal,
    infinite_unless,
)
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    identity,
    max_abs,
    or_nan,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._positive import softplus

CORRELATION_CHOLESKY = Domain(
    "a Cholesky factor of a correlation matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="CorrelationCholesky()",
    inside=(CHOLESKY_FACTOR,),
)


@final
@dataclass(frozen=True)
class CorrelationCholesky(Constraint):
    r"""Cholesky factors of correlation matrices: rows of length one, diagonal positive.

    .. math:: L_{ij} = \tanh(x_{ij}) \prod_{k < j} \frac{1}{\cosh x_{ik}} \quad (i > j),
        \qquad L_{ii} = \prod_{k < i} \frac{1}{\cosh x_{ik}}

    ``tanh x`` are the canonical partial correlations, packed row by row: a vector of
    length ``n (n - 1) / 2`` gives an ``n`` by ``n`` matrix, one-to-one onto the whole
    set. The products are sums of ``log cosh``, and the right inverse is

    .. math:: x_{ij} = \operatorname{asinh}\Bigl(L_{ij} \Big/
        \bigl(\textstyle\sum_{k > j} L_{ik}^2\bigr)^{1/2}\Bigr)

    with sums from the end of each row, in which nothing cancels. :meth:`sample` draws
    factors of uniform correlation matrices, see :class:`Correlation`.

    References:
        Lewandowski, Kurowicka and Joe (2009), section 2. Stan Development Team (2024),
        *Stan Reference Manual*, "Cholesky factors of correlation matrices".

    Example:
        >>> import torch
        >>> c = CorrelationCholesky()
        >>> x = torch.linspace(-3, 3, 50 * 49 // 2, dtype=torch.float64)
        >>> factor = c.forward(x)
        >>> (
        ...     bool(c.check(factor)),
        ...     bool((c.right_inverse(factor) - x).abs().max() < 1e-13),
        ... )
        (True, True)
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n - 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Cholesky factors of correlation matrices."""
        return CORRELATION_CHOLESKY

    @property
    def rule(self) -> str:
        """The entries above the diagonal and the lengths of the rows."""
        return "max(|Y_ij| over i < j, |sum_j Y_ij^2 - 1|) (infinite unless Y_ii > 0)"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        self._require_shape("dim", shape)
        return shape[-1] * (shape[-1] - 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``-log(tiny) / (2n)``: beyond, squares of the diagonal may underflow."""
        return -math.log(torch.finfo(dtype).tiny) / (2 * n)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The factor; see the class."""
        del static
        a = unpack_below("CorrelationCholesky.forward(x)", x)
        return correlation_factor(a).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not such a factor."""
        del static
        return or_nan(self.check(y), free_of_factor(working(y)), 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Entries above the diagonal, lengths of rows; infinite unless ``Y_ii > 0``."""
        CORRELATION_CHOLESKY.require("CorrelationCholesky(y)", y)
        a = working(y)
        length = (a * a).sum(-1) - 1
        violation = torch.maximum(max_abs(a.triu(1)), max_abs(length, 1))
        return infinite_unless(diagonal(a) > 0, violation)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``4 eps + 4 sqrt(n) eps'``: storage, and sums in at least float32."""
        tolerance = 4 * torch.finfo(y.dtype).eps
        tolerance += 4 * math.sqrt(y.shape[-1]) * working_eps(y.dtype)
        return torch.full_like(working(y[..., 0, 0]), min(tolerance, 0.5))

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """``20 sqrt(n) eps``: entries are at most one, whatever the size of ``x``."""
        del x
        eps = 20 * math.sqrt(y.shape[-1]) * torch.finfo(y.dtype).eps
        return torch.full_like(y[..., 0, 0], eps)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The rows of the lower triangle over their length, diagonals raised first.

        To at least ``eps`` of the largest entry of the row: the set is open, and the
        nearest point exists only where that changes nothing.
        """
        CORRELATION_CHOLESKY.require("CorrelationCholesky.project(y)", y)
        a, info = working(y).tril(), torch.finfo(y.dtype)
        floor = scaled(a.abs().amax(-1, keepdim=True), info.eps).clamp(min=info.tiny)
        a = torch.where((identity(a) > 0) & (a < floor), floor, a)
        # By the largest entry first: the squares can neither overflow nor vanish.
        a = a / a.abs().amax(-1, keepdim=True)
        nearest = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)
        return or_nan(all_finite(y), nearest, 2).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Factors of correlation matrices drawn uniformly."""
        self._require_shape("sample", shape, dtype)
        return sample_factor(key, shape, dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""Each row is a point of a sphere in polar coordinates.

        .. math:: -\sum_{i > j} \sum_{k \le j} \log \cosh x_{ik}
        """
        del static
        a = unpack_below("CorrelationCholesky.log_abs_det(x)", x)
        i = torch.arange(a.shape[-1], device=a.device)
        below = i[:, None] > i
        sums = log_cosh(a).cumsum(-1)
        return -torch.where(below, sums, torch.zeros_like(a)).sum((-1, -2)).to(x.dtype)


def correlation_factor(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The factor of the unpacked free values, zero on and above the diagonal."""
    logs = log_remainders(a)
    i = torch.arange(a.shape[-1], device=a.device)
    entry = torch.where(i[:, None] > i, torch.tanh(a), (i[:, None] == i).to(a.dtype))
    return entry * torch.exp(-logs)


def log_remainders(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``sum_{k < j} log cosh x_ik``, minus the log of what is left of row ``i``."""
    sums = log_cosh(a).cumsum(-1)
    return torch.nn.functional.pad(sums[..., :-1], (1, 0))


def log_cosh(x: Tensor) -> Tensor:
    """``log cosh x``, without overflow; zero at zero."""
    return softplus(x + x) - x - math.log(2)


def free_of_factor(factor: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch d"]:
    """The inverse of :func:`correlation_factor`, packed."""
    n = factor.shape[-1]
    row, column = torch.tril_indices(n, n, -1, device=factor.device)
    rest = (factor * factor).tril().flip(-1).cumsum(-1).flip(-1).sqrt()
    return torch.asinh(factor[..., row, column] / rest[..., row, column + 1])


def unpack_below(where: str, x: Tensor) -> Float[Tensor, "*batch n n"]:
    """The strictly lower triangular matrix of a packed vector, in the working dtype.

    Raises:
        ConstraintError: If the length is no ``n (n - 1) / 2``.
    """
    VECTOR.require(where, x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    n = (math.isqrt(8 * length + 1) + 1) // 2
    if n * (n - 1) // 2 != length:
        raise ConstraintError(
            where,
            "have a last dimension n (n - 1) / 2: 0, 1, 3, 6, 10, ...",
            str(tuple(x.shape)),
            "`right_inverse` of an n by n matrix gives the right one.",
        )
    i = torch.arange(n, device=x.device)
    row, column = i[:, None], i
    # A zero in front of the vector serves the rest, also for n = 1.
    index = torch.where(row > column, row * (row - 1) // 2 + column + 1, 0)
    return torch.nn.functional.pad(working(x), (1, 0))[..., index]


def sample_factor(
    key: Int[Tensor, ""], shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Factors of uniform correlation matrices, by the onion method.

    Row ``i`` starts with the first ``i - 1`` coordinates of a uniform direction in
    ``n + 1`` dimensions, whatever ``i``: the squared length has the Beta distribution
    of the reference for the uniform density.

    References:
        Lewandowski, Kurowicka and Joe (2009), section 3.2, with eta = 1.
    """
    n = shape[-1]
    wide = torch.promote_types(dtype, torch.float32)
    g = random.normal(key, (*shape[:-1], n + 1), dtype=wide)
    g = g / torch.linalg.vector_norm(g, dim=-1, keepdim=True)
    i = torch.arange(n, device=g.device)
    rest = torch.arange(n + 1, device=g.device) >= i[:, None]
    last = torch.linalg.vector_norm(torch.where(rest, g, 0), dim=-1, keepdim=True)
    below = torch.where(i[:, None] > i, g[..., :-1], 0)
    return torch.where(i[:, None] == i, last, below).to(dtype)
