"""The diagonal of the Hessian, exact and estimated."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

import pureopt as po
from pureopt._errors import HyperparameterError
from pureopt._tree import ravel, tree_leaves
from tests.derivatives.observers import Largest
from tests.derivatives.products_net import SAME, flat_hessian, params, value
from tests.derivatives.row import randn
from tests.derivatives.rows_curvature import symmetric

D = po.derivatives


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 36, 1000])
def test_the_exact_diagonal_is_that_of_the_hessian_for_every_chunk_size(chunk_size):
    p = params()
    got = ravel(D.hessian_diag(value, chunk_size=chunk_size)(p))
    torch.testing.assert_close(got, flat_hessian(value, p).diagonal(), **SAME)


def test_a_nan_in_the_diagonal_stays_in_its_entry():
    x = torch.tensor([0.0, 3.0, -1.0], dtype=torch.float64)
    got = D.hessian_diag(lambda x: x[0].sqrt() + x[1] ** 3 + x[2] ** 2)(x)
    assert not got[0].isfinite()
    torch.testing.assert_close(got[1:], got.new_tensor([18.0, 2.0]), **SAME)


def test_the_diagonal_needs_memory_for_a_chunk_of_columns():
    p, chunk_size = 120, 5
    with Largest() as largest:
        D.hessian_diag(lambda x: (x.sin() * x.roll(1)).sum(), chunk_size=chunk_size)(
            randn(p)
        )
    # The comparison that makes unit vectors, the rows, and nothing larger.
    assert largest.numel == chunk_size * p


def test_the_estimated_diagonal_is_unbiased_with_the_error_it_tells():
    h = symmetric(6, seed=5)
    samples, lanes = 8, 4000
    keys = po.random.split(po.random.key(3), lanes)

    def estimate(key):
        return D.hessian_diag_estimate(
            lambda x: x @ h @ x / 2, h.new_zeros(6), key=key, samples=samples
        )

    value, stderr = vmap(estimate)(keys)
    variance = (h.square().sum(1) - h.diagonal().square()) / samples
    # The mean over lanes is normal with this deviation: 5 of them, 6 entries.
    off = (value.mean(0) - h.diagonal()).abs() / (variance / lanes).sqrt()
    assert off.max() < 5
    # The squared errors that are told are unbiased too; their own deviation is about
    # variance * sqrt(2 / (samples - 1) / lanes) = 1.2 % or less: signs have light tails.
    torch.testing.assert_close(stderr.square().mean(0), variance, rtol=0.06, atol=0)


def test_the_estimate_is_exact_where_the_hessian_is_diagonal():
    x = randn(4)
    estimate = D.hessian_diag_estimate(
        lambda x: (x**4).sum(), x, key=po.random.key(0), samples=3
    )
    torch.testing.assert_close(estimate.value, 12 * x**2, **SAME)
    # Rounding of three equal numbers.
    assert estimate.stderr.abs().max() < 1e-14


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100])
def test_the_estimate_does_not_depend_on_the_chunk_size(chunk_size):
    p, key = params(), po.random.key(1)
    expected = D.hessian_diag_estimate(value, p, key=key, samples=5)
    got = D.hessian_diag_estimate(value, p, key=key, samples=5, chunk_size=chunk_size)
    torch.testing.assert_close(got, expected, **SAME)


def test_the_error_of_a_single_sample_is_unknown():
    estimate = D.hessian_diag_estimate(value, params(), key=po.random.key(1), samples=1)
    assert all(leaf.isnan().all() for leaf in tree_leaves(estimate.stderr))
    assert all(leaf.isfinite().all() for leaf in tree_leaves(estimate.value))


@pytest.mark.parametrize("samples", [0, 1.5, None])
def test_samples_are_a_positive_integer(samples):
    with pytest.raises(HyperparameterError, match=r"samples=.*positive integer"):
        D.hessian_diag_estimate(value, params(), key=po.random.key(0), samples=samples)
