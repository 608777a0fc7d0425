"""The rows of the orthogonal constraints."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.constraints import (
    Cayley,
    Chain,
    Exponential,
    Householder,
    MatrixExponential,
    Orthogonal,
    OrthogonalMap,
    SignedCayley,
    Skew,
    SpecialOrthogonal,
)
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


def rotations(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform on SO(n): each determinant multiplies the first column."""
    q = haar(n, batch, generator)
    det = torch.linalg.det(q)[..., None, None]
    return torch.cat([q[..., :1] * det.sign(), q[..., 1:]], -1)


def rotation_extremes(n: int) -> list[Tensor]:
    return [y for y in orthogonal_extremes(n) if torch.linalg.det(y) > 0]


def reflections(n: int) -> list[Tensor]:
    return [y for y in orthogonal_extremes(n) if torch.linalg.det(y) < 0]


def orthogonal(name: str, by: OrthogonalMap) -> list[ConstraintRow]:
    """The rows of a map: square, tall, wide."""
    return [
        ConstraintRow(
            name,
            "constraints.Orthogonal",
            lambda: Orthogonal(by),
            square,
            haar,
            orthogonal_extremes,
            lambda n: beside(n, n),
            rotations_dim,
        ),
        ConstraintRow(
            f"{name}, tall",
            "constraints.Orthogonal",
            lambda: Orthogonal(by),
            lambda n: (n + EXTRA, n),
            lambda n, batch, generator: haar(n + EXTRA, batch, generator)[..., :n],
            lambda n: [y[:, :n] for y in orthogonal_extremes(n + EXTRA)],
            lambda n: beside(n + EXTRA, n),
            stiefel_dim,
        ),
        ConstraintRow(
            f"{name}, wide",
            "constraints.Orthogonal",
            lambda: Orthogonal(by),
            lambda n: (n, n + EXTRA),
            lambda n, batch, generator: haar(n + EXTRA, batch, generator)[..., :n, :],
            lambda n: [y[:n] for y in orthogonal_extremes(n + EXTRA)],
            lambda n: beside(n, n + EXTRA),
            stiefel_dim,
        ),
    ]


def special(name: str, by: OrthogonalMap) -> ConstraintRow:
    return ConstraintRow(
        name,
        "constraints.SpecialOrthogonal",
        lambda: SpecialOrthogonal(by),
        square,
        rotations,
        rotation_extremes,
        lambda n: [*beside(n, n), *reflections(n)],
        rotations_dim,
    )


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
        "matrix exponential",
        "constraints.MatrixExponential",
        MatrixExponential,
        square,
        haar,
        orthogonal_extremes,
        lambda n: beside(n, n),
        rotations_dim,
        packed=Skew,
    ),
    *orthogonal("orthogonal", SignedCayley()),
    *orthogonal("orthogonal, exponential", Exponential()),
    *orthogonal("orthogonal, householder", Householder()),
    special("special orthogonal", SignedCayley()),
    special("special orthogonal, exponential", Exponential()),
]
