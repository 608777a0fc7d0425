"""Symmetric and Skew: the packing, the isometry, what counts as inside."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pureopt import ConstraintError
from pureopt.constraints import Skew, Symmetric

both = pytest.mark.parametrize("c", [Symmetric(), Skew()], ids=repr)


@pytest.mark.parametrize(("c", "offset"), [(Symmetric(), 0), (Skew(), -1)], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_packing_is_numpys_lower_triangle_row_by_row(c, offset, n):
    row, column = np.tril_indices(n, offset)
    x = torch.arange(1.0, len(row) + 1, dtype=torch.float64)
    y = c.forward(x).numpy()
    off = row != column
    want = x.numpy() / np.where(off, math.sqrt(2), 1)
    np.testing.assert_allclose(y[row, column], want, rtol=4e-16)  # two roundings
    np.testing.assert_array_equal(y.T, y if offset == 0 else -y)


@both
@given(n=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_map_keeps_lengths_and_angles(c, n, seed):
    generator = torch.Generator().manual_seed(seed)
    d = n * (n + 1) // 2 if c == Symmetric() else n * (n - 1) // 2
    a, b = torch.randn(2, d, generator=generator, dtype=torch.float64)
    # d products of order one, each rounded a few times.
    inner = (c.forward(a) * c.forward(b)).sum()
    assert torch.allclose(inner, a @ b, rtol=0, atol=1e-14 * d)


@both
def test_the_round_trip_is_exact_to_two_roundings(c):
    y = c.project(torch.randn(50, 7, 7, generator=torch.Generator().manual_seed(0)))
    z = c.forward(c.right_inverse(y))
    # Times sqrt(2), then times its reciprocal: half an ulp each, and half for each of
    # the constants.
    assert torch.allclose(z, y, rtol=2 * torch.finfo(y.dtype).eps, atol=0)


@both
def test_a_rounding_of_asymmetry_is_inside_and_a_visible_one_is_not(c):
    y = c.forward(torch.ones(3))
    y[0, 1] += 2e-7
    assert bool(c.check(y))
    y[0, 1] += 2e-5
    assert not bool(c.check(y))
    assert float(c.violation(y)) == pytest.approx(2.02e-5, rel=1e-2)
    # The tolerance is relative to the largest entry: units do not matter.
    assert not bool(c.check(1e-20 * y))


def test_a_diagonal_is_not_skew():
    assert not bool(Skew().check(torch.eye(2)))
    assert bool(Symmetric().check(torch.eye(2)))


@pytest.mark.parametrize(
    ("c", "length"), [(Symmetric(), 0), (Symmetric(), 4), (Skew(), 2)]
)
def test_a_length_of_no_matrix_raises(c, length):
    with pytest.raises(ConstraintError, match="last dimension n"):
        c.forward(torch.zeros(2, length))
    with pytest.raises(ConstraintError, match="last dimension n"):
        c.log_abs_det(torch.zeros(2, length))


def test_the_empty_vector_is_the_one_by_one_skew_matrix():
    assert torch.equal(Skew().forward(torch.zeros(4, 0)), torch.zeros(4, 1, 1))
    assert Skew().right_inverse(torch.zeros(4, 1, 1)).shape == (4, 0)
