"""One row per constraint: what the laws need to know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pureopt.constraints import Cayley, Chain, Constraint, Orthogonal, Skew, Symmetric

SIZES = (1, 2, 3, 5, 8, 33)
EXTRA = 4  # how much longer than wide the rectangles are


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
        extremes: Hand-made elements of a size, in float64.
        dim: The dimension of the set for a size.
        packed: A constraint with isometric coordinates of the domain, put in front.
    """

    name: str
    public: str
    make: Callable[[], Constraint]
    shape: Callable[[int], tuple[int, ...]]
    sample: Callable[[int, tuple[int, ...], torch.Generator], Tensor]
    extremes: Callable[[int], list[Tensor]]
    dim: Callable[[int], int]
    packed: Callable[[], Constraint] | None = None

    def from_vector(self) -> Constraint:
        """The constraint as a map from vectors."""
        return self.packed() >> self.make() if self.packed else self.make()


def randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def haar(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform on O(n): QR with the signs of the diagonal of R; both determinants."""
    q, r = torch.linalg.qr(randn(*batch, n, n, generator=generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def orthogonal_extremes(n: int) -> list[Tensor]:
    """Where the plain Cayley transform fails: eigenvalues -1, or close to it."""
    eye = torch.eye(n, dtype=torch.float64)
    reflection = eye.clone()
    reflection[-1, -1] = -1
    found = [eye, -eye, reflection, eye.roll(1, 0), eye.flip(0)]
    if n > 1:
        angle = torch.tensor(torch.pi - 1e-9, dtype=torch.float64)
        rotation = eye.clone()
        rotation[:2, :2] = torch.stack(
            [angle.cos(), -angle.sin(), angle.sin(), angle.cos()]
        ).reshape(2, 2)
        vector = torch.ones(n, 1, dtype=torch.float64)
        found += [rotation, eye - 2 / n * vector @ vector.mT]
    return found


def symmetric(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    a = randn(*batch, n, n, generator=generator)
    return a.tril() + a.tril(-1).mT


def skew(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    a = randn(*batch, n, n, generator=generator).tril(-1)
    return a - a.mT


def square(n: int) -> tuple[int, int]:
    return n, n


def rotations_dim(n: int) -> int:
    return n * (n - 1) // 2


def stiefel_dim(n: int) -> int:
    return (n + EXTRA) * n - n * (n + 1) // 2


CONSTRAINTS: list[ConstraintRow] = [
    ConstraintRow(
        "symmetric",
        "constraints.Symmetric",
        Symmetric,
        square,
        symmetric,
        lambda n: [
            torch.zeros(n, n, dtype=torch.float64),
            1e-30 * torch.ones(n, n, dtype=torch.float64),
            1e30 * torch.eye(n, dtype=torch.float64),
        ],
        lambda n: n * (n + 1) // 2,
    ),
    ConstraintRow(
        "skew",
        "constraints.Skew",
        Skew,
        square,
        skew,
        lambda n: [
            torch.zeros(n, n, dtype=torch.float64),
            1e30 * (torch.ones(n, n).tril(-1) - torch.ones(n, n).triu(1)).double(),
        ],
        rotations_dim,
    ),
    ConstraintRow(
        "cayley",
        "constraints.Cayley",
        Cayley,
        square,
        haar,
        orthogonal_extremes,
        rotations_dim,
        packed=Skew,
    ),
    ConstraintRow(
        "skew >> cayley",
        "constraints.Chain",
        lambda: Chain((Skew(), Cayley())),
        square,
        haar,
        orthogonal_extremes,
        rotations_dim,
    ),
    ConstraintRow(
        "orthogonal",
        "constraints.Orthogonal",
        Orthogonal,
        square,
        haar,
        orthogonal_extremes,
        rotations_dim,
    ),
    ConstraintRow(
        "orthogonal, tall",
        "constraints.Orthogonal",
        Orthogonal,
        lambda n: (n + EXTRA, n),
        lambda n, batch, generator: haar(n + EXTRA, batch, generator)[..., :n],
        lambda n: [y[:, :n] for y in orthogonal_extremes(n + EXTRA)],
        stiefel_dim,
    ),
    ConstraintRow(
        "orthogonal, wide",
        "constraints.Orthogonal",
        Orthogonal,
        lambda n: (n, n + EXTRA),
        lambda n, batch, generator: haar(n + EXTRA, batch, generator)[..., :n, :],
        lambda n: [y[:n] for y in orthogonal_extremes(n + EXTRA)],
        stiefel_dim,
    ),
]
