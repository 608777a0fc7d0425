"""Circulant matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from pureopt.constraints._domains import SQUARE, Domain
from pureopt.constraints._linear import Groups, TiedSubspace


@final
@dataclass(frozen=True)
class Circulant(TiedSubspace):
    r"""Square matrices whose columns are the first one, rotated down.

    .. math:: Y_{ij} = x_{(i - j) \bmod n} / \sqrt n

    ``x`` has ``n`` numbers. ``Y v`` is the circular convolution of ``x / sqrt(n)`` and
    ``v``.

    Example:
        >>> import torch
        >>> Circulant().forward(2 * torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([[1., 4., 3., 2.],
                [2., 1., 4., 3.],
                [3., 2., 1., 4.],
                [4., 3., 2., 1.]])
    """

    @property
    def codomain(self) -> Domain:
        """Circulant matrices."""
        return _CIRCULANT

    def degrees(self, shape: Sequence[int]) -> int:
        """``n``."""
        return shape[-1]

    def groups_of(self, shape: Sequence[int], device: torch.device) -> Groups:
        """The diagonals that wrap around, in the order of the first column."""
        n = shape[-1]
        i = torch.arange(n, device=device)
        index = (i[:, None] - i) % n + 1
        return Groups(index.flatten(), n * i, torch.full_like(i, n))


_CIRCULANT = Domain(
    "a circulant matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="Circulant()",
    inside=(SQUARE,),
)
