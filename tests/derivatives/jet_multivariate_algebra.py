"""Linear algebra and complex numbers under Taylor mode."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.derivatives.jet_case import given, positive, row


def spd(x):
    """A positive definite matrix."""
    return torch.matmul(x, x.mT) + torch.eye(x.shape[-1], dtype=x.dtype)


def regular(x):
    """A matrix far from singular."""
    return x + 3 * torch.eye(x.shape[-1], dtype=x.dtype)


def apart(x):
    """A symmetric matrix whose eigenvalues are far from one another."""
    return x + x.mT + skewed(torch.zeros_like(x))


def skewed(x):
    """A matrix whose eigenvalues are far from one another."""
    return x + 6 * torch.diag(torch.arange(x.shape[-1], dtype=x.dtype))


def long(x):
    """A tall matrix whose singular values are far from one another, and from zero."""
    square = skewed(x[..., :2, :]) + torch.eye(2, dtype=x.dtype)
    return torch.cat([square, x[..., 2:, :]], -2)


def wave(x):
    """Complex numbers away from zero and from the negative axis."""
    return torch.complex(x.cosh(), x.sin() + 0.5 * x)


def hermitian(x):
    """Not by `mH`, for which torch has no batching rule above first order."""
    re, im = x.cosh(), x.sin() + 0.5 * x
    return torch.complex(re + re.mT, im - im.mT)


def real_part_of_cholesky(x):
    """Of ``wave(x) @ wave(x).mH + 2 I``, two by two, in real arithmetic."""
    c, s = x.cosh(), x.sin() + 0.5 * x
    re, im = c @ c.mT + s @ s.mT + 2 * torch.eye(2), s @ c.mT - c @ s.mT
    first = re[0, 0].sqrt()
    below, zero = re[1, 0] / first, torch.zeros_like(first)
    last = (re[1, 1] - below**2 - (im[1, 0] / first) ** 2).sqrt()
    return torch.stack([first, zero, below, last]).reshape(2, 2)


def sizes_of_left_vectors(x):
    """Of ``wave(x)``, by the eigenvectors of its product with its adjoint."""
    A = wave(x)
    adjoint = torch.complex(A.real.mT, -A.imag.mT)
    values, V = torch.linalg.eigh(adjoint @ A)
    return (A @ V).abs().flip(-1) / values.sqrt().flip(-1)


def condition_by_sums(x):
    """The gradient of ``torch.linalg.cond`` fails: a kernel writes to what is saved."""
    A = regular(x)
    norms = [B.abs().sum(-2).amax(-1) for B in (A, torch.linalg.inv(A))]
    return norms[0] * norms[1]


LINEAR_ALGEBRA = [
    row(
        "solve",
        lambda x: torch.linalg.solve(regular(x), torch.matmul(x, x)),
        (3, 3),
        compiled=True,
    ),
    row("solve-A", lambda x: torch.linalg.solve(regular(x), given(3, like=x)), (3, 3)),
    row(
        "solve-B", lambda x: torch.linalg.solve(regular(given(3, 3, like=x)), x), (3, 2)
    ),
    row(
        "solve-right",
        lambda x: torch.linalg.solve(regular(x), x.pow(2), left=False),
        (2, 2, 2),
    ),
    row(
        "solve-broadcast",
        lambda x: torch.linalg.solve(regular(x), given(3, 2, 1, like=x)),
        (2, 2),
    ),
    row(
        "solve-triangular",
        lambda x: torch.linalg.solve_triangular(regular(x), x.sin(), upper=True),
        (3, 3),
    ),
    row(
        "solve-unitriangular",
        lambda x: torch.linalg.solve_triangular(
            x, x.sin(), upper=False, left=False, unitriangular=True
        ),
        (3, 3),
    ),
    row("inv", lambda x: torch.linalg.inv(regular(x)), (3, 3)),
    row("cholesky", lambda x: torch.linalg.cholesky(spd(x)), (3, 3), compiled=True),
    row(
        "cholesky-upper",
        lambda x: torch.linalg.cholesky_ex(spd(x), upper=True)[0],
        (2, 2, 2),
    ),
    row(
        "cholesky-solve",
        lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(spd(x))),
        (3, 3),
    ),
    row("pdist", lambda x: F.pdist(x, 3.0), (3, 2)),
    row("eigh", lambda x: torch.linalg.eigh(apart(x))[1], (3, 3), compiled=True),
    row("eigvalsh", lambda x: torch.linalg.eigvalsh(apart(x), UPLO="U"), (2, 2, 2)),
    row("eig", lambda x: torch.linalg.eig(skewed(x))[1].real, (3, 3)),
    row("eigvals", lambda x: torch.linalg.eigvals(skewed(x)).real, (3, 3)),
    row("qr", lambda x: torch.cat([*torch.linalg.qr(x)], -2), (4, 3), compiled=True),
    row("qr-wide", lambda x: torch.cat(torch.linalg.qr(x), -1), (2, 2, 3)),
    row(
        "qr-of-r-alone",
        lambda x: torch.linalg.qr(x, mode="r")[1],
        (3, 3),
        twin=lambda x: torch.linalg.qr(x)[1],
    ),
    row("qr-complete", lambda x: torch.linalg.qr(x, "complete")[0], (2, 3)),
    row("pinv", torch.linalg.pinv, (4, 2)),
    row("pinv-wide", torch.pinverse, (2, 2, 3)),
    row("lstsq", lambda x: torch.linalg.lstsq(x, x.sin())[0], (4, 2)),
    row(
        "lstsq-one",
        lambda x: torch.linalg.lstsq(given(4, 2, like=x), x).solution,
        (4, 1),
    ),
    row("svd", lambda x: torch.linalg.svd(skewed(x))[0], (3, 3), compiled=True),
    row("svd-right", lambda x: torch.linalg.svd(skewed(x))[2], (2, 2, 2)),
    row(
        "svd-tall",
        lambda x: torch.cat(torch.linalg.svd(long(x), full_matrices=False)[::2], -2),
        (4, 2),
    ),
    row(
        "svd-wide",
        lambda x: torch.cat(torch.svd(long(x).mT)[::2], -2),
        (4, 2),
    ),
    row("svdvals", lambda x: torch.linalg.svdvals(long(x)), (3, 2)),
    row("spectral-norm", lambda x: torch.linalg.matrix_norm(long(x), 2), (2, 3, 2)),
    row(
        "smallest-singular-value",
        lambda x: torch.linalg.norm(long(x), -2, dim=(1, 0), keepdim=True),
        (3, 2),
    ),
    row("nuclear-norm", lambda x: torch.linalg.matrix_norm(x, "nuc"), (3, 2)),
    row(
        "nuclear-norm-keepdim",
        lambda x: torch.linalg.matrix_norm(x, "nuc", dim=(0, 2), keepdim=True),
        (2, 2, 3),
    ),
    row("cond", lambda x: torch.linalg.cond(long(x)), (3, 2)),
    row("cond-inverse", lambda x: torch.linalg.cond(long(x), -2), (3, 2)),
    row(
        "cond-of-sums",
        lambda x: torch.linalg.cond(regular(x), 1),
        (3, 3),
        twin=condition_by_sums,
    ),
    row("inv-ex", lambda x: torch.linalg.inv_ex(regular(x))[0], (3, 3)),
    row(
        "tensorinv",
        lambda x: torch.linalg.tensorinv(regular(x).reshape(2, 2, 4)),
        (4, 4),
    ),
    row("vander", lambda x: torch.linalg.vander(x, N=4), (2, 3)),
    row("linalg-matmul", lambda x: torch.linalg.matmul(x.mT, x), (2, 3)),
    row("lu-factor", lambda x: torch.linalg.lu_factor(regular(x))[0], (3, 3)),
    row(
        "lu-solve",
        lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(x), x.sin()),
        (3, 3),
        compiled=True,
    ),
    row(
        "lu-solve-adjoint",
        lambda x: torch.linalg.lu_solve(
            *torch.linalg.lu_factor(x), x.sin(), left=False
        ),
        (3, 3),
    ),
    row(
        "complex-lu-solve",
        lambda x: (
            torch.linalg.lu_solve(
                *torch.linalg.lu_factor(regular(wave(x))),
                wave(2 * x),
                left=False,
                adjoint=True,
            ).imag
        ),
        (3, 3),
    ),
    row("det", torch.linalg.det, (3, 3), compiled=True),
    row("slogdet", lambda x: torch.linalg.slogdet(x)[1], (3, 3)),
    row("logdet", lambda x: torch.logdet(spd(x)), (3, 3)),
    row("matrix-power", lambda x: torch.linalg.matrix_power(x, 5), (2, 2)),
    row("matrix-power-inverse", lambda x: torch.matrix_power(regular(x), -2), (2, 2)),
    row("matrix-exp", torch.linalg.matrix_exp, (3, 3)),
    row("matrix-exp-curved", lambda x: torch.matrix_exp(x.sin() @ x), (2, 2)),
]


# Complex numbers on the way; the ends are real.
COMPLEX = [
    row("complex-abs", lambda x: wave(x).abs()),
    row("complex-abs-squared", lambda x: wave(x).abs() ** 2),
    row("complex-angle", lambda x: torch.angle(wave(x))),
    row("complex-sgn", lambda x: torch.view_as_real(torch.sgn(wave(x)))),
    row("complex-norm", lambda x: torch.linalg.vector_norm(wave(x), dim=-1)),
    row("complex-var", lambda x: torch.var(wave(x), -1)),
    row("complex-slogdet", lambda x: torch.linalg.slogdet(wave(x))[1], (2, 2)),
    row(
        "complex-eigh",
        lambda x: torch.linalg.eigh(hermitian(x))[1].abs(),
        (2, 2),
    ),
    row(
        "complex-cholesky",
        lambda x: torch.linalg.cholesky(wave(x) @ wave(x).mH + 2 * torch.eye(2)).real,
        (2, 2),
        twin=real_part_of_cholesky,
    ),
    row(
        "complex-qr",
        lambda x: torch.view_as_real(torch.linalg.qr(wave(x))[1]),
        (3, 2),
    ),
    row(
        "complex-svd",
        lambda x: torch.linalg.svd(wave(x), full_matrices=False)[0].abs(),
        (3, 2),
        twin=sizes_of_left_vectors,
    ),
    row("complex-svdvals", lambda x: torch.linalg.svdvals(wave(x)), (2, 3)),
    row("complex-pinv", lambda x: torch.linalg.pinv(wave(x)).imag, (3, 2)),
    row("complex-nuclear", lambda x: torch.linalg.norm(wave(x), "nuc"), (3, 2)),
    row(
        "view-as-complex",
        lambda x: torch.view_as_complex(x.exp()).square().imag,
        (3, 2),
    ),
    row("polar", lambda x: torch.polar(positive(x), x.square()).real),
    row("fft", lambda x: torch.view_as_real(torch.fft.rfft(x)).pow(2)),
]
