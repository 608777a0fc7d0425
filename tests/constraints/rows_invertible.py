"""The rows of the invertible matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.constraints import (
    AlmostOrthogonal,
    BoundedCondition,
    Invertible,
    PositiveDeterminant,
    UnitDeterminant,
)
from tests.constraints.row import SIZES, ConstraintRow, square
from tests.constraints.rows_orthogonal import haar, orthogonal_extremes


def spread(n, batch, generator, span: float) -> Tensor:
    """``U diag(s) V^T`` with ``log10 s`` uniform over ``span`` around zero."""
    u, v = haar(n, batch, generator), haar(n, batch, generator)
    s = torch.rand(*batch, 1, n, generator=generator, dtype=u.dtype) - 0.5
    return (u * 10 ** (span * s)) @ v


def sign(y: Tensor) -> Tensor:
    return torch.linalg.slogdet(y).sign


def oriented(y: Tensor) -> Tensor:
    """The first column is flipped where the determinant is negative."""
    flips = torch.ones_like(y[..., 0, :])
    flips[..., 0] = sign(y)
    return y * flips.unsqueeze(-2)


def unimodular(y: Tensor) -> Tensor:
    for _ in range(2):  # the second time for the rounding of the logarithm
        scale = (-torch.linalg.slogdet(y).logabsdet / y.shape[-1]).exp()
        y = y * scale[..., None, None]
    return oriented(y)


def conditioned(n: int, cond: float) -> Tensor:
    """Of a given condition number, by a random rotation on each side."""
    generator = torch.Generator().manual_seed(n)
    s = torch.logspace(0, -torch.tensor(cond).log10(), n, dtype=torch.float64)
    return (haar(n, (), generator) * s) @ haar(n, (), generator)


def extremes(n: int) -> list[Tensor]:
    """Both signs of the determinant, zero leading minors, large condition numbers."""
    eye = torch.eye(n, dtype=torch.float64)
    return [
        *orthogonal_extremes(n),
        1e-3 * eye.flip(0),
        -1e3 * eye,
        conditioned(n, 1e4),
    ]


def singular(n: int) -> list[Tensor]:
    eye = torch.eye(n, dtype=torch.float64)
    nan = eye.clone()
    nan[0, 0] = torch.nan
    less = eye.clone()
    less[-1, -1] = 0
    found = [torch.zeros_like(eye), nan, less]
    if n > 1:
        found.append(torch.ones_like(eye))
    if n > 2:
        found.append(torch.arange(n * n).reshape(n, n).to(eye))
    return found


def flipped(n: int) -> list[Tensor]:
    """Reflections."""
    eye = torch.eye(n, dtype=torch.float64)
    eye[0, 0] = -1
    return [eye, 10 * eye]


def scaled_identities(n: int) -> list[Tensor]:
    return [c * torch.eye(n, dtype=torch.float64) for c in (1.01, 2.0, 1e-3)]


EXTRA = 2  # how much longer than wide the rectangles are
KAPPA = 50.0
LAM = 0.25


def tall(n: int) -> tuple[int, int]:
    return n + EXTRA, n


def wide(n: int) -> tuple[int, int]:
    return n, n + EXTRA


def with_values(shape, values):
    """Singular values from ``values``, by random orthogonal factors."""

    def sample(n, batch, generator):
        rows, columns = shape(n)
        u, v = haar(rows, batch, generator), haar(columns, batch, generator)
        s = values(torch.rand(*batch, 1, n, generator=generator, dtype=u.dtype))
        return (u[..., :n] * s) @ v[..., :n, :]

    return sample


def conditions(share: Tensor) -> Tensor:
    """Ratios up to ``KAPPA``, at any of three scales."""
    scale = 10 ** (share[..., :1] * 3).floor()
    return scale * KAPPA ** (0.98 * share)


def distances(share: Tensor) -> Tensor:
    return 1 + 0.98 * LAM * (2 * share - 1)


def framed(shape, values):
    """Given singular values, in the frame of the axes and reflected."""

    def matrices(n):
        s = torch.ones(n, dtype=torch.float64)
        found = []
        for ends in values:
            s = torch.tensor([ends[i % len(ends)] for i in range(n)]).to(s)
            y = torch.zeros(shape(n), dtype=s.dtype)
            y[range(n), range(n)] = s
            found += [y, -y.flip(0)]
        return found

    return matrices


# Random triangular factors of the largest size, as averages and steps make them, are
# singular to rounding: it is left to the tests of the family.
LU_SIZES = SIZES[:-1]
SPECTRAL = [("", square), (", tall", tall), (", wide", wide)]
ROWS = [
    ConstraintRow(
        "invertible",
        "constraints.Invertible",
        Invertible,
        square,
        lambda n, batch, generator: spread(n, batch, generator, 2.0),
        extremes,
        singular,
        lambda n: n * n,
        sizes=LU_SIZES,
    ),
    ConstraintRow(
        "positive determinant",
        "constraints.PositiveDeterminant",
        PositiveDeterminant,
        square,
        lambda n, batch, generator: oriented(spread(n, batch, generator, 2.0)),
        lambda n: [oriented(y) for y in extremes(n)],
        lambda n: [*singular(n), *flipped(n)],
        lambda n: n * n,
        sizes=LU_SIZES,
    ),
    ConstraintRow(
        "unit determinant",
        "constraints.UnitDeterminant",
        UnitDeterminant,
        square,
        lambda n, batch, generator: unimodular(spread(n, batch, generator, 2.0)),
        lambda n: [unimodular(y) for y in extremes(n)],
        lambda n: [*singular(n), *flipped(n), *scaled_identities(n)],
        lambda n: n * n - 1,
        sizes=LU_SIZES,
    ),
    *(
        ConstraintRow(
            f"bounded condition{name}",
            "constraints.BoundedCondition",
            lambda: BoundedCondition(KAPPA),
            shape,
            with_values(shape, conditions),
            framed(shape, [(1.0,), (1e-6, 1e-5), (KAPPA, 1.0), (1e3, 1e3, 40.0)]),
            lambda n, shape=shape: (
                framed(shape, [(0.0,), (torch.nan,)])(n)
                + (framed(shape, [(1.01 * KAPPA, 1.0), (1.0, 0.0)])(n) if n > 1 else [])
            ),
            lambda n, shape=shape: shape(n)[0] * shape(n)[1],
        )
        for name, shape in SPECTRAL
    ),
    *(
        ConstraintRow(
            f"almost orthogonal{name}",
            "constraints.AlmostOrthogonal",
            lambda: AlmostOrthogonal(LAM),
            shape,
            with_values(shape, distances),
            framed(shape, [(1.0,), (1 + LAM,), (1 - LAM,), (1 + LAM, 1 - LAM, 1.0)]),
            framed(shape, [(0.0,), (torch.nan,), (1.01 * (1 + LAM),), (0.74, 1.0)]),
            lambda n, shape=shape: shape(n)[0] * shape(n)[1],
        )
        for name, shape in SPECTRAL
    ),
]
