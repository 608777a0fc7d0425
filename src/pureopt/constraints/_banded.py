"""Banded matrices."""

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
from pureopt.constraints._triangular import count_below


@final
@dataclass(frozen=True)
class Banded(SparseSubspace):
    r"""Matrices that are zero outside a band of diagonals, packed row by row.

    .. math:: Y_{ij} = 0 \quad (i - j > l \text{ or } j - i > u)

    The entries are the free numbers. ``Banded(0, 0)`` is diagonal, ``Banded(1, 1)``
    tridiagonal (``3 n - 2`` numbers), ``Banded(1, 0)`` lower bidiagonal. Tall and wide
    matrices carry their shape in ``static``.

    Args:
        lower: How many diagonals below the main one are free, ``l >= 0``.
        upper: How many diagonals above the main one are free, ``u >= 0``.

    Raises:
        HyperparameterError: If one is not an integer, or negative.

    Example:
        >>> import torch
        >>> Banded(1, 1).forward(torch.arange(1.0, 8.0))
        tensor([[1., 2., 0.],
                [3., 4., 5.],
                [0., 6., 7.]])
        >>> Banded(0, 0).project(torch.ones(2, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """

    lower: int
    upper: int

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise HyperparameterError(
                    f"Banded({name}=...)", "be an integer >= 0", repr(value)
                )

    @property
    def codomain(self) -> Domain:
        """Banded matrices."""
        return Domain(
            f"a matrix with {self.lower} diagonals below and {self.upper} above",
            "(..., n, k)",
            2,
            made_by=f"Banded({self.lower}, {self.upper})",
            inside=(MATRIX,),
        )

    @property
    def rule(self) -> str:
        """The largest entry that should be zero."""
        return f"max|Y| outside diagonals {-self.lower} to {self.upper}"

    def degrees(self, shape: Sequence[int]) -> int:
        """The number of entries in the band."""
        rows, columns = shape
        outside = count_below(rows, columns, -self.lower - 1)
        return count_below(rows, columns, self.upper) - outside

    def positions(self, shape: Sequence[int], device: torch.device) -> Int[Tensor, "d"]:
        """Row by row."""
        rows, columns = shape
        i = torch.arange(rows, device=device)
        start = (i - self.lower).clamp(min=0)
        length = ((i + self.upper + 1).clamp(max=columns) - start).clamp(min=0)
        total = self.degrees(shape)
        row = i.repeat_interleave(length, output_size=total)
        before = length.cumsum(0) - length
        column = torch.arange(total, device=device) + (start - before)[row]
        return columns * row + column
