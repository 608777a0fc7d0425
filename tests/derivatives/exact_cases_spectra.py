"""Eigenvalues and eigenvectors, mended by `exact`, with what they are by definition."""

from __future__ import annotations

import mpmath as mp
import torch

from tests.derivatives.exact_case import WELL, Case
from tests.derivatives.exact_oracles import flat, rows, transposed


def symmetric(x: torch.Tensor) -> torch.Tensor:
    return x + x.mT


def doubled(x):
    """The sum of a matrix and its transpose."""
    m = mp.matrix(x)
    return m + m.T


def unit(columns):
    """Each with the norm one and a first number that is positive."""
    scaled = [[v / c[0] for v in c] for c in columns]
    return [[v / mp.norm(c) for v in c] for c in scaled]


def upright(V: torch.Tensor) -> torch.Tensor:
    """Eigenvectors of no sign: those whose first number is positive."""
    return V * V[:1].sign()


def symmetric_vectors(x):
    columns = unit(transposed(rows(mp.eigsy(doubled(x))[1])))
    return flat(transposed(columns))


def in_order(x):
    """The eigenvalues, which are real here, from the least, and the eigenvectors."""
    values, vectors = mp.eig(mp.matrix(x))
    columns = transposed(rows(vectors))
    order = sorted(range(len(x)), key=lambda k: mp.re(values[k]))
    return [mp.re(values[k]) for k in order], [columns[k] for k in order]


def sorted_by_value(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eig(x)
    order = values.real.argsort()
    return values.real[order], vectors.real[:, order]


SPECTRAL = [
    Case(
        "linalg.eigh",
        (3, 3),
        lambda x: upright(torch.linalg.eigh(symmetric(x))[1]),
        symmetric_vectors,
        WELL,
    ),
    Case(
        "linalg.eigvalsh",
        (3, 3),
        lambda x: torch.linalg.eigvalsh(symmetric(x)),
        lambda x: list(mp.eigsy(doubled(x), eigvals_only=True)),
        WELL,
    ),
    Case(
        "linalg.eig",
        (3, 3),
        lambda x: upright(sorted_by_value(x)[1]),
        lambda x: [mp.re(v) for v in flat(transposed(unit(in_order(x)[1])))],
        WELL,
    ),
    Case(
        "linalg.eigvals",
        (3, 3),
        lambda x: torch.linalg.eigvals(x).real.sort()[0],
        lambda x: in_order(x)[0],
        WELL,
    ),
]
