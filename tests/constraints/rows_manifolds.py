"""The rows of subspaces, unitary, symplectic and Hurwitz matrices, and matricized ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacfwd

from pureopt.constraints import (
    Grassmann,
    Hurwitz,
    Matricized,
    Orthogonal,
    Symmetric,
    Symplectic,
    Unitary,
)
from tests.constraints.row import ConstraintRow, randn, square
from tests.constraints.rows_linear import symmetric
from tests.constraints.rows_orthogonal import (
    EXTRA,
    beside,
    haar,
    orthogonal_extremes,
)


def eye(n: int, k: int | None = None) -> Tensor:
    return torch.eye(n, n if k is None else k, dtype=torch.float64)


def unitary(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform on U(n): QR with the phases of the diagonal of R; complex."""
    z = torch.complex(
        randn(*batch, n, n, generator=generator),
        randn(*batch, n, n, generator=generator),
    )
    q, r = torch.linalg.qr(z)
    return q * torch.sgn(r.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2)


def unitary_extremes(n: int) -> list[Tensor]:
    """Real ones, multiples of the identity by phases, the Fourier matrix; in parts."""
    one = torch.tensor(1.0, dtype=torch.float64)
    found = [y.to(torch.complex128) for y in orthogonal_extremes(n)]
    angles = (0.5 * torch.pi, -0.5 * torch.pi, torch.pi - 1e-9)
    found += [torch.polar(one, angle * one) * eye(n) for angle in angles]
    power = torch.arange(n, dtype=torch.float64)
    turns = -2 * torch.pi / n * power[:, None] * power
    found.append(torch.polar(torch.full_like(turns, n**-0.5), turns))
    return [torch.view_as_real(y) for y in found]


def parts(y: Tensor) -> Tensor:
    """A real matrix, with its imaginary part."""
    return torch.stack([y, torch.zeros_like(y)], -1)


def unitary_outside(n: int, k: int) -> list[Tensor]:
    one = eye(n, k)
    both = torch.stack([one, one], -1)
    return [*map(parts, beside(n, k)), both, torch.stack([0 * one, 2 * one], -1)]


def blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)


def form(m: int) -> Tensor:
    """``J``."""
    zero = torch.zeros(m, m, dtype=torch.float64)
    return blocks(zero, eye(m), -eye(m), zero)


def symplectic(m: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Two shears, a scaling of coordinates and its opposite of momenta, and a rotation."""
    one = eye(m).expand(*batch, m, m)
    zero = torch.zeros_like(one)
    s, t = (symmetric(m, batch, generator) / (2 * m**0.5) for _ in range(2))
    scale = torch.diag_embed(randn(*batch, m, generator=generator).mul(0.5).exp())
    linear = haar(m, batch, generator) @ scale
    u = torch.view_as_real(unitary(m, batch, generator))
    re, im = u.unbind(-1)
    return (
        blocks(one, s, zero, one)
        @ blocks(one, zero, t, one)
        @ blocks(linear, zero, zero, torch.linalg.inv(linear).mT)
        @ blocks(re, -im, im, re)
    )


def symplectic_extremes(m: int) -> list[Tensor]:
    """Eigenvalues -1, where the plain transform ends, and condition numbers to 1e12."""
    one, zero = eye(m), torch.zeros(m, m, dtype=torch.float64)
    shear = blocks(one, torch.ones_like(one), zero, one)
    found = [eye(2 * m), -eye(2 * m), form(m), -form(m), shear, -shear]
    for size in (1e3, 1e6):
        squeeze = blocks(size * one, zero, zero, one / size)
        found += [squeeze, -squeeze, form(m) @ squeeze]
    return [*found, shear @ blocks(1e3 * one, zero, zero, 1e-3 * one)]


def symplectic_outside(m: int) -> list[Tensor]:
    one = eye(2 * m)
    mirror = one.clone()
    mirror[0, 0] = -1  # orthogonal, with determinant -1
    return [2 * one, torch.zeros_like(one), one + 0.1, mirror, 1e4 * one]


def hurwitz(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A random matrix, moved left until its eigenvalues lie left of -0.1 to -10."""
    a = randn(*batch, n, n, generator=generator) / n**0.5
    edge = torch.linalg.eigvals(a).real.amax(-1)
    margin = 10 ** (2 * torch.rand(edge.shape, generator=generator).double() - 1)
    return a - (edge + margin)[..., None, None] * eye(n)


def hurwitz_extremes(n: int) -> list[Tensor]:
    """Stiff, not normal, barely damped."""
    rates = torch.logspace(-3, 3, n, dtype=torch.float64)
    turning = symmetric(n, (), torch.Generator().manual_seed(n))
    turning = turning.tril(-1) - turning.tril(-1).mT
    jordan = -eye(n) + 0.5 * torch.ones_like(eye(n)).triu(1).tril(1)
    return [-eye(n), -1e-8 * eye(n), -1e8 * eye(n), -torch.diag(rates), jordan,
            turning - 1e-3 * eye(n), torch.ones_like(eye(n)).triu(1) / n - eye(n)]  # fmt: skip


def hurwitz_outside(n: int) -> list[Tensor]:
    saddle = -eye(n)
    saddle[-1, -1] = 1e-3
    rotation = torch.zeros_like(saddle)
    if n > 1:
        rotation[0, 1], rotation[1, 0] = 1, -1  # eigenvalues on the axis
    return [torch.zeros_like(saddle), eye(n), saddle, rotation]


def flattened(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights of a convolution, ``n`` by 2 by 2 by 2, orthogonal as ``n`` by 8."""
    rows = haar(max(n, 8), batch, generator)[..., :n, :8]
    return rows.reshape(*batch, n, 2, 2, 2)


def per_position(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """One orthogonal ``n`` by 3 matrix for each of 2 by 2 positions."""
    y = torch.empty(*batch, n, 3, 2, 2, dtype=torch.float64)
    for i in range(2):
        for j in range(2):
            q = haar(max(n, 3), batch, generator)[..., :n, :3]
            y[..., i, j] = q
    return y


def per_group(n: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Two groups of ``n`` channels, each orthogonal as ``n`` by 6."""
    groups = [haar(max(n, 6), batch, generator)[..., :n, :6] for _ in range(2)]
    return torch.cat(groups, -2).reshape(*batch, 2 * n, 3, 2)


def symmetric_pairs(
    n: int, batch: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Symmetric in the first and the last dimension, for each of 2 in the middle."""
    y = torch.empty(*batch, n, 2, n, dtype=torch.float64)
    for i in range(2):
        y[..., i, :] = symmetric(n, batch, generator)
    return y


def stiefel(n: int, k: int) -> int:
    n, k = max(n, k), min(n, k)
    return n * k - k * (k + 1) // 2


def one_bad(y: Tensor) -> list[Tensor]:
    """Nothing in the set, and one entry of one matrix wrong."""
    spoiled = y.clone()
    spoiled[..., 0] += 1
    return [torch.full_like(y, 0.1), spoiled]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return randn(*shape, generator=generator(seed))


def bound(c, y):
    """The free value of ``y``, and the static data of its chart."""
    static = c.bind(y)
    return c.right_inverse(y, static), static


def assert_isometry(c, x, static):
    jacobian = jacfwd(lambda x: c.forward(x, static).flatten())(x)
    eye = torch.eye(x.numel(), dtype=x.dtype)
    # A few roundings of numbers below one.
    assert torch.allclose(jacobian.mT @ jacobian, eye, rtol=0, atol=1e-14)


ROWS = [
    ConstraintRow(
        "grassmann, tall",
        "constraints.Grassmann",
        Grassmann,
        lambda n: (n + EXTRA, n),
        lambda n, batch, generator: haar(n + EXTRA, batch, generator)[..., :n],
        lambda n: [y[:, :n] for y in orthogonal_extremes(n + EXTRA)],
        lambda n: beside(n + EXTRA, n),
        lambda n: EXTRA * n,
    ),
    ConstraintRow(
        "grassmann, hyperplanes in rows",
        "constraints.Grassmann",
        Grassmann,
        lambda n: (n, n + 1),
        lambda n, batch, generator: haar(n + 1, batch, generator)[..., :n, :],
        lambda n: [y[:n] for y in orthogonal_extremes(n + 1)],
        lambda n: beside(n, n + 1),
        lambda n: n,
    ),
    ConstraintRow(
        "grassmann, the whole space",
        "constraints.Grassmann",
        Grassmann,
        square,
        haar,
        orthogonal_extremes,
        lambda n: beside(n, n),
        lambda n: 0,
        sizes=(1, 3),
    ),
    ConstraintRow(
        "unitary",
        "constraints.Unitary",
        Unitary,
        lambda n: (n, n, 2),
        lambda n, batch, g: torch.view_as_real(unitary(n, batch, g)),
        unitary_extremes,
        lambda n: unitary_outside(n, n),
        lambda n: n * n,
    ),
    ConstraintRow(
        "unitary, tall",
        "constraints.Unitary",
        Unitary,
        lambda n: (n + EXTRA, n, 2),
        lambda n, batch, g: torch.view_as_real(unitary(n + EXTRA, batch, g)[..., :n]),
        lambda n: [y[:, :n] for y in unitary_extremes(n + EXTRA)],
        lambda n: unitary_outside(n + EXTRA, n),
        lambda n: 2 * (n + EXTRA) * n - n * n,
        sizes=(1, 2, 3, 8),
    ),
    ConstraintRow(
        "unitary, wide",
        "constraints.Unitary",
        Unitary,
        lambda n: (n, n + EXTRA, 2),
        lambda n, batch, g: torch.view_as_real(
            unitary(n + EXTRA, batch, g)[..., :n, :]
        ),
        lambda n: [y[:n] for y in unitary_extremes(n + EXTRA)],
        lambda n: unitary_outside(n, n + EXTRA),
        lambda n: 2 * (n + EXTRA) * n - n * n,
        sizes=(1, 2, 3, 8),
    ),
    ConstraintRow(
        "symplectic",
        "constraints.Symplectic",
        Symplectic,
        lambda n: (2 * n, 2 * n),
        symplectic,
        symplectic_extremes,
        symplectic_outside,
        lambda n: n * (2 * n + 1),
        sizes=(1, 2, 3, 8),
    ),
    ConstraintRow(
        "hurwitz",
        "constraints.Hurwitz",
        Hurwitz,
        square,
        hurwitz,
        hurwitz_extremes,
        hurwitz_outside,
        lambda n: n * n,
    ),
    ConstraintRow(
        "hurwitz, faster than a rate",
        "constraints.Hurwitz",
        lambda: Hurwitz(torch.tensor(0.5)),
        square,
        lambda n, batch, generator: hurwitz(n, batch, generator) - 0.5 * eye(n),
        lambda n: [-0.5 * eye(n) - 1e-3 * eye(n), -1e4 * eye(n)],
        lambda n: [-0.5 * eye(n), *hurwitz_outside(n)],
        lambda n: n * n,
        sizes=(1, 3, 8),
    ),
    ConstraintRow(
        "matricized, a flattened convolution",
        "constraints.Matricized",
        lambda: Matricized(Orthogonal(), rows=-4, cols=(-3, -2, -1)),
        lambda n: (n, 2, 2, 2),
        flattened,
        lambda n: [torch.eye(n, 8).double().reshape(n, 2, 2, 2)],
        lambda n: one_bad(torch.eye(n, 8).double().reshape(n, 2, 2, 2)),
        lambda n: stiefel(n, 8),
        sizes=(1, 3, 8, 12),
    ),
    ConstraintRow(
        "matricized, each position of a kernel",
        "constraints.Matricized",
        lambda: Matricized(Orthogonal(), rows=-4, cols=-3),
        lambda n: (n, 3, 2, 2),
        per_position,
        lambda n: [torch.eye(n, 3).double()[:, :, None, None].expand(n, 3, 2, 2)],
        lambda n: one_bad(
            torch.eye(n, 3).double()[:, :, None, None].repeat(1, 1, 2, 2)
        ),
        lambda n: 4 * stiefel(n, 3),
        sizes=(1, 3, 8),
    ),
    ConstraintRow(
        "matricized, each group",
        "constraints.Matricized",
        lambda: Matricized(Orthogonal(), rows=-3, cols=(-2, -1), groups=2),
        lambda n: (2 * n, 3, 2),
        per_group,
        lambda n: [torch.eye(n, 6).double().repeat(2, 1).reshape(2 * n, 3, 2)],
        lambda n: one_bad(torch.eye(n, 6).double().repeat(2, 1).reshape(2 * n, 3, 2)),
        lambda n: 2 * stiefel(n, 6),
        sizes=(1, 3, 8),
    ),
    ConstraintRow(
        "matricized, symmetric pairs",
        "constraints.Matricized",
        lambda: Matricized(Symmetric(), rows=-3, cols=-1),
        lambda n: (n, 2, n),
        symmetric_pairs,
        lambda n: [torch.ones(n, 2, n).double()],
        lambda n: [torch.arange(2.0 * n * n).double().reshape(n, 2, n)],
        lambda n: n * (n + 1),
        sizes=(3, 8),
    ),
]
