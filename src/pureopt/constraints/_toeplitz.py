"""Toeplitz matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from pureopt.constraints._domains import MATRIX, Domain
from pureopt.constraints._linear import Groups, TiedSubspace


@final
@dataclass(frozen=True)
class Toeplitz(TiedSubspace):
    r"""Matrices with constant diagonals.

    .. math:: Y_{ij} = x_{i - j + k} / \sqrt{m_{i - j}}, \qquad
        m_d = \text{the length of diagonal } d

    ``x`` starts with the diagonal in the upper right corner: ``rows + k - 1`` numbers
    for a matrix of ``k`` columns, ``2 n - 1`` for a square one. Tall and wide matrices
    carry their shape in ``static``.

    Example:
        >>> import torch
        >>> Toeplitz().forward(torch.tensor([1.0, 0.0, 2.0]))
        tensor([[0., 1.],
                [2., 0.]])
        >>> Toeplitz().project(torch.tensor([[1.0, 5.0], [6.0, 3.0]]))
        tensor([[2.0000, 5.0000],
                [6.0000, 2.0000]])
    """

    @property
    def codomain(self) -> Domain:
        """Toeplitz matrices."""
        return _TOEPLITZ

    def degrees(self, shape: Sequence[int]) -> int:
        """``rows + columns - 1``."""
        return shape[0] + shape[1] - 1

    def groups_of(self, shape: Sequence[int], device: torch.device) -> Groups:
        """The diagonals, from the upper right corner to the lower left one."""
        rows, columns = shape
        i = torch.arange(rows, device=device)
        j = torch.arange(columns, device=device)
        index = i[:, None] - j + columns
        offset = torch.arange(1 - columns, rows, device=device)
        top, left = offset.clamp(min=0), (-offset).clamp(min=0)
        sizes = torch.minimum(rows - top, columns - left)
        return Groups(index.flatten(), columns * top + left, sizes)


_TOEPLITZ = Domain(
    "a Toeplitz matrix", "(..., n, k)", 2, made_by="Toeplitz()", inside=(MATRIX,)
)
