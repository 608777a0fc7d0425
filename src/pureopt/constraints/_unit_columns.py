"""Matrices whose columns have one norm: the oblique manifold."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from pureopt import _random
from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import check_signs
from pureopt.constraints._domains import MATRIX, VECTOR, Domain
from pureopt.constraints._numeric import all_finite, or_nan, scaled, working
from pureopt.constraints._sphere import (
    check_norm,
    direction,
    from_sphere,
    half,
    norm_error,
    onto_sphere,
    sphere_log_abs_det,
    sum_tolerance,
)

UNIT_COLUMNS = Domain(
    "a matrix with columns of a given norm", "(..., n, k)", 2, inside=(MATRIX,)
)


@final
@dataclass(frozen=True)
class UnitColumns(Constraint):
    r"""Matrices whose columns have a given norm: each a point of :class:`Sphere`.

    .. math:: Y_{\cdot j} = \text{Sphere}(x_{\cdot j}, s_j)

    ``x`` has ``(n - 1) k`` entries, the rows below the first one by one. The signs ``s``
    are the static data, int8 of shape ``(*batch, k)``: those of the first row. Without
    ``static`` the matrix is square and all signs are +1; for a rectangle the standard
    chart is ``bind(torch.ones(n, k))``.

    Args:
        norm: The norm of each column, a positive number.

    References:
        Absil and Gallivan (2006) (the oblique manifold).

    Raises:
        HyperparameterError: If ``norm`` is not positive and finite.

    Example:
        >>> import torch
        >>> y = torch.nn.functional.normalize(torch.arange(1.0, 7).reshape(3, 2), dim=0)
        >>> c, static = UnitColumns(), UnitColumns().bind(-y)
        >>> static
        tensor([-1, -1], dtype=torch.int8)
        >>> x = c.right_inverse(-y, static)
        >>> x.shape, torch.allclose(c.forward(x, static), -y)
        (torch.Size([4]), True)
    """

    norm: float = 1.0

    def __post_init__(self) -> None:
        check_norm("UnitColumns(norm=...)", self.norm)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``(n - 1) k``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices with columns of a given norm."""
        return UNIT_COLUMNS

    @property
    def rule(self) -> str:
        """The largest relative deviation of a norm."""
        return f"max_j | |Y_j| / {self.norm:g} - 1 |"

    def dim(self, shape: Sequence[int]) -> int:
        """``(n - 1) k``."""
        self._require_shape("dim", shape)
        return (shape[-2] - 1) * shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where the square of a norm overflows; beyond, that column is the pole."""
        return self.norm * math.sqrt(torch.finfo(dtype).max / n)

    def bind(self, y: Float[Tensor, "*batch n k"]) -> Int8[Tensor, "*batch k"]:
        """The signs of the first row."""
        UNIT_COLUMNS.require("UnitColumns.bind(y)", y)
        return half(y.mT)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """The matrix; see the class."""
        columns = _columns("UnitColumns.forward", x, static)
        return onto_sphere(working(columns), static, self.norm).mT.to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where a column has another norm or is the pole."""
        keep = self.check(y)
        where = "UnitColumns.right_inverse(static=...)"
        check_signs(where, static, torch.Size((*y.shape[:-2], y.shape[-1])))
        x = from_sphere(working(y.mT), static, self.norm).mT.flatten(-2)
        return or_nan(keep & all_finite(x, 1), x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """The largest relative deviation of a norm."""
        UNIT_COLUMNS.require("UnitColumns(y)", y)
        return norm_error(y.mT, self.norm).amax(-1)

    def tolerance(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """``4 eps + 10 sqrt(n) eps'``, see :func:`sum_tolerance`."""
        return sum_tolerance(y[..., 0])

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n k"]
    ) -> Float[Tensor, "*batch"]:
        """Twice the tolerance, times the norm."""
        del x
        return scaled(sum_tolerance(y[..., 0]), 2 * self.norm)

    def project(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
        """Each column scaled to the norm; a zero goes to the first basis vector.

        Every column of the norm is a nearest one of zero.
        """
        UNIT_COLUMNS.require("UnitColumns.project(y)", y)
        nearest = or_nan(all_finite(y), direction(y.mT).mT, 2)
        return scaled(nearest, self.norm).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n k"]:
        """Independent columns, each uniform on its sphere."""
        self._require_shape("sample", shape, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        return self.project(_random.normal(key, shape, dtype=wide)).to(dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """The sum over the columns of that of :class:`Sphere`."""
        columns = _columns("UnitColumns.log_abs_det", x, static)
        return sphere_log_abs_det(working(columns), self.norm).sum(-1).to(x.dtype)


def _columns(where: str, x: Tensor, signs: Any) -> Float[Tensor, "*batch k d"]:
    """The free vectors of the columns, checked against the signs."""
    VECTOR.require(f"{where}(x)", x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    if isinstance(signs, tuple) and not signs:
        k = (math.isqrt(4 * length + 1) + 1) // 2
        fits, rule = k * (k - 1) == length, "n (n - 1) without static"
    else:
        k = signs.shape[-1] if isinstance(signs, Tensor) and signs.dim() else 1
        check_signs(f"{where}(static=...)", signs, torch.Size((*x.shape[:-1], k)))
        fits, rule = length % k == 0, f"(n - 1) {k} for signs of {k} columns"
    if not fits:
        raise ConstraintError(
            f"{where}(x)", f"have a last dimension {rule}", str(tuple(x.shape))
        )
    return x.reshape(*x.shape[:-1], length // k, k).mT
