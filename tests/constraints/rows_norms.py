"""The rows of the constraints on norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pureopt.constraints import Lipschitz, PowerSpectralNorm, SpectralNorm, WeightNorm
from tests.constraints.row import SIZES, ConstraintRow, randn, square
from tests.constraints.rows_orthogonal import haar

EXTRA = 2  # how much longer than wide the rectangles are
BOUND = 3.0


def tall(n: int) -> tuple[int, int]:
    return n + EXTRA, n


def wide(n: int) -> tuple[int, int]:
    return n, n + EXTRA


def matrices(shape, scales=(1.0, 3.0)):
    """Normal matrices whose rows have different scales."""

    def sample(n, batch, generator):
        y = randn(*batch, *shape(n), generator=generator)
        pick = torch.randint(len(scales), y.shape[:-1], generator=generator)
        return y * torch.tensor(scales, dtype=y.dtype)[pick].unsqueeze(-1)

    return sample


def normed(shape, norm):
    """Normal matrices, scaled to a spectral norm."""

    def sample(n, batch, generator):
        y = randn(*batch, *shape(n), generator=generator)
        return norm * y / torch.linalg.matrix_norm(y, 2, keepdim=True)

    return sample


def separated(norm, extra=0):
    """Square or tall matrices whose singular values fall by half."""

    def sample(n, batch, generator):
        u = haar(n + extra, batch, generator)[..., :n]
        s = norm * 0.5 ** torch.arange(n, dtype=u.dtype)
        return (u * s) @ haar(n, batch, generator)

    return sample


def inside(shape, bound):
    """Normal matrices, scaled to spectral norms below the bound: there is a kink."""

    def sample(n, batch, generator):
        y = normed(shape, bound)(n, batch, generator)
        share = torch.rand(*batch, 1, 1, generator=generator, dtype=y.dtype)
        return y * 0.95 * share

    return sample


def eye(shape, n: int) -> Tensor:
    return torch.eye(*shape(n), dtype=torch.float64)


def spectral_extremes(shape, norm):
    """Repeated singular values, and rank one."""

    def extremes(n):
        ones = torch.ones(shape(n), dtype=torch.float64)
        single = torch.zeros_like(ones)
        single[-1, -1] = -norm
        return [norm * eye(shape, n), norm * ones / math.sqrt(ones.numel()), single]

    return extremes


def weight_extremes(shape):
    def extremes(n):
        y = eye(shape, n)
        ones = torch.ones_like(y)
        return [torch.zeros_like(y), y, -y, 1e-30 * ones, 1e30 * ones]

    return extremes


def nan(shape):
    def outside(n):
        y = eye(shape, n)
        y[0, 0] = torch.nan
        return [y]

    return outside


def entries(shape, less=0):
    return lambda n: math.prod(shape(n)) - less


ROWS = [
    *(
        ConstraintRow(
            f"weight norm, {name}",
            "constraints.WeightNorm",
            lambda axis=axis: WeightNorm(axis),
            shape,
            matrices(shape),
            weight_extremes(shape),
            nan(shape),
            entries(shape),
        )
        for name, axis, shape in [("rows", -2, tall), ("columns", -1, wide)]
    ),
    *(
        ConstraintRow(
            f"spectral norm{name}",
            "constraints.SpectralNorm",
            lambda norm=norm: SpectralNorm(norm),
            shape,
            sample,
            spectral_extremes(shape, norm),
            lambda n, shape=shape, norm=norm: [
                0 * eye(shape, n),
                1.001 * norm * eye(shape, n),
                0.5 * norm * eye(shape, n),
            ],
            entries(shape, less=1),
            sizes=SIZES[1:] if shape is square else SIZES,  # a number has no direction
        )
        for name, norm, shape, sample in [
            ("", 4.0, square, separated(4.0)),
            (", tall", BOUND, tall, normed(tall, BOUND)),
            (", wide", 2.0, wide, normed(wide, 2.0)),
        ]
    ),
    ConstraintRow(
        "power spectral norm",
        "constraints.PowerSpectralNorm",
        lambda: PowerSpectralNorm(BOUND, steps=20, rtol=0.1),
        tall,
        separated(BOUND, EXTRA),
        spectral_extremes(tall, BOUND),
        lambda n: [0 * eye(tall, n), 1.2 * BOUND * eye(tall, n)],
        entries(tall, less=1),
    ),
    *(
        ConstraintRow(
            f"lipschitz{name}",
            "constraints.Lipschitz",
            lambda bound=bound: Lipschitz(bound),
            shape,
            inside(shape, bound),
            lambda n, shape=shape, bound=bound: [
                0 * eye(shape, n),
                0.5 * bound * eye(shape, n),
                *spectral_extremes(shape, bound)(n),
            ],
            lambda n, shape=shape, bound=bound: [
                1.001 * bound * eye(shape, n),
                *nan(shape)(n),
            ],
            entries(shape),
        )
        for name, bound, shape in [
            ("", 1.0, square),
            (", tall", BOUND, tall),
            (", wide", 2.0, wide),
        ]
    ),
]
