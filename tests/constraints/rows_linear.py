"""The rows of the linear constraints."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.constraints import Skew, Symmetric
from tests.constraints.row import ConstraintRow, randn, square


def symmetric(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    a = randn(*batch, n, n, generator=generator)
    return a.tril() + a.tril(-1).mT


def skew(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    a = randn(*batch, n, n, generator=generator).tril(-1)
    return a - a.mT


ROWS = [
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
        lambda n: [torch.arange(n * n).reshape(n, n).double()] if n > 1 else [],
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
        lambda n: [torch.eye(n, dtype=torch.float64), torch.ones(n, n).double()],
        lambda n: n * (n - 1) // 2,
    ),
]
