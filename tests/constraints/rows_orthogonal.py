"""The rows of the orthogonal constraints."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.constraints import Cayley, Chain, Orthogonal, Skew
from tests.constraints.row import ConstraintRow, randn, square

EXTRA = 4  # how much longer than wide the rectangles are


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


def beside(n: int, k: int) -> list[Tensor]:
    """Matrices near orthonormal columns, and far from them."""
    eye = torch.eye(n, k, dtype=torch.float64)
    return [2 * eye, torch.zeros_like(eye), eye + 0.1, 0.999 * eye]


def rotations_dim(n: int) -> int:
    return n * (n - 1) // 2


def stiefel_dim(n: int) -> int:
    return (n + EXTRA) * n - n * (n + 1) // 2


ROWS = [
    ConstraintRow(
        "cayley",
        "constraints.Cayley",
        Cayley,
        square,
        haar,
        orthogonal_extremes,
        lambda n: beside(n, n),
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
        lambda n: beside(n, n),
        rotations_dim,
    ),
    ConstraintRow(
        "orthogonal",
        "constraints.Orthogonal",
        Orthogonal,
        square,
        haar,
        orthogonal_extremes,
        lambda n: beside(n, n),
        rotations_dim,
    ),
    ConstraintRow(
        "orthogonal, tall",
        "constraints.Orthogonal",
        Orthogonal,
        lambda n: (n + EXTRA, n),
        lambda n, batch, generator: haar(n + EXTRA, batch, generator)[..., :n],
        lambda n: [y[:, :n] for y in orthogonal_extremes(n + EXTRA)],
        lambda n: beside(n + EXTRA, n),
        stiefel_dim,
    ),
    ConstraintRow(
        "orthogonal, wide",
        "constraints.Orthogonal",
        Orthogonal,
        lambda n: (n, n + EXTRA),
        lambda n, batch, generator: haar(n + EXTRA, batch, generator)[..., :n, :],
        lambda n: [y[:n] for y in orthogonal_extremes(n + EXTRA)],
        lambda n: beside(n, n + EXTRA),
        stiefel_dim,
    ),
]
