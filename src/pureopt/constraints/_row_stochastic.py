"""Matrices whose rows are probability vectors."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import MATRIX, VECTOR, Domain
from pureopt.constraints._numeric import all_finite, or_nan, shape_of, working
from pureopt.constraints._simplex import (
    Simplex,
    finite_log,
    ilr_log_abs_det,
    nearest_on_simplex,
    simplex_error,
    uniform_on_simplex,
)
from pureopt.constraints._sphere import sum_tolerance
from pureopt.constraints._sum_to_zero import helmert, helmert_adjoint

ROW_STOCHASTIC = Domain(
    "a matrix with rows of probabilities", "(..., n, K)", 2, inside=(MATRIX,)
)

_DIMS = 3  # of the static: rows, columns, and the empty one


@final
@dataclass(frozen=True)
class RowStochastic(Constraint):
    r"""Matrices whose rows are probability vectors, such as transition matrices.

    .. math:: P_{i \cdot} = \operatorname{softmax}(V x_{i \cdot})

    each row by the isometric log-ratios of :class:`Simplex`; what is said there about
    zeros holds here. ``x`` has ``n (K - 1)`` entries, row by row. The static data is
    the shape; without it the matrix is square.

    References:
        Egozcue, Pawlowsky-Glahn, Mateu-Figueras and Barceló-Vidal (2003).

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]])
        >>> c, static = RowStochastic(), RowStochastic().bind(p)
        >>> x = c.right_inverse(p, static)
        >>> x.shape, torch.allclose(c.forward(x, static), p)
        (torch.Size([4]), True)
        >>> c.forward(torch.zeros(2))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (K - 1)``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices with rows of probabilities."""
        return ROW_STOCHASTIC

    @property
    def rule(self) -> str:
        """The worst row: the deviation of its sum from one, its most negative entry."""
        return "max_i max(|sum(Y_i) - 1|, -min(Y_i))"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (K - 1)``."""
        self._require_shape("dim", shape)
        return shape[-2] * (shape[-1] - 1)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """That of :class:`Simplex`."""
        return Simplex().radius(n, dtype)

    def bind(self, y: Float[Tensor, "*batch n K"]) -> Int8[Tensor, "*batch n K 0"]:
        """The shape, as an empty tensor."""
        ROW_STOCHASTIC.require("RowStochastic.bind(y)", y)
        return shape_of(y)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n K"]:
        """The matrix; see the class."""
        rows = _rows("RowStochastic.forward", x, static)
        return helmert(working(rows)).softmax(-1).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n K"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The log-ratios of the rows; NaN where a row is off the simplex."""
        keep = self.check(y)
        _check_static("RowStochastic.right_inverse(static=...)", static, y.shape)
        x = helmert_adjoint(finite_log(y)).flatten(-2)
        return or_nan(keep, x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n K"]) -> Float[Tensor, "*batch"]:
        """That of the worst row."""
        ROW_STOCHASTIC.require("RowStochastic(y)", y)
        return simplex_error(y).amax(-1)

    def tolerance(self, y: Float[Tensor, "*batch n K"]) -> Float[Tensor, "*batch"]:
        """``4 eps + 10 sqrt(K) eps'``, see :func:`sum_tolerance`."""
        return sum_tolerance(y[..., 0, :])

    def project(self, y: Float[Tensor, "*batch n K"]) -> Float[Tensor, "*batch n K"]:
        """Each row projected onto the simplex, see :meth:`Simplex.project`."""
        ROW_STOCHASTIC.require("RowStochastic.project(y)", y)
        return or_nan(all_finite(y), nearest_on_simplex(y), 2)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n K"]:
        """Independent rows, each uniform on the simplex."""
        y = uniform_on_simplex(key, shape, dtype)
        ROW_STOCHASTIC.require("RowStochastic.sample(shape=...)", y)
        return y

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """The sum over the rows of that of :class:`Simplex`."""
        rows = _rows("RowStochastic.log_abs_det", x, static)
        return ilr_log_abs_det(working(rows)).sum(-1).to(x.dtype)


def _rows(where: str, x: Tensor, static: Any) -> Float[Tensor, "*batch n K-1"]:
    """The free vectors of the rows, checked against the static."""
    VECTOR.require(f"{where}(x)", x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    if isinstance(static, Tensor):
        n, columns = static.shape[-3:-1] if static.dim() >= _DIMS else (1, 1)
        _check_static(f"{where}(static=...)", static, (*x.shape[:-1], n, columns))
        fits, rule = n * (columns - 1) == length, f"{n} ({columns} - 1) by the static"
    else:
        _check_static(f"{where}(static=...)", static, ())
        n = columns = (math.isqrt(4 * length + 1) + 1) // 2
        fits, rule = n * (n - 1) == length, "n (n - 1) without static"
    if not fits:
        raise ConstraintError(
            f"{where}(x)",
            f"have a last dimension {rule}",
            str(tuple(x.shape)),
            "Take the static from `bind`.",
        )
    return x.reshape(*x.shape[:-1], n, columns - 1)


def _check_static(where: str, static: Any, shape: Sequence[int]) -> None:
    """Raise unless the static is absent or carries the shape."""
    if isinstance(static, tuple) and not static:
        return
    if not isinstance(static, Tensor):
        got = f"`{type(static).__name__}`"
    elif static.shape != (*shape, 0):
        got = f"shape {tuple(static.shape)}"
    else:
        return
    raise ConstraintError(
        where,
        f"be an empty tensor of shape {(*shape, 0)}",
        got,
        "Take it from `bind`; under vmap, map over the free value and the static alike.",
    )
