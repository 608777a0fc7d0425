"""Coefficients that are put off: computed whole, some directions at a time, or never."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Coefficient: TypeAlias = Tensor | None
"""A coefficient of a series; ``None`` is zero, known as such before anything runs."""


class Extent(NamedTuple):
    """How large a coefficient of many directions is."""

    directions: int
    numbers: int  # in all directions, and in the lanes of each `vmap` around


class Later:
    """A coefficient that is computed when it is first asked for, if ever.

    Args:
        make: Computes the directions in a slice, or the whole coefficient.
        extent: How large it is, if it has a dimension of directions in front.
        kept: Whether its directions are kept for the next who asks. Those that take less
            to compute than to keep are not, but for :func:`sum_of_products`.
    """

    __slots__ = ("blocks", "extent", "kept", "made", "make")

    def __init__(
        self,
        make: Callable[[slice | None], Coefficient],
        extent: Extent | None = None,
        *,
        kept: bool = True,
    ) -> None:
        self.make: Callable[[slice | None], Coefficient] | None = make
        self.made: Coefficient = None
        self.extent = extent
        self.kept = kept
        self.blocks: list[Tensor] = []  # of consecutive directions, from the first on

    def get(self) -> Coefficient:
        """The coefficient."""
        if self.make is not None:
            self.made, self.make = self.make(None), None
        elif self.blocks:
            self.made = torch.cat(self.blocks)
        self.blocks = []
        return self.made

    def is_open(self) -> bool:
        """Whether there is more to it than the whole coefficient."""
        return self.make is not None or bool(self.blocks)

    def at(self, part: slice) -> Coefficient:
        """These directions of it."""
        end = sum(len(block) for block in self.blocks)
        if part.stop <= end:
            return _cut(self.blocks, part)
        if self.make is None:
            return None if self.made is None else self.made[part]
        block = self.make(part)
        if block is not None and self.kept and part.start == end:
            self.blocks.append(block)
            if self.extent is not None and part.stop == self.extent.directions:
                self.make = None
        return block


def _cut(blocks: Sequence[Tensor], part: slice) -> Tensor:
    pieces: list[Tensor] = []
    start = 0
    for block in blocks:
        stop = start + len(block)
        if part.start <= start and stop <= part.stop:
            pieces.append(block)
        elif part.start < stop and start < part.stop:
            pieces.append(block[max(part.start - start, 0) : part.stop - start])
        start = stop
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def found(c: Coefficient | Later, part: slice | None = None) -> Coefficient:
    """What may have been put off, or these directions of it."""
    if isinstance(c, Later):
        return c.get() if part is None else c.at(part)
    return c if c is None or part is None else c[part]
