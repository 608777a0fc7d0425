"""Correlation matrices and their factors against torch and closed forms."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch.distributions.transforms import CorrCholeskyTransform

from pureopt import ConstraintError, random
from pureopt.constraints import Correlation, CorrelationCholesky
from tests.constraints.row import randn
from tests.constraints.rows_definite import correlation

FACTOR, MATRIX = CorrelationCholesky(), Correlation()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def free(n, scale=1.0, seed=0):
    return scale * randn(n * (n - 1) // 2, generator=generator(seed))


def test_the_map_is_torchs_without_its_cancellation():
    x = free(5)
    # Products of some five factors, against sums of their logarithms.
    want = CorrCholeskyTransform()(x)
    assert torch.allclose(FACTOR.forward(x), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("n", "dtype", "worst"),
    [
        (50, torch.float64, 1e-14),  # torch.distributions: NaN, or off by 2
        (100, torch.float64, 4e-14),  # torch.distributions: NaN
        (50, torch.float32, 1e-5),  # torch.distributions: NaN
    ],
    ids=str,
)
def test_the_free_values_come_back_where_torch_has_nan(n, dtype, worst):
    """Errors of some sqrt(n) eps in sums from the end of a row; measured a third."""
    for seed in range(3):
        x = free(n, seed=seed).to(dtype)
        factor = FACTOR.forward(x)
        assert bool(FACTOR.check(factor))
        assert float((FACTOR.right_inverse(factor) - x).abs().max()) <= worst
        matrix = MATRIX.forward(x)
        assert bool(MATRIX.check(matrix))
        again = MATRIX.forward(MATRIX.right_inverse(matrix))
        # Backward stable, although the smallest eigenvalue is below 1e-16 here.
        tolerance = 20 * n * torch.finfo(dtype).eps
        assert float((again - matrix).abs().max()) <= tolerance


def test_the_factor_is_right_to_the_last_digits():
    """Against 50 digits, for free values up to ten."""
    x = free(4, scale=5.0, seed=3)
    factor = FACTOR.forward(x)
    with mpmath.workdps(50):
        k = 0
        for i in range(4):
            rest = mpmath.mpf(1)
            for j in range(i):
                want = mpmath.tanh(float(x[k])) * rest
                # Three roundings, and those of logarithms as large as 20.
                assert abs(float(factor[i, j]) / want - 1) < 50 * 2.2e-16
                rest /= mpmath.cosh(float(x[k]))
                k += 1
            assert abs(float(factor[i, i]) / rest - 1) < 50 * 2.2e-16


def test_the_diagonal_is_exactly_one_for_any_free_value():
    for scale in (1e-8, 1.0, 10.0, 1e3, 1e30):
        y = MATRIX.forward(free(6, scale).float())
        assert bool((y.diagonal() == 1).all())
        assert bool(MATRIX.check(y))
        assert bool((y.abs() <= 1 + 1e-6).all())


def test_samples_have_the_marginals_of_the_uniform_distribution():
    """Each correlation has the density of Beta(n/2, n/2) on (-1, 1)."""
    n, count = 4, 20_000
    y = MATRIX.sample(random.key(1), (count, n, n), dtype=torch.float64)
    assert bool(MATRIX.check(y).all())
    row, column = torch.tril_indices(n, n, -1)
    r = y[:, row, column]
    # The even moments of 2B - 1 for Beta(2, 2) are 1/5 and 3/35; the mean of products
    # of different ones is zero. Five standard errors of numbers below 0.25.
    error = 5 * 0.25 / count**0.5
    assert float((r.T @ r / count - 0.2 * torch.eye(6)).abs().max()) < error
    assert float(((r**4).mean(0) - 3 / 35).abs().max()) < error
    assert float(r.mean(0).abs().max()) < 5 * 0.45 / count**0.5


def test_samples_fill_the_set_evenly():
    """Against rejection from the cube; torch's LKJCholesky is not uniform.

    The third entry of the diagonal has mean 3/4, as the square root of one minus a
    Beta(1, 3/2) number. LKJCholesky(4, 1.0) gives 0.678: it takes Beta(3/2, 3/2).
    """
    n, count = 4, 20_000
    factor = FACTOR.sample(random.key(2), (count, n, n), dtype=torch.float64)
    assert bool(FACTOR.check(factor).all())
    got = factor.diagonal(dim1=-2, dim2=-1)
    # A standard deviation of 0.2: five standard errors.
    assert abs(float(got[:, 2].mean()) - 0.75) < 5 * 0.2 / count**0.5
    cube = 2 * torch.rand(100_000, 6, generator=generator(), dtype=torch.float64) - 1
    y = torch.eye(n, dtype=torch.float64).repeat(len(cube), 1, 1)
    row, column = torch.tril_indices(n, n, -1)
    y[:, row, column] = cube
    y[:, column, row] = cube
    lower, info = torch.linalg.cholesky_ex(y)
    want = lower[info == 0].diagonal(dim1=-2, dim2=-1)
    assert len(want) > 10_000
    # Two means of numbers with a standard deviation below 0.25.
    assert float((got.mean(0) - want.mean(0)).abs().max()) < 5 * 0.25 * 2 / count**0.5
    square = got.prod(-1).mean() - want.prod(-1).mean()
    assert abs(float(square)) < 5 * 0.25 * 2 / count**0.5


def test_project_is_the_example_of_higham():
    """The matrix of section 2: the nearest one is known in closed form."""
    a = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.float64)
    y = MATRIX.project(a)
    # Printed there to four digits.
    want = torch.tensor([[1, 0.7607, 0.1573], [0.7607, 1, 0.7607], [0.1573, 0.7607, 1]])
    assert torch.allclose(y, want.double(), rtol=0, atol=5e-5)
    # Stationary: no feasible step on the segment to another element comes closer.
    for seed in range(20):
        other = correlation(3, (), generator(seed))
        assert float(((y - a) * (other - y)).sum()) > -1e-8


def test_project_leaves_correlations_alone_and_takes_anything():
    y = correlation(8, (3,), generator())
    # A hundred eigendecompositions, none of which adds to the error of the others.
    assert torch.allclose(MATRIX.project(y), y, rtol=0, atol=1e-14)
    wild = 1e3 * randn(4, 8, 8, generator=generator(1))
    assert bool(MATRIX.check(MATRIX.project(wild)).all())
    wild[1] = torch.nan
    assert MATRIX.check(MATRIX.project(wild)).tolist() == [True, False, True, True]
    rows = FACTOR.project(wild[0])
    assert bool(FACTOR.check(rows))


def test_a_singular_correlation_matrix_round_trips():
    y = torch.ones(5, 5)
    x = MATRIX.right_inverse(y)
    assert bool(x.isfinite().all())
    # Some n eps of float32.
    assert torch.allclose(MATRIX.forward(x), y, rtol=0, atol=2e-6)


def test_a_large_matrix_with_another_diagonal_is_no_correlation_matrix():
    c, y = Correlation(), torch.full((300, 300), 0.5)
    y.fill_diagonal_(1.0)
    assert bool(c.check(y))
    # The spectrum, of norm 150, would feel the difference only from 2e-2.
    y.fill_diagonal_(1.001)
    assert not bool(c.check(y))
    assert bool(c.right_inverse(y).isnan().all())


def test_wrong_lengths_and_shapes_raise():
    with pytest.raises(ConstraintError, match=r"n \(n - 1\) / 2: 0, 1, 3, 6"):
        MATRIX.forward(torch.ones(2))
    with pytest.raises(ConstraintError, match=r"have a shape \(..., n, n\)"):
        MATRIX.sample(random.key(0), (3, 2))
    with pytest.raises(ConstraintError, match="correlation matrix"):
        MATRIX.check(torch.ones(2, 3))
    assert torch.equal(MATRIX.forward(torch.ones(0)), torch.ones(1, 1))
