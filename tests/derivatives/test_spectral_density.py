"""Spectral densities and log-determinants against the eigenvalues."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.func import vmap

import pureopt as po
from pureopt.derivatives._operator import rademacher
from tests.derivatives.dense_operators import (
    KEY,
    dense_function,
    over_keys,
    times,
    with_eigenvalues,
)
from tests.derivatives.rows_curvature import symmetric

D = po.derivatives


def test_the_quadrature_is_exact_for_polynomials():
    a = symmetric(30) / 8
    spectrum = D.spectral_density(times(a), a[0], key=KEY, probes=5, steps=4)
    v = rademacher(KEY, (5, 30), torch.float64)
    for degree in range(8):  # 2 steps - 1
        power = torch.linalg.matrix_power(a, degree)
        exact = ((v @ power) * v).sum(-1) / 30
        moment = (spectrum.weights * spectrum.nodes**degree).sum(-1)
        # |A| is about 2: 2^7 times some roundings.
        torch.testing.assert_close(moment, exact, rtol=0, atol=1e-12)


def test_the_standard_error_of_an_integral_is_its_spread():
    a = symmetric(30) / 8

    def one(key):
        spectrum = D.spectral_density(times(a), a[0], key=key, probes=10, steps=12)
        return spectrum.integrate(torch.exp)

    value, stderr = vmap(one)(po.random.split(KEY, 400))
    truth = dense_function(a, np.exp).trace() / 30
    z = (value - truth) / stderr
    # Student's t with 9 degrees: standard deviation 1.13. Of 400 draws the mean is
    # within 4 * 1.13 / 20 and the deviation within 4 * 0.05 of it.
    assert abs(z.mean()) < 0.25
    assert abs(z.std() - 1.13) < 0.25


def test_the_density_is_that_of_the_eigenvalues():
    values = np.concatenate([np.linspace(0, 1, 150), [3.0] * 50])
    a = with_eigenvalues(values)
    spectrum = D.spectral_density(times(a), a[0], key=KEY, probes=30, steps=60)
    grid, width = torch.linspace(-2, 5, 400, dtype=torch.float64), 0.1
    value, stderr = spectrum.density(grid, width=width)
    z = (grid[:, None] - torch.from_numpy(values)) / width
    truth = ((-z.square() / 2).exp() / (width * math.sqrt(2 * math.pi))).mean(-1)
    # Five standard errors at 400 points, of which some ten are independent; 1e-3 is what
    # a quadrature with 60 nodes misses of a kernel of this width.
    assert ((value - truth).abs() <= 5 * stderr + 1e-3).all()
    assert (stderr < 0.2).all()
    # The trapezoidal rule on normal kernels that are 6 steps wide is exact.
    assert abs(torch.trapezoid(value, grid) - 1) < 1e-6


def test_the_cumulative_density_counts_eigenvalues():
    values = np.repeat([-1.0, 0.5, 2.0], [20, 30, 50])
    a = with_eigenvalues(values)
    spectrum = D.spectral_density(times(a), a[0], key=KEY, probes=40, steps=3)
    grid = torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    value, stderr = spectrum.cumulative(grid)
    truth = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    # Inside, five standard errors; outside there is none, and rounding of 40 sums.
    assert ((value - truth).abs() <= 5 * stderr + 1e-12).all()
    assert (stderr[1:3] > 1e-3).all()


def test_a_stack_of_spectra_is_evaluated_lane_by_lane():
    lanes = torch.stack([symmetric(6), 2 * symmetric(6, 1), symmetric(6, 2)])
    # As many lanes as probes and grid points: a wrong dimension would not show.
    grid = torch.linspace(-1, 1, 3, dtype=torch.float64)

    def spectrum(a):
        return D.spectral_density(times(a), a[0], key=KEY, probes=3, steps=3)

    def evaluated(s):
        return s.density(grid, width=0.5), s.cumulative(grid), s.integrate(torch.cos)

    whole = evaluated(vmap(spectrum)(lanes))
    one_by_one = vmap(lambda a: evaluated(spectrum(a)))(lanes)
    torch.testing.assert_close(whole, one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_log_determinant_is_within_its_error(dtype):
    a = with_eigenvalues(np.geomspace(0.1, 10, 100), dtype=dtype)
    a = (a + a.mT) / 2
    value, stderr = over_keys(D.log_determinant, a, 20, probes=20, steps=40)
    # Twenty means: four standard errors of their mean, from their own spread.
    assert abs(value.mean()) < 4 * value.std() / math.sqrt(20)
    # As for any trace by signs, with probes of which the spread is known to 1 / 6.
    log = dense_function(a.double(), np.log)
    spread = (2 * (log - torch.diag(log.diagonal())).square().sum() / 20).sqrt()
    assert (stderr > spread / 2).all()
    assert (stderr < spread * 2).all()


def test_an_indefinite_operator_has_no_log_determinant():
    d = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 2.0, 3.0], [0.0, 2.0, 3.0]])

    def one(d):
        return D.log_determinant(lambda v: d * v, d, key=KEY, probes=2, steps=3).value

    lanes = vmap(one)(d)
    assert abs(lanes[0] - math.log(6)) < 1e-5  # ten roundings of numbers near 3
    assert lanes[1].isnan()
    # Zero is a node up to its rounding: not positive, or a logarithm below -10.
    assert lanes[2].isnan() or lanes[2] < -10
