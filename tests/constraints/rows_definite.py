"""The rows of definite, low-rank, correlation and bounded-spectrum matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.constraints import (
    BoundedSingularValues,
    BoundedSpectrum,
    CholeskyFactor,
    Correlation,
    CorrelationCholesky,
    FixedRank,
    LogEuclidean,
    LowRank,
    PositiveDefinite,
    PositiveSemidefinite,
    Symmetric,
)
from tests.constraints.row import ConstraintRow, randn, square

EXTRA = 2  # how much longer than wide the rectangles are
FROM_TWO = (2, 3, 5, 8, 33)


def rotation(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(randn(*batch, n, n, generator=generator))[0]


def uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def of_spectrum(q: Tensor, spectrum: Tensor) -> Tensor:
    """The symmetric matrix with these eigenvectors and eigenvalues."""
    y = (q * spectrum.unsqueeze(-2)) @ q.mT
    return (y + y.mT) / 2


def definite(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random axes, eigenvalues spread over four decades."""
    spectrum = 10 ** (4 * uniform(*batch, n, generator=generator) - 2)
    return of_spectrum(rotation(n, batch, generator), spectrum)


def spread(n: int, condition: float) -> Tensor:
    """A dense matrix with eigenvalues from 1 down to one over the condition number."""
    q = rotation(n, (), torch.Generator().manual_seed(n))
    spectrum = torch.logspace(0, -1, n, condition, dtype=torch.float64)
    return of_spectrum(q, spectrum)


def definite_extremes(n: int) -> list[Tensor]:
    eye = torch.eye(n, dtype=torch.float64)
    tiny = eye.clone()
    tiny[0, 0] = 1e-20
    return [
        eye,
        1e-8 * eye,
        1e8 * spread(n, 1e6),
        1e-8 * spread(n, 1e6),
        spread(n, 1e10),
        spread(n, 1e15),
        tiny,
    ]


def not_definite(n: int) -> list[Tensor]:
    eye = torch.eye(n, dtype=torch.float64)
    indefinite = eye.clone()
    indefinite[-1, -1] = -1e-3
    skewed = eye.clone()
    skewed[0, -1] += 1e-3
    singular = eye.clone()
    singular[0, 0] = 0
    found = [-eye, 0 * eye, indefinite, singular]
    return [*found, skewed] if n > 1 else found


def triangle_dim(n: int) -> int:
    return n * (n + 1) // 2


def factor(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Off the diagonal normal numbers, on it anything from 1e-3 to 10."""
    positive = 10 ** (4 * uniform(*batch, n, generator=generator) - 3)
    below = randn(*batch, n, n, generator=generator).tril(-1)
    return below + torch.diag_embed(positive)


def semidefinite(rank: int):
    def sample(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random axes, ``rank`` eigenvalues spread over four decades."""
        r = min(rank, n)
        spectrum = 10 ** (4 * uniform(*batch, r, generator=generator) - 2)
        return of_spectrum(rotation(n, batch, generator)[..., :r], spectrum)

    return sample


def semidefinite_extremes(n: int) -> list[Tensor]:
    """Rank zero, rank one on one axis or on all, zeros where the pivots would be."""
    zero = torch.zeros(n, n, dtype=torch.float64)
    last = zero.clone()
    last[-1, -1] = 1e8
    ones = zero + 1
    ramp = torch.arange(n, dtype=torch.float64)
    return [zero, last, ones, 1e-8 * ones, ramp[:, None] * ramp]


def full_rank_extremes(n: int) -> list[Tensor]:
    return [*semidefinite_extremes(n), *definite_extremes(n)]


def semidefinite_dim(rank: int):
    return lambda n: n * rank - rank * (rank - 1) // 2


def ranked(rank: int, rows: int, columns: int):
    def sample(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random axes, ``rank`` singular values spread over two decades."""
        u = rotation(n + rows, batch, generator)[..., :rank]
        v = rotation(n + columns, batch, generator)[..., :rank]
        s = 10 ** (2 * uniform(*batch, rank, generator=generator) - 1)
        return (u * s.unsqueeze(-2)) @ v.mT

    return sample


def ranked_extremes(rank: int, rows: int, columns: int):
    def extremes(n: int) -> list[Tensor]:
        """Axis-parallel, permuted, badly conditioned, large and small."""
        plain = torch.eye(n + rows, n + columns, dtype=torch.float64)
        plain[rank:] = 0
        q = rotation(n + max(rows, columns), (), torch.Generator().manual_seed(n))
        u, v = q[: n + rows, :rank], q[-n - columns :, :rank]
        s = torch.logspace(0, -6, rank, dtype=torch.float64)
        return [plain, plain.flip(0), -plain.flip(1), 1e8 * u @ v.mT, (u * s) @ v.mT]

    return extremes


def not_ranked(rank: int, rows: int, columns: int):
    def outside(n: int) -> list[Tensor]:
        full = torch.eye(n + rows, n + columns, dtype=torch.float64)
        return [full, full + 1] if n + min(rows, columns) > rank + 1 else []

    return outside


def not_of_rank(rank: int, rows: int, columns: int):
    def outside(n: int) -> list[Tensor]:
        """Also ranks that are too small."""
        lower = torch.eye(n + rows, n + columns, dtype=torch.float64)
        lower[rank - 1 :] = 0
        return [0 * lower, lower, *not_ranked(rank, rows, columns)(n)]

    return outside


def ranked_dim(rank: int, rows: int, columns: int):
    return lambda n: rank * (2 * n + rows + columns - rank)


def correlation(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The correlations of a definite matrix."""
    y = definite(n, batch, generator)
    scale = y.diagonal(dim1=-2, dim2=-1).sqrt()
    y = y / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    eye = torch.eye(n, dtype=torch.float64)
    return y * (1 - eye) + eye


def correlation_extremes(n: int) -> list[Tensor]:
    """Independent, almost equal, alternating, singular, and a slow decay."""
    eye = torch.eye(n, dtype=torch.float64)
    i = torch.arange(n, dtype=torch.float64)
    signs = (-1) ** i
    return [
        eye,
        (1 - 1e-9) * torch.ones_like(eye) + 1e-9 * eye,
        signs[:, None] * signs,
        torch.ones_like(eye),
        0.99 ** (i[:, None] - i).abs(),
    ]


def not_correlation(n: int) -> list[Tensor]:
    eye = torch.eye(n, dtype=torch.float64)
    found = [2 * eye, 0 * eye, 0.99 * eye]
    return [*found, 2 - eye, eye - 1.1 * (1 - eye)] if n > 1 else found


def correlation_factor_extremes(n: int) -> list[Tensor]:
    """Rows that end in numbers far below their rounding."""
    eye = torch.eye(n, dtype=torch.float64)
    steep = eye + 1e4 * torch.ones_like(eye).tril(-1)
    tiny = 1e-11 * eye + torch.ones_like(eye).tril(-1)
    tiny[0, 0] = 1
    found = [eye, steep, -steep + 2 * torch.diag(steep.diagonal()), tiny]
    return [y / y.norm(dim=-1, keepdim=True) for y in found]


def pairs_dim(n: int) -> int:
    return n * (n - 1) // 2


LOW, HIGH = -1.0, 3.0


def bounded(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random axes, eigenvalues uniform between the bounds."""
    spectrum = LOW + (HIGH - LOW) * uniform(*batch, n, generator=generator)
    return of_spectrum(rotation(n, batch, generator), spectrum)


def bounded_extremes(n: int) -> list[Tensor]:
    """The bounds themselves, alone and mixed; repeated eigenvalues."""
    eye = torch.eye(n, dtype=torch.float64)
    q = rotation(n, (), torch.Generator().manual_seed(n))
    mixed = torch.tensor([LOW, HIGH, 0.0, HIGH - 1e-9] * n, dtype=torch.float64)[:n]
    return [LOW * eye, HIGH * eye, eye, 0 * eye, of_spectrum(q, mixed)]


def not_bounded(n: int) -> list[Tensor]:
    eye = torch.eye(n, dtype=torch.float64)
    skewed = eye.clone()
    skewed[0, -1] += 1e-3
    found = [1.001 * HIGH * eye, 1.001 * LOW * eye]
    return [*found, skewed] if n > 1 else found


def between(low: float, high: float, rows: int, columns: int):
    def sample(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random axes, singular values uniform between the bounds."""
        k = n + min(rows, columns)
        u = rotation(n + rows, batch, generator)[..., :k]
        v = rotation(n + columns, batch, generator)[..., :k]
        s = low + (high - low) * uniform(*batch, k, generator=generator)
        return (u * s.unsqueeze(-2)) @ v.mT

    return sample


def between_extremes(low: float, high: float, rows: int, columns: int):
    def extremes(n: int) -> list[Tensor]:
        """Both bounds, both signs of the determinant, and the two bounds mixed."""
        eye = torch.eye(n + rows, n + columns, dtype=torch.float64)
        mixed = high * eye
        mixed[0, 0] = -low
        q = rotation(n + max(rows, columns), (), torch.Generator().manual_seed(n))
        turned = q[: n + rows, : n + rows] @ mixed
        found = [low * eye, high * eye, -high * eye, mixed]
        return [*found, turned] if rows >= columns else found

    return extremes


def not_between(low: float, high: float, rows: int, columns: int):
    def outside(n: int) -> list[Tensor]:
        eye = torch.eye(n + rows, n + columns, dtype=torch.float64)
        found = [1.001 * high * eye, 1e3 * eye + 1]
        return [*found, 0.999 * low * eye] if low else found

    return outside


def row(name, make, shape, sample, extremes, outside, dim, **others) -> ConstraintRow:
    public = f"constraints.{type(make()).__name__}"
    return ConstraintRow(
        name, public, make, shape, sample, extremes, outside, dim, **others
    )


def rectangle(rows: int, columns: int):
    return lambda n: (n + rows, n + columns)


def between_row(name: str, low: float, high: float, rows: int, columns: int):
    return row(
        name,
        lambda: BoundedSingularValues(low, high),
        rectangle(rows, columns),
        between(low, high, rows, columns),
        between_extremes(low, high, rows, columns),
        not_between(low, high, rows, columns),
        lambda n: (n + rows) * (n + columns),
    )


def ranked_row(name: str, make, rank: int, rows: int, columns: int, outside):
    return row(
        name,
        make,
        rectangle(rows, columns),
        ranked(rank, rows, columns),
        ranked_extremes(rank, rows, columns),
        outside(rank, rows, columns),
        ranked_dim(rank, rows, columns),
        sizes=tuple(n for n in (1, *FROM_TWO) if n >= rank),
    )


def not_semidefinite(n: int) -> list[Tensor]:
    return [y for y in not_definite(n) if float(torch.linalg.eigvals(y).real.min()) < 0]


ROWS = [
    row(
        "positive definite",
        PositiveDefinite,
        square,
        definite,
        definite_extremes,
        not_definite,
        triangle_dim,
    ),
    row(
        "log-euclidean",
        LogEuclidean,
        square,
        definite,
        definite_extremes,
        not_definite,
        triangle_dim,
        packed=Symmetric,
    ),
    row(
        "cholesky factor",
        CholeskyFactor,
        square,
        factor,
        lambda n: [
            torch.eye(n, dtype=torch.float64),
            1e-30 * torch.eye(n, dtype=torch.float64),
            1e30 * torch.ones(n, n, dtype=torch.float64).tril(),
            1e-30 * torch.eye(n) + torch.ones(n, n, dtype=torch.float64).tril(-1),
        ],
        lambda n: [
            -torch.eye(n, dtype=torch.float64),
            torch.zeros(n, n, dtype=torch.float64),
            *([torch.ones(n, n, dtype=torch.float64)] if n > 1 else []),
        ],
        triangle_dim,
    ),
    row(
        "positive semidefinite",
        PositiveSemidefinite,
        square,
        semidefinite(99),
        full_rank_extremes,
        not_semidefinite,
        triangle_dim,
    ),
    row(
        "positive semidefinite, rank 2",
        lambda: PositiveSemidefinite(2),
        square,
        semidefinite(2),
        semidefinite_extremes,
        lambda n: [
            *not_semidefinite(n),
            *([torch.eye(n, dtype=torch.float64)] if n > 2 else []),
        ],
        semidefinite_dim(2),
        sizes=FROM_TWO,
    ),
    ranked_row("low rank, tall", lambda: LowRank(2), 2, EXTRA, 0, not_ranked),
    ranked_row("low rank, wide", lambda: LowRank(1), 1, 0, EXTRA, not_ranked),
    ranked_row("fixed rank, tall", lambda: FixedRank(2), 2, EXTRA, 0, not_of_rank),
    ranked_row("fixed rank, wide", lambda: FixedRank(2), 2, 0, EXTRA, not_of_rank),
    ranked_row("fixed rank, square", lambda: FixedRank(1), 1, 0, 0, not_of_rank),
    row(
        "correlation",
        Correlation,
        square,
        correlation,
        correlation_extremes,
        not_correlation,
        pairs_dim,
    ),
    row(
        "correlation cholesky",
        CorrelationCholesky,
        square,
        lambda n, batch, generator: torch.linalg.cholesky(
            correlation(n, batch, generator)
        ),
        correlation_factor_extremes,
        lambda n: [y for y in not_correlation(n) if n > 1 or float(y) != 1],
        pairs_dim,
    ),
    row(
        "bounded spectrum",
        lambda: BoundedSpectrum(LOW, HIGH),
        square,
        bounded,
        bounded_extremes,
        not_bounded,
        triangle_dim,
    ),
    between_row("bounded singular values, square", 0.5, 2.0, 0, 0),
    between_row("bounded singular values, tall", 0.5, 2.0, EXTRA, 0),
    between_row("bounded singular values, wide from zero", 0.0, 1.0, 0, EXTRA),
]
