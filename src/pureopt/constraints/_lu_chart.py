"""Triangular factors as coordinates of invertible matrices."""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from pureopt._errors import ConstraintError, told
from pureopt._lu import exchanges
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    inverse,
    max_abs,
    or_nan,
    scaled,
    times,
    working,
    working_eps,
)


class LUStatic(NamedTuple):
    """What :meth:`Invertible.bind` and its like return.

    Attributes:
        permutation: Row ``i`` of the matrix is row ``permutation[i]`` of ``L U``.
        signs: The signs of the diagonal of ``U``.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Invertible
        >>> Invertible().bind(torch.tensor([[0.0, -2.0], [1.0, 0.0]]))
        LUStatic(permutation=tensor([1, 0]), signs=tensor([ 1, -1], dtype=torch.int8))
    """

    permutation: Int[Tensor, "*batch n"]
    signs: Int8[Tensor, "*batch n"]


class LUForm(Constraint):
    """Invertible matrices ``P L U``; a subclass says which diagonals of ``U`` there are.

    A free vector has the coordinates of ``log |u_ii|``, then the entries of ``L`` and
    ``U`` off the diagonal, row by row in one matrix.
    """

    @property
    @abstractmethod
    def codimension(self) -> int:
        """How many numbers less than ``n^2`` there are."""

    @abstractmethod
    def logs(self, head: Float[Tensor, "*batch h"]) -> Float[Tensor, "*batch n"]:
        """``log |u_ii|`` from its ``n - codimension`` coordinates, an isometry."""

    @abstractmethod
    def head(self, logs: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch h"]:
        """The coordinates of ``log |u_ii|``."""

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n^2`` minus the codimension."""
        return VECTOR

    def dim(self, shape: Sequence[int]) -> int:
        """``n^2`` minus the codimension."""
        self._require_shape("dim", shape)
        return shape[-1] ** 2 - self.codimension

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where the product of two triangular matrices may be singular to rounding.

        The condition number of a triangular matrix grows as ``(1 + max|x|)^n``: values
        around a given matrix are far better off than this worst case.
        """
        digits = -math.log(working_eps(dtype)) - 2
        return min(digits / (2 * n), math.log(torch.finfo(dtype).max) / 2)

    def bind(self, y: Float[Tensor, "*batch n n"]) -> LUStatic:
        """Rows ordered by partial pivoting, so that no entry of ``L`` exceeds one."""
        self.codomain.require(f"{type(self).__name__}.bind(y)", y)
        permutation, lu = pivoted(finite_or_zero(working(y)))
        signs = torch.where(diagonal(lu) < 0, -1, 1).to(torch.int8)
        return LUStatic(permutation, signs)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """``P L U``; see the class."""
        n = self._size("forward", x)
        static = self._static("forward", static, (*x.shape[:-1], n))
        lower, upper = self._factors(working(x), n)
        if static is None:
            return (lower @ upper).to(x.dtype)
        # Not a product with signs: a compiled vmap(jacfwd) refuses one.
        keep = (static.signs > 0).unsqueeze(-1) | ~_on_diagonal(upper)
        y = lower @ torch.where(keep, upper, -upper)
        return torch.take_along_dim(y, static.permutation.unsqueeze(-1), -2).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN off the set, and where ``P^T Y`` has no such factors."""
        keep, a = self.check(y), working(y)
        static = self._static("right_inverse", static, y.shape[:-1])
        if static is not None:
            rows = static.permutation.argsort(-1).unsqueeze(-1)
            a = torch.take_along_dim(a, rows, -2)
        lu = eliminated(a)
        u = diagonal(lu)
        inside = (u > 0) if static is None else (u > 0) == (static.signs > 0)
        inside = inside & (u != 0)
        logs = torch.where(inside, u.abs(), torch.ones_like(u)).log()
        x = torch.cat([self.head(logs), off_diagonal(lu)], -1)
        return or_nan(keep & inside.all(-1) & all_finite(x, 1), x, 1).to(y.dtype)

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n n"]
    ) -> Float[Tensor, "*batch"]:
        """``20 eps sqrt(n) max(1, max|log u|) max(|L| |U|)``."""
        n = y.shape[-1]
        lower, upper = self._factors(working(x), n)
        reach = max_abs(working(x)[..., : n - self.codimension], 1).clamp(min=1)
        size = max_abs(lower.abs() @ upper.abs())
        return scaled(reach * size, 20 * math.sqrt(n) * torch.finfo(y.dtype).eps)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`\sum_i (n - i + 1) \log|u_{ii}|`, for all of the invertible matrices."""
        del static
        n = self._size("log_abs_det", x)
        logs = self.logs(working(x)[..., : n - self.codimension])
        weight = torch.arange(n, 0, -1, dtype=logs.dtype, device=logs.device)
        return times(logs, weight).sum(-1).to(x.dtype)

    def _factors(self, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """``L`` and ``|U|`` (its diagonal, that is)."""
        split = n - self.codimension
        u = self.logs(x[..., :split]).exp()
        a = matrix(u, x[..., split:])
        lower = torch.where(_below_diagonal(a), a, torch.zeros_like(a))
        lower = torch.where(_on_diagonal(a), torch.ones_like(a), lower)
        return lower, torch.where(_below_diagonal(a), torch.zeros_like(a), a)

    def _size(self, method: str, x: Tensor) -> int:
        """The ``n`` of a length ``n^2`` minus the codimension."""
        where = f"{type(self).__name__}.{method}(x)"
        VECTOR.require(where, x)
        # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
        length = operator.index(x.shape[-1]) + self.codimension
        n = math.isqrt(length)
        if n == 0 or n * n != length:
            lengths = ", ".join(str(n * n - self.codimension) for n in range(1, 5))
            raise ConstraintError(
                where,
                f"have a last dimension of {lengths}, ...",
                str(tuple(x.shape)),
                "`right_inverse` of an n by n matrix gives the right one.",
            )
        return n

    def _static(
        self, method: str, static: Any, shape: Sequence[int]
    ) -> LUStatic | None:
        """The static, checked; ``None`` is the standard chart."""
        if isinstance(static, tuple) and not static:
            return None
        if isinstance(static, LUStatic):
            got = f"shape {tuple(static.signs.shape)}"
            if static.signs.shape == static.permutation.shape == torch.Size(shape):
                return static
        else:
            got = told(static)
        raise ConstraintError(
            f"{type(self).__name__}.{method}(static=...)",
            f"be an `LUStatic` of shape {tuple(shape)}",
            got,
            "Take it from `bind`; under vmap, map over the free value and the static alike.",
        )


def pivoted(a: Float[Tensor, "*batch n n"]) -> tuple[Tensor, Tensor]:
    """The permutation of :class:`LUStatic` and ``L``, ``U`` in one matrix."""
    lu, pivots, _ = torch.linalg.lu_factor_ex(a)
    return exchanges(lu, pivots).argmax(-1), lu


def eliminated(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``L`` and ``U`` in one matrix, by elimination without pivoting.

    The kernels of ``torch.linalg`` pivot, or are for some devices only.
    """
    steps: list[tuple[Tensor, Tensor]] = []
    rest = a
    for _ in range(a.shape[-1]):
        column = rest[..., 1:, :1] / rest[..., :1, :1]
        steps.append((rest[..., :1, :], column))
        rest = rest[..., 1:, 1:] - column * rest[..., :1, 1:]
    lu = rest
    for row, column in reversed(steps):
        lu = torch.cat([row, torch.cat([column, lu], -1)], -2)
    return lu


def sensitivity(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """``sum_ij |Y_ij (Y^-1)_ji|``; infinite where singular, NaN where not finite.

    Relative changes of the entries by ``eps`` change ``log |det Y|`` by up to ``eps``
    times this, to first order. At least ``n``, and the same for ``Y`` with other scales
    of rows and columns.
    """
    a = working(y)
    safe = finite_or_zero(a)
    terms = (safe.mT * inverse(safe)).abs().sum((-2, -1))
    terms = torch.where(terms.isfinite(), terms, torch.full_like(terms, torch.inf))
    return or_nan(all_finite(a), terms, 0)


def sensitivity_tolerance(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """``1 / (2 eps)`` with the eps of at least float32.

    Up to there no rounding of the entries changes the sign of the determinant.
    """
    return torch.full_like(working(y[..., 0, 0]), 0.5 / working_eps(y.dtype))


def preserves_orientation(
    y: Float[Tensor, "*batch n n"],
) -> Bool[Tensor, "*batch"]:
    """Whether the determinant is positive: signs of pivots and row exchanges."""
    permutation, lu = pivoted(finite_or_zero(working(y)))
    i = torch.arange(y.shape[-1], device=y.device)
    before = i[:, None] < i
    crossed = before & (permutation.unsqueeze(-1) > permutation.unsqueeze(-2))
    odd = (crossed.sum((-2, -1)) + (diagonal(lu) < 0).sum(-1)) % 2 == 1
    return ~odd


def diagonal(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    """The diagonal, by a stride: inductor warns of ``torch.diagonal``."""
    return a.flatten(-2)[..., :: a.shape[-1] + 1]


def off_diagonal(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch m"]:
    """What is not on the diagonal, row by row."""
    n = a.shape[-1]
    tail = a.flatten(-2)[..., 1:].reshape(*a.shape[:-2], n - 1, n + 1)
    return tail[..., :n].flatten(-2)


def matrix(
    diagonal: Float[Tensor, "*batch n"], off_diagonal: Float[Tensor, "*batch m"]
) -> Float[Tensor, "*batch n n"]:
    """The matrix of a diagonal and of what is not on it, row by row."""
    batch, n = diagonal.shape[:-1], diagonal.shape[-1]
    # After the first entry, n others stand before each entry of the diagonal.
    rest = off_diagonal.reshape(*batch, n - 1, n)
    tail = torch.cat([rest, diagonal[..., 1:].unsqueeze(-1)], -1).flatten(-2)
    return torch.cat([diagonal[..., :1], tail], -1).reshape(*batch, n, n)


def _on_diagonal(a: Tensor) -> Bool[Tensor, "n n"]:
    i = torch.arange(a.shape[-1], device=a.device)
    return i[:, None] == i


def _below_diagonal(a: Tensor) -> Bool[Tensor, "n n"]:
    i = torch.arange(a.shape[-1], device=a.device)
    return i[:, None] > i
