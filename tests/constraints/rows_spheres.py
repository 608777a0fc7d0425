"""The rows of spheres, balls and matrices with unit columns."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.constraints import Ball, Sphere, UnitColumns
from tests.constraints.row import ConstraintRow, randn, square

EXTRA = 2  # how much longer than wide the rectangles are


def unit(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    y = randn(*batch, n, generator=generator)
    return y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)


def sphere_extremes(n: int) -> list[Tensor]:
    """Both poles, next to them, on the equator, and far from every axis."""
    eye = torch.eye(n, dtype=torch.float64)
    level = torch.full((n,), n**-0.5, dtype=torch.float64)
    found = [eye[0], -eye[0], level, -level]
    if n > 1:
        tilt = torch.tensor(1e-9, dtype=torch.float64)
        found += [eye[1], tilt.sin() * eye[1] - tilt.cos() * eye[0]]
    return found


def in_ball(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """All norms alike, which crowds the center."""
    share = torch.rand(*batch, 1, generator=generator, dtype=torch.float64)
    return share * unit(n, batch, generator)


def columns(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return unit(n, (*batch, n), generator).mT


ROWS = [
    ConstraintRow(
        "sphere",
        "constraints.Sphere",
        Sphere,
        lambda n: (n,),
        unit,
        sphere_extremes,
        lambda n: [2 * y for y in sphere_extremes(n)] + [torch.zeros(n).double()],
        lambda n: n - 1,
    ),
    ConstraintRow(
        "sphere of norm 100",
        "constraints.Sphere",
        lambda: Sphere(norm=100.0),
        lambda n: (n,),
        lambda n, batch, generator: 100 * unit(n, batch, generator),
        lambda n: [100 * y for y in sphere_extremes(n)],
        sphere_extremes,
        lambda n: n - 1,
    ),
    ConstraintRow(
        "ball",
        "constraints.Ball",
        Ball,
        lambda n: (n,),
        in_ball,
        lambda n: [
            torch.zeros(n, dtype=torch.float64),
            *sphere_extremes(n),
            *[(1 - 1e-9) * y for y in sphere_extremes(n)],
            *[1e-30 * y for y in sphere_extremes(n)],
        ],
        lambda n: [c * y for y in sphere_extremes(n) for c in (2, 1.001)],
        lambda n: n,
    ),
    ConstraintRow(
        "ball of norm 0.5",
        "constraints.Ball",
        lambda: Ball(norm=0.5),
        lambda n: (n,),
        lambda n, batch, generator: 0.5 * in_ball(n, batch, generator),
        lambda n: [0.5 * y for y in sphere_extremes(n)],
        sphere_extremes,
        lambda n: n,
    ),
    ConstraintRow(
        "unit columns",
        "constraints.UnitColumns",
        UnitColumns,
        square,
        columns,
        lambda n: [
            torch.eye(n, dtype=torch.float64),
            -torch.eye(n, dtype=torch.float64),
            torch.stack([sphere_extremes(n)[-1]] * n, -1),
        ],
        lambda n: [
            2 * torch.eye(n, dtype=torch.float64),
            torch.zeros(n, n, dtype=torch.float64),
        ],
        lambda n: n * (n - 1),
    ),
    ConstraintRow(
        "unit columns, tall",
        "constraints.UnitColumns",
        lambda: UnitColumns(norm=3),
        lambda n: (n + EXTRA, n),
        lambda n, batch, generator: 3 * unit(n + EXTRA, (*batch, n), generator).mT,
        lambda n: [-3 * torch.eye(n + EXTRA, n, dtype=torch.float64)],
        lambda n: [torch.eye(n + EXTRA, n, dtype=torch.float64)],
        lambda n: (n + EXTRA - 1) * n,
    ),
    ConstraintRow(
        "unit columns, wide",
        "constraints.UnitColumns",
        UnitColumns,
        lambda n: (n, n + EXTRA),
        lambda n, batch, generator: unit(n, (*batch, n + EXTRA), generator).mT,
        lambda n: [torch.stack([-sphere_extremes(n)[0]] * (n + EXTRA), -1)],
        lambda n: [torch.eye(n, n + EXTRA, dtype=torch.float64)],
        lambda n: (n - 1) * (n + EXTRA),
    ),
]
