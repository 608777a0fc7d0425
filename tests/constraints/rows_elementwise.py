"""The rows of the elementwise constraints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pureopt.constraints import (
    Box,
    Constraint,
    GreaterThan,
    Interval,
    LessThan,
    Positive,
    PositiveExp,
)
from tests.constraints.row import SIZES, ConstraintRow, randn

INF = torch.inf
# One entry of each kind: free, bounded below, above, on both sides, narrow, far away.
LOW = torch.tensor([-INF, 1.0, -INF, -2.0, 5.0, -1e3], dtype=torch.float64)
HIGH = torch.tensor([INF, INF, 1.0, 3.0, 6.0, 1e3], dtype=torch.float64)


def positive(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (1.5 * randn(*batch, n, generator=generator)).exp()


def between(low: Tensor | float, high: Tensor | float):
    """Uniform numbers, where both bounds are finite."""

    def sample(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        u = torch.rand(*batch, n, generator=generator, dtype=torch.float64)
        return low + (high - low) * (0.001 + 0.998 * u)

    return sample


def in_box(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    y = randn(*batch, n, generator=generator)
    distance = (1.5 * randn(*batch, n, generator=generator)).exp()
    inner = between(LOW.clamp(-1e3), HIGH.clamp(max=1e3))(n, batch, generator)
    y = torch.where(LOW.isfinite(), LOW + distance, y)
    y = torch.where(HIGH.isfinite(), HIGH - distance, y)
    return torch.where(LOW.isfinite() & HIGH.isfinite(), inner, y)


def full(n: int, *values: float) -> list[Tensor]:
    return [torch.full((n,), value, dtype=torch.float64) for value in values]


def row(
    name: str,
    make: Callable[[], Constraint],
    sample: Callable[[int, tuple[int, ...], torch.Generator], Tensor],
    extremes: Callable[[int], list[Tensor]],
    outside: Callable[[int], list[Tensor]],
    sizes: tuple[int, ...] = SIZES,
) -> ConstraintRow:
    return ConstraintRow(
        name,
        f"constraints.{type(make()).__name__}",
        make,
        lambda n: (n,),
        sample,
        extremes,
        outside,
        lambda n: n,
        sizes=sizes,
    )


def tiny_to_huge(n: int) -> list[Tensor]:
    return full(n, 1e-300, 1e-40, 1e-30, 1e-8, 0.6931471805599453, 89, 1e4, 1e30, 1e300)


ROWS = [
    row(
        "positive",
        Positive,
        positive,
        lambda n: [*tiny_to_huge(n), *full(n, 5e-324, 1e-45)],
        lambda n: full(n, -1, 0, INF),
    ),
    row(
        "positive, above 0.01",
        lambda: Positive(eps=0.01),
        lambda n, batch, generator: 0.01 + positive(n, batch, generator),
        lambda n: [0.01 + y for y in tiny_to_huge(n)[3:]],
        lambda n: full(n, -1, 0, 0.0099, INF),
    ),
    row(
        "positive by exp",
        PositiveExp,
        positive,
        lambda n: [*tiny_to_huge(n), *full(n, 5e-324, 1e-45)],
        lambda n: full(n, 0, -1e-30, INF),
    ),
    row(
        "greater than",
        lambda: GreaterThan(-3),
        lambda n, batch, generator: positive(n, batch, generator) - 3,
        lambda n: full(n, -3 + 4.5e-16, -2.999, 0, 1e-30, 1e30),
        lambda n: full(n, -3, -4, -1e30, INF),
    ),
    row(
        "less than a tensor",
        lambda: LessThan(torch.tensor(3.0)),
        lambda n, batch, generator: 3 - positive(n, batch, generator),
        lambda n: full(n, 3 - 4.5e-16, 2.999, 0, -1e-30, -1e30),
        lambda n: full(n, 3, 4, 1e30, -INF),
    ),
    row(
        "interval",
        lambda: Interval(-1, 3),
        between(-1, 3),
        lambda n: full(n, -1 + 2.3e-16, 3 - 4.5e-16, 1, 0, 1e-300, -0.999, 2.999999),
        lambda n: full(n, -1, 3, -2, 4, INF, -INF),
    ),
    row(
        "interval far from zero",
        lambda: Interval(1000.0, torch.tensor(1100.0)),
        between(1000, 1100),
        lambda n: full(n, 1000 + 1.2e-13, 1000.5, 1100 - 2.3e-13),
        lambda n: full(n, 1000, 1100, 0),
    ),
    row(
        "box",
        lambda: Box(LOW, HIGH),
        in_box,
        lambda n: [
            torch.tensor([0, 2, 0, 0.5, 5.5, 0], dtype=torch.float64),
            torch.tensor([1e30, 1e30, -1e30, -1.9999, 5.0001, 1], dtype=torch.float64),
            torch.tensor([-1e30, 1.001, 0.999, 2.9999, 5.9999, -1e-30]).double(),
        ],
        lambda n: [LOW, HIGH, *full(n, 1, INF)],
        (len(LOW),),
    ),
    row(
        "box with one side",
        lambda: Box(high=2.0),
        lambda n, batch, generator: 2 - positive(n, batch, generator),
        lambda n: full(n, 2 - 2.3e-16, 0, -1e30),
        lambda n: full(n, 2, 3, -INF),
    ),
]
