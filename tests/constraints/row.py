"""What the laws need to know about a constraint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pureopt.constraints import Constraint

SIZES = (1, 2, 3, 5, 8, 33)


@dataclass(frozen=True)
class ConstraintRow:
    """A constraint and independent ways to know its set.

    Attributes:
        name: The id of the row.
        public: The public dotted name, below ``pureopt``.
        make: Builds the constraint.
        shape: The event shape for a size.
        sample: ``(size, batch, generator) -> y`` in float64, spread over the whole set,
            by other means than the constraint.
        extremes: Hand-made elements of a size, in float64, on which the round trip holds.
        outside: Hand-made values that are not in the set, in float64.
        dim: The dimension of the set for a size, counted by hand.
        packed: A constraint with isometric coordinates of the domain, put in front.
        sizes: The sizes that exist.
    """

    name: str
    public: str
    make: Callable[[], Constraint]
    shape: Callable[[int], tuple[int, ...]]
    sample: Callable[[int, tuple[int, ...], torch.Generator], Tensor]
    extremes: Callable[[int], list[Tensor]]
    outside: Callable[[int], list[Tensor]]
    dim: Callable[[int], int]
    packed: Callable[[], Constraint] | None = None
    sizes: tuple[int, ...] = SIZES

    def from_vector(self) -> Constraint:
        """The constraint as a map from vectors."""
        return self.packed() >> self.make() if self.packed else self.make()


def randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def square(n: int) -> tuple[int, int]:
    return n, n
