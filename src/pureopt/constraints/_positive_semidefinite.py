"""Positive semidefinite matrices of bounded rank."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pureopt._errors import ConstraintError, HyperparameterError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._cholesky_factor import (
    diagonal,
    inverse_softplus_diagonal,
    log_softplus_slope,
    pack_triangle,
    softplus_diagonal,
    unpack_triangle,
)
from pureopt.constraints._domains import SYMMETRIC, VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    max_abs,
    or_nan,
    scaled,
    working,
    working_eps,
)

POSITIVE_SEMIDEFINITE = Domain(
    "a positive semidefinite matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="PositiveSemidefinite()",
    inside=(SYMMETRIC,),
)


@final
@dataclass(frozen=True)
class PositiveSemidefinite(Constraint):
    r"""Positive semidefinite matrices whose rank is at most ``rank``.

    .. math:: Y = P^T U U^T P, \qquad U \text{ lower trapezoidal } (n \times r), \quad
        U_{ii} = \log(1 + e^{x_{ii}})

    ``x`` is ``U`` packed row by row: ``n r - r (r - 1) / 2`` numbers, the dimension of
    the set. The permutation ``P`` is the static data: the order of the rows, int64 of
    shape ``(*batch, n)``. :meth:`bind` puts ``r`` rows first that span the others with
    small coefficients (the pivots of a pivoted Cholesky factorization), so that every
    matrix has a chart; without static the order is the given one. Each chart is
    one-to-one onto the matrices of rank ``r`` whose first rows are independent. Lower
    ranks are the boundary: a zero of the diagonal of ``U`` becomes the smallest normal
    number, where the gradient vanishes.

    Args:
        rank: The largest rank ``r``, at least 1; ``None`` is the size of the matrix.

    Raises:
        HyperparameterError: If ``rank`` is no integer of at least 1.

    References:
        Burer and Monteiro (2003), equation 2. Higham (2002b), section 10.3 (pivoting).

    Example:
        >>> import torch
        >>> y = torch.tensor([[0.0, 0.0, 0.0], [0.0, 4.0, 2.0], [0.0, 2.0, 1.0]])
        >>> c = PositiveSemidefinite(1)
        >>> order = c.bind(y)
        >>> order, c.right_inverse(y, order).shape
        (tensor([1, 0, 2]), torch.Size([3]))
        >>> z = c.forward(c.right_inverse(y, order), order)
        >>> bool((z - y).abs().max() < 1e-6), bool(c.check(y + torch.eye(3)))
        (True, False)
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None:
            check_rank("PositiveSemidefinite(rank=...)", self.rank)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n r - r (r - 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Positive semidefinite matrices."""
        return POSITIVE_SEMIDEFINITE

    @property
    def rule(self) -> str:
        """Asymmetry, and the eigenvalues that are negative or too many."""
        rest = "" if self.rank is None else f", lambda_{self.rank + 1}(Y)"
        return f"max(n |Y - Y^T|, -lambda_min(Y){rest})"

    def dim(self, shape: Sequence[int]) -> int:
        """``n r - r (r - 1) / 2``."""
        self._require_shape("dim", shape)
        r = self._rank("dim(shape)", shape[-1])
        return shape[-1] * r - r * (r - 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where the squares overflow."""
        return math.sqrt(torch.finfo(dtype).max / (2 * n))

    def bind(self, y: Float[Tensor, "*batch n n"]) -> Int64[Tensor, "*batch n"]:
        """The order of the rows, the pivots first."""
        r = self._require("bind(y)", y)
        return pivot_order(root(working(y), r))

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The matrix; see the class."""
        a = self._free("forward", x, static)
        u = reorder(softplus_diagonal(a), static)
        return symmetric_part(u @ u.mT).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not in the set."""
        r = self._require("right_inverse(y)", y)
        where = "PositiveSemidefinite.right_inverse(static=...)"
        check_order(where, static, y.shape[:-1])
        u = take(root(working(y), r), static)
        x = pack_triangle(inverse_softplus_diagonal(rotate_to_triangle(u)))
        return or_nan(self.check(y), x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Asymmetry, and the eigenvalues that are negative or too many."""
        r = self._require("violation(y)", y)
        values = eigenvalues(working(y))
        parts = [asymmetry(working(y)), -values[..., 0]]
        if r < y.shape[-1]:
            parts.append(values[..., -r - 1])
        return torch.stack(parts).amax(0)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``(eps + 4 n eps') |Y|``, see :func:`spectral_tolerance`."""
        return spectral_tolerance(y)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """About ``20 n eps |Y|``, see :func:`factor_rounding`; no condition number."""
        del x
        return factor_rounding(y)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The ``r`` largest eigenvalues, negative ones as zero."""
        r = self._require("project(y)", y)
        u = root(working(y), r)
        return symmetric_part(u @ u.mT).to(y.dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""With ``L`` the top of ``U``, and the other rows as a graph over it.

        .. math:: \tfrac{n - r + 1}{2} \log\det U^T U + \sum_i (r - i) \log L_{ii}
            + \tfrac r4 (2n - r + 3) \log 2 + \sum_i \log \sigma(x_{ii})
        """
        a = self._free("log_abs_det", x, static)
        u = softplus_diagonal(a)
        n, r = a.shape[-2:]
        gram = log_volume(u)
        steps = torch.arange(r - 1, -1, -1, dtype=u.dtype, device=u.device)
        # Not the trace of Y^T Y: a product of matrices survives the compiler.
        weighted = diagonal(u).log() @ steps
        constant = r * (2 * n - r + 3) / 4 * math.log(2)
        total = scaled(gram, n - r + 1.0) + weighted + log_softplus_slope(a)
        return (total + constant).to(x.dtype)

    def _free(self, method: str, x: Tensor, static: Any) -> Tensor:
        """The unpacked free values, in the working dtype."""
        where = f"PositiveSemidefinite.{method}"
        VECTOR.require(f"{where}(x)", x)
        length = operator.index(x.shape[-1])
        if self.rank is None:
            n = r = (math.isqrt(8 * length + 1) - 1) // 2
        else:
            r = self.rank
            n = (length + r * (r - 1) // 2) // r
        if length == 0 or n < r or n * r - r * (r - 1) // 2 != length:
            raise ConstraintError(
                f"{where}(x)",
                "have a last dimension n r - r (r - 1) / 2 with n >= r"
                + ("" if self.rank is None else f" = {r}"),
                str(tuple(x.shape)),
                "`right_inverse` of an n by n matrix gives the right one.",
            )
        check_order(f"{where}(static=...)", static, torch.Size((*x.shape[:-1], n)))
        return unpack_triangle(working(x), n, r)

    def _require(self, method: str, y: Tensor) -> int:
        """The rank, after the checks of the shape."""
        POSITIVE_SEMIDEFINITE.require(f"PositiveSemidefinite.{method}", y)
        return self._rank(method, y.shape[-1])

    def _rank(self, method: str, n: int) -> int:
        return fitting_rank(f"PositiveSemidefinite.{method}", self.rank or n, (n, n))


def symmetric_part(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``(Y + Y^T) / 2``."""
    return scaled(y + y.mT, 0.5)


def asymmetry(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """``n max|Y - Y^T|``: no eigenvalue moves by more if all entries do."""
    return scaled(max_abs(y - y.mT), y.shape[-1] + 0.0)


def eigenvalues(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    """The eigenvalues of the symmetric part, ascending; NaN where not finite."""
    values = torch.linalg.eigvalsh(symmetric_part(finite_or_zero(y)))
    return or_nan(all_finite(y), values, 1)


def eigenvectors(y: Float[Tensor, "*batch n n"]) -> tuple[Tensor, Tensor]:
    """The eigenvalues and eigenvectors of the symmetric part; no NaN, for masking."""
    values, vectors = torch.linalg.eigh(symmetric_part(finite_or_zero(y)))
    return values, vectors


def largest_sum(y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
    """The largest absolute row or column sum: at least the largest singular value."""
    a = y.abs()
    return torch.maximum(a.sum(-1).amax(-1), a.sum(-2).amax(-1))


def spectral_tolerance(y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
    r""":math:`(\epsilon + 4 n \epsilon') \|Y\|`, what rounding does to a spectrum.

    The first term is the storage of the entries in the leaf's dtype, the second the
    linear algebra in at least float32; ``|Y|`` is the largest absolute row or column
    sum. Entries below the normal numbers are off by up to the smallest number that
    there is. No condition number: a matrix that is singular but for rounding cannot be
    told from a singular one.
    """
    n, info = max(y.shape[-2:]), torch.finfo(y.dtype)
    relative = info.eps + 4 * n * working_eps(y.dtype)
    return scaled(largest_sum(working(y)), relative) + n * info.eps * info.tiny


def factor_rounding(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """Five times the tolerance, and ``4 eps m |log m|`` with ``m = |Y|``.

    The diagonal of the factor of a small ``Y`` is the exponential of about
    ``log(m) / 2``, whose rounding is relative.
    """
    m = largest_sum(working(y)).clamp(min=torch.finfo(y.dtype).tiny)
    logs = scaled(m * m.log().abs(), 4 * torch.finfo(y.dtype).eps)
    return scaled(spectral_tolerance(y), 5) + logs


def root(y: Float[Tensor, "*batch n n"], r: int) -> Float[Tensor, "*batch n r"]:
    """``U`` with ``U U^T`` the nearest semidefinite matrix of rank ``r``.

    NaN where ``y`` is not finite.
    """
    values, vectors = eigenvectors(y)
    largest = values[..., -r:].clamp(min=0).sqrt()
    return or_nan(all_finite(y), vectors[..., -r:] * largest.unsqueeze(-2), 2)


def rotate_to_triangle(u: Float[Tensor, "*batch n r"]) -> Float[Tensor, "*batch n r"]:
    """``U Q``, lower trapezoidal with a diagonal that is not negative, ``Q`` orthogonal.

    By a QR decomposition of the top: exact for any condition number and any rank.
    """
    q = torch.linalg.qr(u[..., : u.shape[-1], :].mT).Q
    lower = (u @ q).tril()
    return torch.where((diagonal(lower) < 0).unsqueeze(-2), -lower, lower)


def log_volume(u: Float[Tensor, "*batch n r"]) -> Float[Tensor, "*batch"]:
    r""":math:`\tfrac12 \log\det U^T U`, from the R of a QR decomposition."""
    return diagonal(torch.linalg.qr(u).R).abs().log().sum(-1)


def pivot_order(u: Float[Tensor, "*batch n r"]) -> Int64[Tensor, "*batch n"]:
    """The order of the rows in which each pivot is farthest from the span before it.

    The ``r`` pivots come first, the other rows follow in their order.
    """
    n, r = u.shape[-2:]
    i = torch.arange(n, device=u.device)
    rank = (i + r).expand(u.shape[:-1])
    rest = u
    for step in range(r):
        square = (rest * rest).sum(-1)
        square = torch.where(rank < r, -torch.ones_like(square), square)
        pick = i == square.argmax(-1, keepdim=True)
        rank = torch.where(pick, step, rank)
        row = torch.where(pick.unsqueeze(-1), rest, torch.zeros_like(rest)).sum(-2)
        length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
        length = torch.where(length > 0, length, torch.ones_like(length))
        direction = (row / length).unsqueeze(-1)
        rest = rest - (rest @ direction) @ direction.mT
    return rank.argsort(-1)


def take(u: Float[Tensor, "*batch n k"], order: Any) -> Float[Tensor, "*batch n k"]:
    """The rows in the given order; the order may be absent."""
    if not isinstance(order, Tensor):
        return u
    return u.gather(-2, order.unsqueeze(-1).expand(u.shape))


def reorder(u: Float[Tensor, "*batch n k"], order: Any) -> Float[Tensor, "*batch n k"]:
    """The inverse of :func:`take`."""
    return take(u, order.argsort(-1)) if isinstance(order, Tensor) else u


def check_order(where: str, order: Any, shape: torch.Size) -> None:
    """Raise unless the order of the rows is absent or has one entry per row.

    Raises:
        ConstraintError: Says what it is.
    """
    if isinstance(order, tuple) and not order:
        return
    if (
        isinstance(order, Tensor)
        and order.dtype == torch.int64
        and order.shape == shape
    ):
        return
    raise ConstraintError(
        where,
        f"be an int64 tensor of row numbers of shape {tuple(shape)}",
        told(order),
        "Take it from `bind`; under vmap, map over the free value and the static alike.",
    )


def check_rank(where: str, rank: Any) -> None:
    """Raise unless the rank is an integer of at least 1.

    Raises:
        HyperparameterError: Says what it is.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise HyperparameterError(where, "be an integer >= 1", repr(rank))


def fitting_rank(where: str, rank: int, shape: Sequence[int]) -> int:
    """The rank, if a matrix of that shape can have it.

    Raises:
        ConstraintError: If it cannot.
    """
    rows, columns = shape[-2:]
    if rank > min(rows, columns):
        raise ConstraintError(
            where,
            f"have at least {rank} rows and columns for rank {rank}",
            f"a {rows} by {columns} matrix",
            "Choose a smaller rank.",
        )
    return rank
