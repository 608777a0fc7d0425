"""Sparse matrices that are made of what moves, each with what it is by definition."""

from __future__ import annotations

import mpmath as mp
import torch

from tests.derivatives.exact_case import Case
from tests.derivatives.exact_oracles import flat, transposed

FACTOR = [[0.5, -1.25], [2.0, 0.75], [-0.5, 1.5]]


def times(x: torch.Tensor) -> torch.Tensor:
    return torch.sparse.mm(x.sin().to_sparse(), torch.tensor(FACTOR).to(x)).exp()


def products(x):
    return [
        mp.exp(mp.fdot([mp.sin(v) for v in row], column))
        for row in x
        for column in transposed(FACTOR)
    ]


SPARSE = [
    Case(
        "to_sparse",
        (2, 3),
        lambda x: x.to_sparse().to_dense().exp(),
        lambda x: [mp.exp(v) for v in flat(x)],
    ),
    Case("to_sparse, sparse.mm", (2, 3), times, products),
]
