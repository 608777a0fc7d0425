"""The largest eigenvalues and their vectors against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pureopt as po
from tests.derivatives.dense_operators import (
    KEY,
    dense_function,
    times,
    with_eigenvalues,
)
from tests.derivatives.rows_curvature import symmetric

D = po.derivatives


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str
)
def test_repeated_eigenvalues_are_all_found(dtype, tolerance):
    # Tolerances: some hundred roundings of numbers up to the norm 9.
    values = [9.0, 9.0, 9.0, 5.0, *np.linspace(-3, 2, 196)]
    a = with_eigenvalues(values, dtype=dtype)
    found = D.top_eigenpairs(times(a), a[0], 4, key=KEY, steps=30)
    expected = torch.tensor([9.0, 9.0, 9.0, 5.0], dtype=dtype)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=tolerance)
    assert (found.residuals < tolerance).all()
    x = found.vectors
    eye = torch.eye(4, dtype=dtype)
    torch.testing.assert_close(x @ x.mT, eye, rtol=0, atol=tolerance)
    # The space of the threefold one.
    projector = dense_function(a.double(), lambda v: 1.0 * (v > 8)).to(dtype)
    torch.testing.assert_close(x[:3].mT @ x[:3], projector, rtol=0, atol=tolerance)


def test_residuals_bound_the_error_before_convergence():
    a = symmetric(100)
    values, vectors, residuals = D.top_eigenpairs(times(a), a[0], 3, key=KEY, steps=4)
    true = torch.linalg.eigvalsh(a)
    distance = (values[:, None] - true).abs().amin(-1)
    assert (distance <= residuals).all()
    assert (residuals > 1e-3).all()
    gap = vectors @ a - values[:, None] * vectors
    torch.testing.assert_close(gap.norm(dim=-1), residuals, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_whole_space_is_never_exceeded(k, steps):
    a = symmetric(7)
    values = D.top_eigenpairs(times(a), a[0], k, key=KEY, steps=steps).values
    assert values.shape == (k,)
    if k * steps >= 7:
        # Exact: rounding of numbers up to the norm 6.
        true = torch.linalg.eigvalsh(a).flip(0)[:k]
        torch.testing.assert_close(values, true, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_multiple_of_the_identity_exhausts_the_krylov_space_at_once(value):
    found = D.top_eigenpairs(lambda v: value * v, torch.zeros(30), 4, key=KEY, steps=5)
    # Rounding of numbers near 3 in float32.
    expected = torch.full((4,), value)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)
    assert (found.residuals < 1e-5).all()


def test_a_diagonal_operator_with_few_values_is_exact():
    # What replaces an exhausted block must not lie in the basis, as a unit vector would.
    d = torch.cat([torch.zeros(40), torch.tensor([1.0, 1.0, 2.0])]).double()
    values = D.top_eigenpairs(lambda v: d * v, d, 5, key=KEY, steps=8).values
    expected = torch.tensor([2.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-13)


def test_the_smallest_are_the_largest_of_the_negated_operator():
    a = symmetric(40)
    found = D.top_eigenpairs(lambda v: -(a @ v), a[0], 2, key=KEY)
    true = torch.linalg.eigvalsh(a)[:2]
    torch.testing.assert_close(-found.values, true, rtol=0, atol=1e-11)
