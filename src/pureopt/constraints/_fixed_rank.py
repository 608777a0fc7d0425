"""Rectangular matrices of fixed rank."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pureopt._errors import ConstraintError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._cholesky_factor import (
    diagonal,
    infinite_unless,
    inverse_softplus_diagonal,
    log_softplus_slope,
    pack_triangle,
    softplus_diagonal,
    unpack_triangle,
)
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._low_rank import (
    LOW_RANK,
    check_shape,
    singular_value,
    truncated_svd,
)
from pureopt.constraints._numeric import (
    all_finite,
    identity,
    max_abs,
    or_nan,
    scaled,
    solve,
    working,
)
from pureopt.constraints._orthogonal import Orthogonal, OrthogonalStatic
from pureopt.constraints._positive_semidefinite import (
    check_order,
    check_rank,
    fitting_rank,
    log_volume,
    pivot_order,
    reorder,
    spectral_tolerance,
    take,
)

# Made once: the compiler cannot trace its making.
_ROWS = Orthogonal()


class FixedRankStatic(NamedTuple):
    """What :meth:`FixedRank.bind` returns.

    Attributes:
        order: The order of the rows of the matrix, the pivots first.
        rows: The static of :class:`Orthogonal` for an orthonormal basis of the rows.

    Example:
        >>> import torch
        >>> static = FixedRank(1).bind(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        >>> static.order, static.rows.signs.shape
        (tensor([1, 0]), torch.Size([1]))
    """

    order: Int64[Tensor, "*batch m"]
    rows: OrthogonalStatic


@final
@dataclass(frozen=True)
class FixedRank(Constraint):
    r"""Matrices whose rank is exactly ``rank``, without redundant numbers.

    .. math:: Y = P^T \begin{bmatrix} I \\ B \end{bmatrix} L Q, \qquad
        L_{ii} = \log(1 + e^{x_{ii}})

    with ``B`` free, ``L`` lower triangular (``r`` by ``r``), and ``Q`` with orthonormal
    rows by :class:`Orthogonal`: ``r (m + n - r)`` numbers, as many as the set has
    dimensions, in this order. The static data is the permutation ``P``, which puts
    ``r`` rows first that span the others with small coefficients, and the chart of
    ``Q``: every matrix has one. :meth:`check` cannot tell a matrix from one that has a
    lower rank but for rounding; if its singular value ``r`` is exactly zero, it fails.
    Symmetric matrices of fixed rank are :class:`PositiveSemidefinite` with a rank.

    To minimize, take :class:`LowRank`: of nine random matrices L-BFGS found the nearest
    one there in 21 to 72 evaluations, here in 25 to more than 400.

    Args:
        rank: The rank ``r``, at least 1.

    Raises:
        HyperparameterError: If ``rank`` is no integer of at least 1.

    References:
        Helmke and Shayman (1995), section 2 (the charts). Eckart and Young (1936) (the
        projection).

    Example:
        >>> import torch
        >>> y = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 1.0], [4.0, 0.0, 2.0]])
        >>> c = FixedRank(1)
        >>> x = c.right_inverse(y, c.bind(y))
        >>> x.shape, bool((c.forward(x, c.bind(y)) - y).abs().max() < 1e-6)
        (torch.Size([5]), True)
        >>> bool(c.check(0 * y)), bool(c.check(y + torch.eye(3)))
        (False, False)
    """

    rank: int

    def __post_init__(self) -> None:
        check_rank("FixedRank(rank=...)", self.rank)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``r (m + n - r)``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices of low rank."""
        return LOW_RANK

    @property
    def rule(self) -> str:
        """The first singular value too many."""
        r = self.rank
        return f"sigma_{r + 1}(Y) (infinite if sigma_{r}(Y) = 0)"

    def dim(self, shape: Sequence[int]) -> int:
        """``r (m + n - r)``."""
        self._require_shape("dim", shape)
        r = fitting_rank("FixedRank.dim(shape)", self.rank, shape)
        return r * (shape[-2] + shape[-1] - r)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """A quarter of that of :class:`Orthogonal`: beyond, ``B L`` cancels too much.

        At most ``-log(tiny) / 2``, for the diagonal of ``L`` not to underflow.
        """
        floor = -math.log(torch.finfo(dtype).tiny) / 2
        return min(_ROWS.radius(n, dtype) / 4, floor)

    def bind(self, y: Float[Tensor, "*batch m n"]) -> FixedRankStatic:
        """The order of the rows, and the chart of their orthonormal basis."""
        self._require("bind(y)", y)
        u, s, vh = truncated_svd(working(y), self.rank)
        order = pivot_order(u)
        q = self._factors(u, s, vh, order)[2]
        return FixedRankStatic(order, _ROWS.bind(q))

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch m n"]:
        """The matrix; see the class."""
        b, a, free, bound = self._parts("forward", x, static)
        rows = softplus_diagonal(a) @ _ROWS.forward(free, bound.rows)
        return reorder(torch.cat([rows, b @ rows], -2), bound.order).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch m n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not in the set or not in the chart."""
        self._require("right_inverse(y)", y)
        bound = self._static("right_inverse", static, y.shape)
        b, lower, q = self._factors(*truncated_svd(working(y), self.rank), bound.order)
        free = _ROWS.right_inverse(q, bound.rows)
        a = pack_triangle(inverse_softplus_diagonal(lower))
        keep = self.check(y) & (max_abs(b) <= _ROWS.radius(max(y.shape[-2:]), y.dtype))
        x = torch.cat([b.flatten(-2), a, free], -1)
        return or_nan(keep & all_finite(x, 1), x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """The first singular value too many; infinite where the one before is zero."""
        self._require("violation(y)", y)
        a = working(y)
        last = singular_value(a, self.rank - 1)
        return infinite_unless(last.unsqueeze(-1) > 0, singular_value(a, self.rank))

    def tolerance(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
        """``(eps + 4 max(m, n) eps') |Y|``: storage, and linear algebra."""
        return spectral_tolerance(y)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """Five times the tolerance, times ``max(1, max|x|)`` for the Cayley transform."""
        reach = max_abs(working(x), 1).clamp(min=1)
        return scaled(spectral_tolerance(y), 5) * reach

    def project(self, y: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
        """The ``r`` largest singular values, raised to at least ``n eps`` of the first.

        The set is not closed: the nearest point exists only where that changes nothing.
        """
        self._require("project(y)", y)
        u, s, vh = truncated_svd(working(y), self.rank)
        info = torch.finfo(y.dtype)
        floor = scaled(s[..., :1], max(y.shape[-2:]) * info.eps).clamp(min=info.tiny)
        nearest = (u * torch.maximum(s, floor).unsqueeze(-2)) @ vh
        return or_nan(all_finite(y), nearest, 2).to(y.dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""From that of :class:`Orthogonal`.

        .. math:: \tfrac{n - r}{2} \log\det(I + B^T B) + \sum_i (m + n - r - i)
            \log L_{ii} + \log \sigma(x_{ii}) - \tfrac r4 (r - 1) \log 2
        """
        b, a, free, bound = self._parts("log_abs_det", x, static)
        m, r, n = b.shape[-2] + self.rank, self.rank, bound.rows.shape.shape[-2]
        top = identity(a).expand(a.shape)
        graph = scaled(log_volume(torch.cat([top, b], -2)), n - r + 0.0)
        weights = torch.arange(m + n - r - 1, m + n - 2 * r - 1, -1, device=x.device)
        weighted = diagonal(softplus_diagonal(a)).log() @ weights.to(a.dtype)
        rows = _ROWS.log_abs_det(free, bound.rows)
        total = graph + weighted + log_softplus_slope(a) + rows
        return (total - r * (r - 1) / 4 * math.log(2)).to(x.dtype)

    def _factors(
        self, u: Tensor, s: Tensor, vh: Tensor, order: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``B``, ``L`` and ``Q`` of a truncated singular value decomposition."""
        top, below = take(u, order).tensor_split((self.rank,), -2)
        b = solve(top.mT, below.mT).mT
        rows = (top * s.unsqueeze(-2)) @ vh
        q, upper = torch.linalg.qr(rows.mT)
        flip = (diagonal(upper) < 0).unsqueeze(-2)
        lower = torch.where(flip, -upper.mT, upper.mT)
        return b, lower, torch.where(flip, -q, q).mT

    def _parts(
        self, method: str, x: Tensor, static: Any
    ) -> tuple[Tensor, Tensor, Tensor, FixedRankStatic]:
        """The free values of ``B``, ``L`` and ``Q``, and the static."""
        where, r = f"FixedRank.{method}(x)", self.rank
        VECTOR.require(where, x)
        length = operator.index(x.shape[-1])
        m = n = (length // r + r) // 2
        if not _absent(method, static):
            m, n = static.order.shape[-1], static.rows.shape.shape[-2]
        if min(m, n) < r or r * (m + n - r) != length:
            raise ConstraintError(
                where,
                f"have a last dimension r (m + n - r) for a {m} by {n} matrix of rank"
                f" r = {r}",
                str(tuple(x.shape)),
                "Without static the matrix is square; take the static from `bind`.",
            )
        shape = torch.Size((*x.shape[:-1], m, n))
        bound = self._static(method, static, shape)
        if _absent(method, static):
            bound = bound._replace(rows=_standard_rows(x, r, n))
        cuts = ((m - r) * r, (m - r) * r + r * (r + 1) // 2)
        b, a, free = working(x).tensor_split(cuts, -1)
        return b.unflatten(-1, (m - r, r)), unpack_triangle(a, r), free, bound

    def _static(self, method: str, static: Any, shape: torch.Size) -> FixedRankStatic:
        """The static, checked against the shape of the matrix."""
        where = f"FixedRank.{method}(static=...)"
        if _absent(method, static):
            return FixedRankStatic((), ())  # pyright: ignore[reportArgumentType]
        check_order(where, static.order, shape[:-1])
        rows = (*shape[:-2], self.rank, shape[-1])
        check_shape(where, static.rows.shape, rows)
        return static

    def _require(self, method: str, y: Tensor) -> None:
        LOW_RANK.require(f"FixedRank.{method}", y)
        fitting_rank(f"FixedRank.{method}", self.rank, y.shape)


def _absent(method: str, static: Any) -> bool:
    """Whether the static is empty; raises if it is of another kind."""
    if isinstance(static, tuple) and not static:
        return True
    if isinstance(static, FixedRankStatic):
        return False
    raise ConstraintError(
        f"FixedRank.{method}(static=...)",
        "be a `FixedRankStatic`",
        told(static),
        "Take it from `bind`.",
    )


def _standard_rows(x: Tensor, r: int, n: int) -> OrthogonalStatic:
    """The standard chart of ``r`` orthonormal rows, over the batch of ``x``."""
    signs = torch.ones((*x.shape[:-1], r), dtype=torch.int8, device=x.device)
    return OrthogonalStatic(signs, x.new_empty((*x.shape[:-1], r, n, 0)))
