"""Vectors whose entries add up to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pureopt.constraints._domains import MATRIX, VECTOR, Domain
from pureopt.constraints._linear import LinearSubspace
from pureopt.constraints._numeric import times


@final
@dataclass(frozen=True)
class SumToZero(LinearSubspace):
    r"""Vectors whose entries add up to zero.

    .. math:: y_j = \sum_{i \ge j} w_i - (j - 1) w_{j-1}, \quad
        w_i = \frac{x_i}{\sqrt{i (i + 1)}}, \quad i = 1 \ldots n - 1

    The coordinates in the basis of Helmert, in ``O(n)``: ``n - 1`` numbers for a vector
    of length ``n``, the empty vector for ``[0]``.

    References:
        Egozcue, Pawlowsky-Glahn, Mateu-Figueras and Barceló-Vidal (2003), section 3.

    Example:
        >>> import torch
        >>> y = SumToZero().forward(torch.tensor([2**0.5, 6**0.5]))
        >>> y.round(decimals=5)
        tensor([ 2.,  0., -2.])
        >>> SumToZero().project(torch.tensor([1.0, 2.0, 6.0])).round(decimals=5)
        tensor([-2., -1.,  3.])
    """

    @property
    def codomain(self) -> Domain:
        """Vectors with zero sum."""
        return _ZERO_SUM

    @property
    def rule(self) -> str:
        """The modulus of the mean."""
        return "|mean of Y|"

    def event_shape(self, length: int) -> tuple[int, ...]:
        """One entry more than coordinates."""
        return (length + 1,)

    def degrees(self, shape: Sequence[int]) -> int:
        """``n - 1``."""
        return shape[-1] - 1

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow of ``n`` terms of the adjoint."""
        return _radius(n, dtype, 1)

    def embed(
        self, x: Float[Tensor, "*batch d"], shape: Sequence[int]
    ) -> Float[Tensor, "*batch n"]:
        """:func:`helmert`."""
        del shape
        return helmert(x)

    def adjoint(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch d"]:
        """:func:`helmert_adjoint`."""
        return helmert_adjoint(y)


@final
@dataclass(frozen=True)
class SumToZeroMatrix(LinearSubspace):
    r"""Matrices whose rows and columns all add up to zero.

    .. math:: Y = H_n^T X H_k, \qquad X \in \mathbb{R}^{(n - 1) \times (k - 1)}

    with the bases of Helmert of :class:`SumToZero`, in ``O(n k)``. ``x`` is ``X``, row
    by row. Tall and wide matrices carry their shape in ``static``.

    Example:
        >>> import torch
        >>> SumToZeroMatrix().forward(torch.tensor([2.0])).round(decimals=5)
        tensor([[ 1., -1.],
                [-1.,  1.]])
        >>> SumToZeroMatrix().check(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        tensor(False)
    """

    @property
    def codomain(self) -> Domain:
        """Matrices with zero row and column sums."""
        return _ZERO_SUMS

    def degrees(self, shape: Sequence[int]) -> int:
        """``(n - 1) (k - 1)``."""
        return (shape[0] - 1) * (shape[1] - 1)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow of ``n`` terms of the adjoint, twice."""
        return _radius(n, dtype, 2)

    def embed(
        self, x: Float[Tensor, "*batch d"], shape: Sequence[int]
    ) -> Float[Tensor, "*batch n k"]:
        """:func:`helmert` of the rows, then of the columns."""
        rows, columns = shape
        y = helmert(x.reshape(*x.shape[:-1], rows - 1, columns - 1))
        return helmert(y.mT).mT

    def adjoint(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch d"]:
        """:func:`helmert_adjoint` of the columns, then of the rows."""
        return helmert_adjoint(helmert_adjoint(y.mT).mT).flatten(-2)


def helmert(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d+1"]:
    r"""The zero-sum vector with coordinates ``x`` in the basis of Helmert.

    .. math:: y_j = \sum_{i \ge j} w_i - (j - 1) w_{j-1}, \quad
        w_i = \frac{x_i}{\sqrt{i (i + 1)}}, \quad i = 1 \ldots d

    The rows of the Helmert matrix without its first, orthonormal, in ``O(d)``.
    """
    i = _count(x, x.shape[-1])
    w = times(x, (i * (i + 1)).rsqrt())
    tails = F.pad(w, (0, 1)).flip(-1).cumsum(-1).flip(-1)
    return tails - F.pad(times(w, i), (1, 0))


def helmert_adjoint(y: Float[Tensor, "*batch d+1"]) -> Float[Tensor, "*batch d"]:
    r"""The coordinates of ``y`` in the basis of Helmert; its mean drops out.

    .. math:: x_i = \frac{\sum_{j \le i} y_j - i y_{i+1}}{\sqrt{i (i + 1)}}
    """
    i = _count(y, y.shape[-1] - 1)
    heads = y[..., :-1].cumsum(-1)
    return times(heads - times(y[..., 1:], i), (i * (i + 1)).rsqrt())


def _count(like: Tensor, n: int) -> Float[Tensor, "n"]:
    """The numbers from 1 to ``n``."""
    return torch.arange(1, n + 1, dtype=like.dtype, device=like.device)


def _radius(n: int, dtype: torch.dtype, dims: int) -> float:
    """Where neither a value nor a partial sum of ``n`` values overflows."""
    # An entry of helmert(x) is at most 2 + log(n) times the largest of x.
    growth = 2 * (2 + math.log(n))
    wide = torch.promote_types(dtype, torch.float32)
    largest = min(torch.finfo(dtype).max, torch.finfo(wide).max / n)
    return largest / growth**dims


_ZERO_SUM = Domain(
    "a vector with zero sum", "(..., n)", 1, made_by="SumToZero()", inside=(VECTOR,)
)
_ZERO_SUMS = Domain(
    "a matrix with zero row and column sums",
    "(..., n, k)",
    2,
    made_by="SumToZeroMatrix()",
    inside=(MATRIX,),
)
