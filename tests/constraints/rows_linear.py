"""The rows of the linear constraints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pureopt.constraints import (
    Banded,
    BlockDiagonal,
    Circulant,
    Constraint,
    LowerTriangular,
    Masked,
    Permutation,
    Skew,
    SumToZero,
    SumToZeroMatrix,
    Symmetric,
    Tied,
    Toeplitz,
    UpperTriangular,
)
from tests.constraints.row import ConstraintRow, randn, square

Sampler = Callable[[int, tuple[int, ...], torch.Generator], Tensor]

EXTRA = 3  # how much longer than wide the rectangles are
MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]).bool()
CUBE = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]], [[0, 1], [1, 0]]]).bool()
GROUPS = torch.tensor([[4, 0, 4, -1], [0, 9, 4, 4], [-1, 4, 4, 2]])
BLOCKS = (2, (1, 3), (3, 1), 1)
ORDER = (3, 0, 4, 1, 2)


def tall(n: int) -> tuple[int, int]:
    return n + EXTRA, n


def wide(n: int) -> tuple[int, int]:
    return n, n + EXTRA


def symmetric(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    a = randn(*batch, n, n, generator=generator)
    return a.tril() + a.tril(-1).mT


def skew(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    a = randn(*batch, n, n, generator=generator).tril(-1)
    return a - a.mT


def entries(
    shape: Callable[[int], tuple[int, ...]], keep: Callable[[Tensor], Tensor]
) -> Sampler:
    """Normal entries, of which ``keep`` leaves some."""
    return lambda n, batch, generator: keep(
        randn(*batch, *shape(n), generator=generator)
    )


def band(a: Tensor) -> Tensor:
    """One diagonal below the main one, two above."""
    return a.tril(2).triu(-1)


def circulant(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    column = randn(*batch, n, generator=generator)
    return torch.stack([column.roll(j, -1) for j in range(n)], -1)


def toeplitz(shape: Callable[[int], tuple[int, int]]) -> Sampler:
    def sample(n, batch, generator):
        rows, columns = shape(n)
        x = randn(*batch, rows + columns - 1, generator=generator)
        # Row i is a window of the numbers from the last to the first.
        return torch.stack(
            [x.flip(-1)[..., rows - 1 - i :][..., :columns] for i in range(rows)], -2
        )

    return sample


def blocks(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    del n
    y = randn(*batch, 7, 7, generator=generator)
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[:2, :2] = mask[2, 2:5] = mask[3:6, 5] = mask[6, 6] = True
    return y.where(mask, torch.zeros_like(y))


def tied(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    del n
    values = randn(*batch, 10, generator=generator)
    y = values[..., GROUPS.clamp(min=0)]
    return y.where(GROUPS >= 0, torch.zeros_like(y))


def differences(shape: Callable[[int], tuple[int, ...]]) -> Sampler:
    """Differences of neighbors on a ring, or a torus: their sums telescope."""

    def sample(n, batch, generator):
        y = randn(*batch, *shape(n), generator=generator)
        for dim in range(-len(shape(n)), 0):
            y = y - y.roll(1, dim)
        return y

    return sample


def extremes(sample: Sampler) -> Callable[[int], list[Tensor]]:
    """Zero, and the smallest and largest units."""

    def values(n):
        y = sample(n, (), torch.Generator().manual_seed(n))
        return [torch.zeros_like(y), 1e-30 * y, 1e30 * y]

    return values


def outside(
    shape: Callable[[int], tuple[int, ...]], *, alone: bool = True
) -> Callable[[int], list[Tensor]]:
    """Distinct entries, small and large.

    Args:
        shape: The event shape for a size.
        alone: Whether the set does not have all 1 by 1 matrices.
    """

    def values(n):
        if shape(n) == (1, 1) and not alone:
            return []
        y = torch.arange(1.0, 1 + torch.Size(shape(n)).numel(), dtype=torch.float64)
        y = (y**2).reshape(shape(n))
        return [y, 1e-20 * y]

    return values


def row(
    name: str,
    make: Callable[[], Constraint],
    shape: Callable[[int], tuple[int, ...]],
    sample: Sampler,
    dim: Callable[[int], int],
    *,
    alone: bool = True,
    sizes: tuple[int, ...] = (1, 2, 3, 5, 8, 33),
) -> ConstraintRow:
    return ConstraintRow(
        name,
        f"constraints.{type(make()).__name__}",
        make,
        shape,
        sample,
        extremes(sample),
        outside(shape, alone=alone),
        dim,
        sizes=sizes,
    )


def only(shape: tuple[int, ...]) -> dict:
    """The arguments of a constraint with one shape, called size 3."""
    return {"shape": lambda _: shape, "sizes": (3,)}


ROWS = [
    row(
        "symmetric",
        Symmetric,
        square,
        symmetric,
        lambda n: n * (n + 1) // 2,
        alone=False,
    ),
    row("skew", Skew, square, skew, lambda n: n * (n - 1) // 2),
    row(
        "lower triangular",
        LowerTriangular,
        square,
        entries(square, torch.tril),
        lambda n: n * (n + 1) // 2,
        alone=False,
    ),
    row(
        "lower triangular, strict, tall",
        lambda: LowerTriangular(diagonal=-1),
        tall,
        entries(tall, lambda a: a.tril(-1)),
        lambda n: n * (n - 1) // 2 + EXTRA * n,
    ),
    row(
        "lower triangular, one above, wide",
        lambda: LowerTriangular(diagonal=1),
        wide,
        entries(wide, lambda a: a.tril(1)),
        lambda n: n * (n + 1) // 2 + n,
    ),
    row(
        "upper triangular",
        UpperTriangular,
        square,
        entries(square, torch.triu),
        lambda n: n * (n + 1) // 2,
        alone=False,
    ),
    row(
        "upper triangular, tall",
        UpperTriangular,
        tall,
        entries(tall, torch.triu),
        lambda n: n * (n + 1) // 2,
    ),
    row(
        "upper triangular, strict, wide",
        lambda: UpperTriangular(diagonal=1),
        wide,
        entries(wide, lambda a: a.triu(1)),
        lambda n: n * (n - 1) // 2 + EXTRA * n,
    ),
    row(
        "banded",
        lambda: Banded(1, 2),
        square,
        entries(square, band),
        lambda n: sum(max(0, n - abs(k)) for k in (-1, 0, 1, 2)),
        sizes=(3, 5, 8, 33),
    ),
    row(
        "banded, tall",
        lambda: Banded(1, 2),
        tall,
        entries(tall, band),
        lambda n: n + sum(max(0, n - k) for k in (0, 1, 2)),
    ),
    row(
        "banded, wide",
        lambda: Banded(1, 2),
        wide,
        entries(wide, band),
        lambda n: n - 1 + 3 * n,
    ),
    row("circulant", Circulant, square, circulant, lambda n: n, alone=False),
    row(
        "toeplitz", Toeplitz, square, toeplitz(square), lambda n: 2 * n - 1, alone=False
    ),
    row(
        "toeplitz, tall",
        Toeplitz,
        tall,
        toeplitz(tall),
        lambda n: 2 * n + EXTRA - 1,
        sizes=(2, 3, 5, 8, 33),
    ),
    row(
        "toeplitz, wide",
        Toeplitz,
        wide,
        toeplitz(wide),
        lambda n: 2 * n + EXTRA - 1,
        sizes=(2, 3, 5, 8, 33),
    ),
    row(
        "block diagonal",
        lambda: BlockDiagonal(BLOCKS),
        sample=blocks,
        dim=lambda _: 4 + 3 + 3 + 1,
        **only((7, 7)),
    ),
    row(
        "masked",
        lambda: Masked(MASK),
        sample=entries(lambda _: (3, 4), lambda a: a.where(MASK, torch.zeros_like(a))),
        dim=lambda _: 6,
        **only((3, 4)),
    ),
    row(
        "masked, three dimensions",
        lambda: Masked(CUBE),
        sample=entries(
            lambda _: (3, 2, 2), lambda a: a.where(CUBE, torch.zeros_like(a))
        ),
        dim=lambda _: 6,
        **only((3, 2, 2)),
    ),
    row(
        "masked, all",
        lambda: Masked(torch.zeros(4, dtype=torch.bool)),
        sample=lambda _, batch, generator: 0 * randn(*batch, 4, generator=generator),
        dim=lambda _: 0,
        **only((4,)),
    ),
    row("tied", lambda: Tied(GROUPS), sample=tied, dim=lambda _: 4, **only((3, 4))),
    row(
        "sum to zero",
        SumToZero,
        lambda n: (n,),
        differences(lambda n: (n,)),
        lambda n: n - 1,
    ),
    row(
        "sum to zero, matrix",
        SumToZeroMatrix,
        square,
        differences(square),
        lambda n: (n - 1) ** 2,
    ),
    row(
        "sum to zero, tall matrix",
        SumToZeroMatrix,
        tall,
        differences(tall),
        lambda n: (n - 1) * (n + EXTRA - 1),
    ),
    row(
        "sum to zero, wide matrix",
        SumToZeroMatrix,
        wide,
        differences(wide),
        lambda n: (n - 1) * (n + EXTRA - 1),
    ),
    ConstraintRow(
        "permutation",
        "constraints.Permutation",
        lambda: Permutation(ORDER),
        lambda _: (5,),
        lambda _, batch, generator: randn(*batch, 5, generator=generator),
        lambda _: [torch.arange(5).double(), 1e30 * torch.ones(5).double()],
        lambda _: [torch.full((5,), torch.inf, dtype=torch.float64)],
        lambda _: 5,
        sizes=(3,),
    ),
]
