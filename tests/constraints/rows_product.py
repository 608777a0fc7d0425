"""The rows of products: values are trees."""

from __future__ import annotations

from typing import Any

import torch

from pureopt.constraints import Orthogonal, Positive, Product, Symmetric, WeightNorm
from tests.constraints.row import ConstraintRow, randn
from tests.constraints.rows_linear import symmetric
from tests.constraints.rows_orthogonal import beside, haar, orthogonal_extremes

Values = dict[str, Any]


def rigid() -> Product:
    """A matrix part with signs, one without data, and an elementwise one, nested."""
    return Product(
        {"frame": Orthogonal(), "body": {"scale": Positive(), "inertia": Symmetric()}}
    )


def rigid_shape(n: int) -> Values:
    return {"frame": (n, n), "body": {"scale": (3,), "inertia": (2, 2)}}


def rigid_value(frame: torch.Tensor, scale: float = 1.0) -> Values:
    body = {"scale": torch.full((3,), scale), "inertia": -torch.eye(2)}
    return {
        "frame": frame,
        "body": {name: part.to(frame.dtype) for name, part in body.items()},
    }


def rigid_sample(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Values:
    return {
        "frame": haar(n, batch, generator),
        "body": {
            "scale": randn(*batch, 3, generator=generator).exp(),
            "inertia": symmetric(2, batch, generator),
        },
    }


def rigid_outside(n: int) -> list[Values]:
    eye = torch.eye(n, dtype=torch.float64)
    off = [rigid_value(frame) for frame in beside(n, n)]
    return [*off, rigid_value(eye, -1.0)]


def layer_value(q: torch.Tensor, n: int) -> Values:
    return {"weight": torch.ones(n, 2, dtype=torch.float64), "turn": q}


def layer_sample(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Values:
    return {
        "weight": randn(*batch, n, 2, generator=generator),
        "turn": haar(2, batch, generator),
    }


ROWS = [
    ConstraintRow(
        "product",
        "constraints.Product",
        rigid,
        rigid_shape,
        rigid_sample,
        lambda n: [rigid_value(y, 1e-3) for y in orthogonal_extremes(n)],
        rigid_outside,
        lambda n: n * (n - 1) // 2 + 3 + 3,
    ),
    ConstraintRow(
        "product of a redundant map",
        "constraints.Product",
        lambda: Product({"weight": WeightNorm(), "turn": Orthogonal()}),
        lambda n: {"weight": (n, 2), "turn": (2, 2)},
        layer_sample,
        lambda n: [layer_value(q, n) for q in orthogonal_extremes(2)],
        lambda n: [layer_value(q, n) for q in beside(2, 2)],
        lambda n: 2 * n + 1,
    ),
]
