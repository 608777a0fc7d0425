"""Triangular matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt.constraints._domains import MATRIX, Domain
from pureopt.constraints._linear import SparseSubspace


@final
@dataclass(frozen=True)
class LowerTriangular(SparseSubspace):
    r"""Matrices that are zero above a diagonal, packed row by row.

    .. math:: Y_{ij} = 0 \quad (j > i + k)

    The entries are the free numbers: ``n (n + 1) / 2`` for an ``n`` by ``n`` matrix with
    ``k = 0``, ``n (n - 1) / 2`` with ``k = -1`` (strictly lower). Tall and wide matrices
    carry their shape in ``static``.

    Args:
        diagonal: The last diagonal that is free, ``k``: 0 is the main one, -1 the one
            below it.

    Raises:
        HyperparameterError: If ``diagonal`` is not an integer.

    Example:
        >>> import torch
        >>> LowerTriangular().forward(torch.tensor([1.0, 2.0, 3.0]))
        tensor([[1., 0.],
                [2., 3.]])
        >>> tall = LowerTriangular(diagonal=-1).bind(torch.empty(3, 1))
        >>> LowerTriangular(diagonal=-1).forward(torch.tensor([1.0, 2.0]), tall)
        tensor([[0.],
                [1.],
                [2.]])
    """

    diagonal: int = 0

    def __post_init__(self) -> None:
        check_diagonal(self, self.diagonal)

    @property
    def codomain(self) -> Domain:
        """Lower-triangular matrices."""
        return Domain(
            f"a matrix that is zero above diagonal {self.diagonal}",
            "(..., n, k)",
            2,
            made_by=f"LowerTriangular({self.diagonal})",
            inside=(MATRIX,),
        )

    @property
    def rule(self) -> str:
        """The largest entry that should be zero."""
        return f"max|Y| above diagonal {self.diagonal}"

    def degrees(self, shape: Sequence[int]) -> int:
        """The number of entries on and below the diagonal."""
        rows, columns = shape
        return count_below(rows, columns, self.diagonal)

    def positions(self, shape: Sequence[int], device: torch.device) -> Int[Tensor, "d"]:
        """Row by row."""
        rows, columns = shape
        i, j = torch.tril_indices(rows, columns, self.diagonal, device=device)
        return columns * i + j


@final
@dataclass(frozen=True)
class UpperTriangular(SparseSubspace):
    r"""Matrices that are zero below a diagonal, packed row by row.

    .. math:: Y_{ij} = 0 \quad (j < i + k)

    The entries are the free numbers: ``n (n + 1) / 2`` for an ``n`` by ``n`` matrix with
    ``k = 0``, ``n (n - 1) / 2`` with ``k = 1`` (strictly upper). Tall and wide matrices
    carry their shape in ``static``.

    Args:
        diagonal: The first diagonal that is free, ``k``: 0 is the main one, 1 the one
            above it.

    Raises:
        HyperparameterError: If ``diagonal`` is not an integer.

    Example:
        >>> import torch
        >>> UpperTriangular().forward(torch.tensor([1.0, 2.0, 3.0]))
        tensor([[1., 2.],
                [0., 3.]])
        >>> UpperTriangular().right_inverse(torch.ones(2, 2))
        tensor([nan, nan, nan])
    """

    diagonal: int = 0

    def __post_init__(self) -> None:
        check_diagonal(self, self.diagonal)

    @property
    def codomain(self) -> Domain:
        """Upper-triangular matrices."""
        return Domain(
            f"a matrix that is zero below diagonal {self.diagonal}",
            "(..., n, k)",
            2,
            made_by=f"UpperTriangular({self.diagonal})",
            inside=(MATRIX,),
        )

    @property
    def rule(self) -> str:
        """The largest entry that should be zero."""
        return f"max|Y| below diagonal {self.diagonal}"

    def degrees(self, shape: Sequence[int]) -> int:
        """The number of entries on and above the diagonal."""
        rows, columns = shape
        return rows * columns - count_below(rows, columns, self.diagonal - 1)

    def positions(self, shape: Sequence[int], device: torch.device) -> Int[Tensor, "d"]:
        """Row by row."""
        rows, columns = shape
        i, j = torch.triu_indices(rows, columns, self.diagonal, device=device)
        return columns * i + j


def count_below(rows: int, columns: int, diagonal: int) -> int:
    """How many entries of a matrix are on and below a diagonal."""
    # Row i has i + diagonal + 1 of them, at least none and at most all columns.
    return _staircase(rows + diagonal, columns) - _staircase(diagonal, columns)


def _staircase(steps: int, columns: int) -> int:
    """The sum of ``min(t, columns)`` for ``t`` from 1 to ``steps``."""
    rising = max(0, min(steps, columns))
    return rising * (rising + 1) // 2 + columns * max(0, steps - columns)


def check_diagonal(constraint: object, value: object) -> None:
    """Raise unless a diagonal is an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        where = f"{type(constraint).__name__}(diagonal=...)"
        raise HyperparameterError(where, "be an integer", repr(value))
