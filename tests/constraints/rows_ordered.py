"""The rows of vectors in order."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.constraints import Ordered, PositiveOrdered, Separated
from tests.constraints.row import ConstraintRow, randn

GAP = 0.25


def ramp(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64)


def increasing(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (3 * randn(*batch, n, generator=generator)).sort(-1).values


def apart(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return increasing(n, batch, generator) + GAP * ramp(n)


def positive(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (1.5 * randn(*batch, n, generator=generator)).exp().sort(-1).values


def shuffled(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    places = torch.rand(*batch, n, generator=generator).argsort(-1)
    return apart(n, batch, generator).gather(-1, places)


def ordered_extremes(n: int) -> list[Tensor]:
    """Ties, an offset, both ends of the range, and all sizes in one vector."""
    return [
        torch.zeros(n, dtype=torch.float64),
        torch.full((n,), 1000.0, dtype=torch.float64),
        1000 + 1e-4 * ramp(n),
        1e30 * (ramp(n) - 1),
        1e-30 * ramp(n),
        10.0 ** (20 * (ramp(n) - n / 2) / n),
    ]


def infinite(n: int) -> Tensor:
    y = ramp(n)
    y[-1] = torch.inf
    return y


def descending(n: int) -> list[Tensor]:
    return [-ramp(n), -1e-3 * ramp(n)] if n > 1 else []


def too_close(n: int) -> list[Tensor]:
    return [0.99 * GAP * ramp(n)] if n > 1 else []


ROWS = [
    ConstraintRow(
        "ordered",
        "constraints.Ordered",
        Ordered,
        lambda n: (n,),
        increasing,
        ordered_extremes,
        lambda n: [*descending(n), infinite(n)],
        lambda n: n,
    ),
    ConstraintRow(
        "ordered with a gap",
        "constraints.Ordered",
        lambda: Ordered(min_gap=GAP),
        lambda n: (n,),
        apart,
        lambda n: [GAP * ramp(n), 1e4 + GAP * ramp(n), 1e20 * ramp(n)],
        lambda n: [*descending(n), infinite(n), *too_close(n)],
        lambda n: n,
    ),
    ConstraintRow(
        "positive ordered",
        "constraints.PositiveOrdered",
        PositiveOrdered,
        lambda n: (n,),
        positive,
        lambda n: [y + 1e-30 for y in ordered_extremes(n) if y[0] >= 0],
        lambda n: [ramp(n), ramp(n) - 1e-3, *descending(n), infinite(n) + 1],
        lambda n: n,
    ),
    ConstraintRow(
        "positive ordered with a gap",
        "constraints.PositiveOrdered",
        lambda: PositiveOrdered(min_gap=GAP),
        lambda n: (n,),
        lambda n, *rest: positive(n, *rest) + GAP * (1 + ramp(n)),
        lambda n: [GAP * (1 + ramp(n)), 1e4 + GAP * ramp(n)],
        lambda n: [ramp(n) + 0.9 * GAP, torch.zeros(n).double(), infinite(n) + 1],
        lambda n: n,
    ),
    ConstraintRow(
        "separated",
        "constraints.Separated",
        Separated,
        lambda n: (n,),
        lambda n, batch, generator: 3 * randn(*batch, n, generator=generator),
        lambda n: [y.flip(-1) for y in ordered_extremes(n)],
        lambda n: [infinite(n), -infinite(n)],
        lambda n: n,
    ),
    ConstraintRow(
        "separated by a gap",
        "constraints.Separated",
        lambda: Separated(min_gap=GAP),
        lambda n: (n,),
        shuffled,
        lambda n: [-GAP * ramp(n), GAP * ramp(n).roll(1), 1e20 * ramp(n).flip(-1)],
        lambda n: [infinite(n), *[y.roll(1) for y in too_close(n)]],
        lambda n: n,
    ),
]
