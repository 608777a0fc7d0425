"""The rows of simplices and of stochastic matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.constraints import (
    DoublyStochastic,
    RowStochastic,
    Simplex,
    SimplexSoftmax,
    SimplexStickBreaking,
)
from tests.constraints.row import SIZES, ConstraintRow, randn, square

EXTRA = 2  # how much longer than wide the rectangles are


def gamma(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gamma(1/2) up to a factor: squares of normal numbers."""
    return randn(*shape, generator=generator) ** 2


def dirichlet(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Dirichlet(1/2), which crowds the boundary."""
    y = gamma((*batch, n), generator)
    return y / y.sum(-1, keepdim=True)


def simplex_extremes(n: int) -> list[Tensor]:
    """The center, vertices, an edge, and entries over hundreds of decades."""
    eye = torch.eye(n, dtype=torch.float64)
    decades = torch.logspace(0, -30, n, dtype=torch.float64)
    edge = (eye[0] + eye[-1]) / 2
    spread = decades / decades.sum()
    return [eye.mean(0), eye[0], eye[-1], edge, spread, spread.flip(0)]


def simplex_outside(n: int) -> list[Tensor]:
    level = torch.ones(n, dtype=torch.float64)
    far = [level * 2 / n, torch.zeros_like(level)]
    if n > 1:
        tilt = torch.zeros_like(level)
        tilt[0], tilt[1] = 1.1, -0.1
        far.append(tilt)
    return far


def sinkhorn(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Plain alternation, long enough for mild entries, closed by averages of both."""
    y = 0.2 + torch.rand(*batch, n, n, generator=generator, dtype=torch.float64)
    for _ in range(100):
        y = y / y.sum(-1, keepdim=True)
        y = y / y.sum(-2, keepdim=True)
    return y


def doubly_extremes(n: int) -> list[Tensor]:
    """The center, permutations, and averages of few permutations."""
    eye = torch.eye(n, dtype=torch.float64)
    shift = eye.roll(1, 0)
    thin = 1e-8 * shift + (1 - 1e-8) * eye
    return [
        torch.full_like(eye, 1 / n), eye, eye.flip(0), shift,
        (eye + shift) / 2, 0.9 * eye + 0.1 * shift, thin,
    ]  # fmt: skip


ROWS = [
    *[
        ConstraintRow(
            name,
            f"constraints.{make.__name__}",
            make,
            lambda n: (n,),
            dirichlet,
            simplex_extremes,
            simplex_outside,
            lambda n: n - 1,
            sizes=sizes,
        )
        for name, make, sizes in (
            ("simplex", Simplex, SIZES),
            # One logit has no direction but the null one, which no law expects.
            ("simplex by softmax", SimplexSoftmax, SIZES[1:]),
            ("simplex by stick breaking", SimplexStickBreaking, SIZES),
        )
    ],
    ConstraintRow(
        "row stochastic",
        "constraints.RowStochastic",
        RowStochastic,
        square,
        lambda n, batch, generator: dirichlet(n, (*batch, n), generator),
        doubly_extremes,
        lambda n: [torch.ones(n, n).double() * 2, torch.zeros(n, n).double()],
        lambda n: n * (n - 1),
    ),
    ConstraintRow(
        "row stochastic, tall",
        "constraints.RowStochastic",
        RowStochastic,
        lambda n: (n + EXTRA, n),
        lambda n, batch, generator: dirichlet(n, (*batch, n + EXTRA), generator),
        lambda n: [torch.stack([y] * (n + EXTRA)) for y in simplex_extremes(n)],
        lambda n: [torch.stack([y] * (n + EXTRA)) for y in simplex_outside(n)],
        lambda n: (n + EXTRA) * (n - 1),
    ),
    ConstraintRow(
        "row stochastic, wide",
        "constraints.RowStochastic",
        RowStochastic,
        lambda n: (n, n + EXTRA),
        lambda n, batch, generator: dirichlet(n + EXTRA, (*batch, n), generator),
        lambda n: [torch.stack([y] * n) for y in simplex_extremes(n + EXTRA)],
        lambda n: [torch.stack([y] * n) for y in simplex_outside(n + EXTRA)],
        lambda n: n * (n + EXTRA - 1),
    ),
    ConstraintRow(
        "doubly stochastic",
        "constraints.DoublyStochastic",
        DoublyStochastic,
        square,
        sinkhorn,
        doubly_extremes,
        lambda n: [
            2 * torch.eye(n, dtype=torch.float64),
            torch.zeros(n, n, dtype=torch.float64),
            *([torch.eye(n, dtype=torch.float64)[[0] * n]] if n > 1 else []),
        ],
        lambda n: (n - 1) ** 2,
    ),
]
