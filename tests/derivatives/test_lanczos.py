"""Lanczos against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pureopt as po
from pureopt.derivatives._lanczos import gauss_quadrature
from tests.derivatives.dense_operators import times, with_eigenvalues
from tests.derivatives.row import randn
from tests.derivatives.rows_curvature import operator, symmetric

D = po.derivatives


def tridiagonal(alphas, betas):
    return torch.diag(alphas) + torch.diag(betas, 1) + torch.diag(betas, -1)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A few hundred roundings of numbers up to 20, the norm of the matrix.
    [(torch.float64, 1e-12), (torch.float32, 5e-4)],
    ids=str,
)
def test_lanczos_is_tridiagonal_in_an_orthonormal_basis(dtype, tolerance):
    a = symmetric(40, dtype=dtype)
    alphas, betas, q = D.lanczos(times(a), randn(40, seed=1, dtype=dtype), 40)
    t = tridiagonal(alphas, betas[:-1])
    # The orthogonality is that of the arithmetic, not of the operator.
    gram_error = (q @ q.mT - torch.eye(40, dtype=dtype)).abs().max()
    assert gram_error < 40 * torch.finfo(dtype).eps
    torch.testing.assert_close(q @ a @ q.mT, t, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(t), torch.linalg.eigvalsh(a), rtol=0, atol=tolerance
    )


def test_orthogonality_survives_the_convergence_of_an_outlier():
    # Without reorthogonalization the eigenvalue 1e6 returns after some ten steps.
    a = with_eigenvalues([1e6, *np.linspace(0, 1, 79)])
    _, _, q = D.lanczos(times(a), randn(80, seed=1), 60)
    gram_error = (q @ q.mT - torch.eye(60, dtype=torch.float64)).abs().max()
    assert gram_error < 80 * torch.finfo(torch.float64).eps


def test_the_last_beta_bounds_the_error_of_a_ritz_value():
    a = symmetric(60)
    alphas, betas, _ = D.lanczos(times(a), randn(60, seed=1), 12)
    t = tridiagonal(alphas, betas[:-1])
    values, vectors = torch.linalg.eigh(t)
    true = torch.linalg.eigvalsh(a)
    distance = (values[:, None] - true).abs().amin(-1)
    bound = betas[-1] * vectors[-1].abs()
    assert (distance <= bound + 1e-12).all()  # 1e-12: rounding, eps times the norm 20
    assert (bound[-1] < 1).all()


def test_an_exhausted_krylov_space_ends_in_zeros():
    # Three different eigenvalues: no vector generates more than three dimensions.
    d = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64).repeat(5)
    alphas, betas, q = D.lanczos(lambda v: d * v, randn(15), 8)
    assert (betas[2:] == 0).all()
    assert (q[3:] == 0).all()
    assert (alphas[3:] == alphas[0]).all()
    t = tridiagonal(alphas[:3], betas[:2])
    # Some ten roundings of 9.
    torch.testing.assert_close(torch.linalg.eigvalsh(t), d[:3], rtol=0, atol=1e-13)


def test_rounding_noise_after_the_last_dimension_has_no_weight():
    # Three close eigenvectors of a matrix with more: what rounding adds to the start is
    # amplified before it is dropped, and the space goes on from there.
    a = with_eigenvalues(np.linspace(1, 2, 20))
    values, vectors = torch.linalg.eigh(a)
    spectrum = D.lanczos(times(a), vectors[:, [0, 4, 8]].sum(-1), 10)
    nodes, weights = gauss_quadrature(spectrum.alphas, spectrum.betas)
    # The weight of noise is the square of the coupling, below 1e-11 here.
    heavy = weights > 1e-20
    assert heavy.sum() == 3
    torch.testing.assert_close(nodes[heavy], values[[0, 4, 8]], rtol=0, atol=1e-12)
    assert nodes.isfinite().all()


def test_the_derivative_is_finite_where_the_krylov_space_is_exhausted():
    a = torch.eye(4, dtype=torch.float64)

    def total(a, start):
        return sum(leaf.sum() for leaf in D.lanczos(times(a), start, 3))

    for g in torch.func.grad(total, argnums=(0, 1))(a, randn(4)):
        assert g.isfinite().all()


def test_a_zero_start_is_nan():
    alphas, betas, q = D.lanczos(lambda v: v, torch.zeros(3), 2)
    assert alphas.isnan().all()
    assert betas.isnan().all()
    assert q.isnan().all()


def test_leaves_keep_their_dtypes_and_the_numbers_the_widest():
    start = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(1).double()}
    alphas, _, vectors = D.lanczos(lambda v: v, start, 2)
    assert alphas.dtype == torch.float64
    assert vectors["a"].dtype == torch.bfloat16
    assert vectors["b"].dtype == torch.float64
    assert D.lanczos(lambda v: v, start["a"], 2).alphas.dtype == torch.float32


def test_the_derivative_is_that_of_finite_differences():
    a, start, da = symmetric(10), randn(10, seed=1), symmetric(10, 2)

    def coefficients(a):
        return torch.cat(D.lanczos(times(a), start, 4)[:2])

    tangent = torch.func.jvp(coefficients, (a,), (da,))[1]
    h = 1e-5
    difference = (coefficients(a + h * da) - coefficients(a - h * da)) / (2 * h)
    # h^2 times a third derivative below 1e2; rounding of 1e-15 over h is less.
    torch.testing.assert_close(tangent, difference, rtol=0, atol=1e-7)
    assert tangent.abs().min() > 1e-3


def test_the_order_of_the_keys_that_an_operator_returns_does_not_matter():
    a = symmetric(6)
    matvec, like = operator(a)

    def reordered(v):
        return dict(reversed(matvec(v).items()))

    one, two = (D.lanczos(f, like, 3) for f in (matvec, reordered))
    assert torch.equal(one.alphas, two.alphas)
