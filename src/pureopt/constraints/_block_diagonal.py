"""Block-diagonal matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt.constraints._domains import Domain
from pureopt.constraints._linear import SparseSubspace, structured


@final
@dataclass(frozen=True)
class BlockDiagonal(SparseSubspace):
    r"""Matrices that are zero outside blocks along the diagonal, block by block.

    .. math:: Y = \operatorname{diag}(B_1, \ldots, B_m)

    ``x`` has the entries of the blocks, each row by row. The sizes fix the one shape
    that fits.

    Args:
        sizes: For each block ``n``, if it is square, or ``(rows, columns)``.

    Raises:
        HyperparameterError: If there is no block, or a size is no integer >= 1.

    Example:
        >>> import torch
        >>> c = BlockDiagonal((2, (1, 3)))
        >>> c.forward(torch.arange(1.0, 8.0))
        tensor([[1., 2., 0., 0., 0.],
                [3., 4., 0., 0., 0.],
                [0., 0., 5., 6., 7.]])
    """

    sizes: Sequence[int | tuple[int, int]]
    _positions: Int[Tensor, "d"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = tuple(self.sizes) if isinstance(self.sizes, Sequence) else ()  # pyright: ignore[reportUnnecessaryIsInstance]
        if not sizes or not all(map(_is_block, sizes)):
            raise HyperparameterError(
                "BlockDiagonal(sizes=...)",
                "have at least one block, each an integer or a pair of integers >= 1",
                repr(self.sizes),
            )
        object.__setattr__(self, "sizes", sizes)
        ones = [
            torch.ones(block, dtype=torch.bool, device="cpu") for block in self.blocks
        ]
        inside = torch.block_diag(*ones).flatten()
        object.__setattr__(self, "_positions", inside.nonzero()[:, 0])

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each block."""
        return tuple((n, n) if isinstance(n, int) else n for n in self.sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """The sums of the sizes of the blocks."""
        rows, columns = zip(*self.blocks, strict=True)
        return sum(rows), sum(columns)

    @property
    def codomain(self) -> Domain:
        """Block-diagonal matrices."""
        return structured("a block-diagonal matrix", self.shape)

    @property
    def rule(self) -> str:
        """The largest entry that should be zero."""
        return "max|Y| outside the blocks"

    def degrees(self, shape: Sequence[int]) -> int:
        """The number of entries of the blocks."""
        del shape
        return len(self._positions)

    def positions(self, shape: Sequence[int], device: torch.device) -> Int[Tensor, "d"]:
        """Row by row, which is block by block."""
        del shape
        return self._positions.to(device)


def _is_block(size: object) -> bool:
    """Whether it is an integer or a pair of integers, at least 1."""
    pair = size if isinstance(size, tuple) else (size, size)
    return len(pair) == 2 and all(  # noqa: PLR2004
        isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair
    )
