"""Trace estimators: bias, errors and their slopes, exact cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pureopt as po
from pureopt._random import normal
from tests.derivatives.dense_operators import (
    KEY,
    TRACES,
    over_keys,
    times,
    with_eigenvalues,
)
from tests.derivatives.row import randn
from tests.derivatives.rows_curvature import symmetric

D = po.derivatives


def rms(estimates, truth):
    return float((estimates - truth).square().mean().sqrt())


def test_the_variance_of_hutchinson_is_that_of_the_paper():
    a = symmetric(10)
    value, stderr = over_keys(D.trace_hutchinson, a, 2000, matvecs=8)
    off = a - torch.diag(a.diagonal())
    variance = 2 * off.square().sum() / 8
    # Of 2000 draws: the mean to 4 standard errors, the variance to 4 * sqrt(2 / 2000)
    # for a normal distribution, twice that for the longer tails of a quadratic form.
    assert abs(value.mean() - a.trace()) < 4 * (variance / 2000).sqrt()
    assert abs(value.var() / variance - 1) < 0.25
    assert abs(stderr.square().mean() / variance - 1) < 0.25


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("kind", ["indefinite", "low rank and noise"])
def test_traces_are_unbiased(trace, kind):
    a = symmetric(12)
    if kind == "low rank and noise":
        a = 0.1 * a + 10 * torch.outer(a[0], a[0])
    value, _ = over_keys(trace, a, 2000, matvecs=9)
    # Four standard errors of the mean.
    assert abs(value.mean() - a.trace()) < 4 * value.std() / math.sqrt(2000)
    assert value.std() > 0


@pytest.mark.parametrize("trace", [D.trace_hutchinson, D.trace_hutchpp])
def test_two_traces_need_no_symmetry(trace):
    a = randn(12, 12)
    value, _ = over_keys(trace, a, 2000, matvecs=9)
    # Four standard errors of the mean.
    assert abs(value.mean() - a.trace()) < 4 * value.std() / math.sqrt(2000)


@pytest.mark.parametrize("trace", [D.trace_hutchpp, D.trace_xtrace])
def test_the_standard_error_is_the_spread_within_a_factor(trace):
    a = with_eigenvalues(1 / np.arange(1, 101))
    value, stderr = over_keys(trace, a, 300, matvecs=30)
    # Of 300 draws with long tails the ratio is good to 0.2. The samples of XTrace are
    # positively correlated, as its docstring says.
    ratio = value.std() / stderr.square().mean().sqrt()
    low, high = (1.0, 1.5) if trace is D.trace_xtrace else (0.8, 1.2)
    assert low < ratio < high


def slope(trace, a, counts, keys=60):
    errors = [
        rms(over_keys(trace, a, keys, matvecs=m).value, a.trace()) for m in counts
    ]
    return np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


def test_the_error_slopes_are_those_of_the_papers():
    # Eigenvalues 1 / i: the part off the m largest has Frobenius norm m^(-1/2), of which
    # the root of m samples is averaged. The fit of 60 errors is good to 0.1 in the slope;
    # the truncation at 300 makes it steeper.
    a = with_eigenvalues(1 / np.arange(1, 301))
    counts = [12, 24, 48, 96]
    hutchinson, _ = slope(D.trace_hutchinson, a, counts)
    hutchpp, errors = slope(D.trace_hutchpp, a, counts)
    xtrace, smaller = slope(D.trace_xtrace, a, counts)
    assert abs(hutchinson + 0.5) < 0.15
    assert -1.5 < hutchpp < -0.85
    assert -1.6 < xtrace < -0.85
    assert all(x < h for x, h in zip(smaller, errors, strict=True))


def test_exponential_decay_is_followed_exponentially():
    a = with_eigenvalues(0.7 ** np.arange(100))
    xtrace = [
        rms(over_keys(D.trace_xtrace, a, 30, matvecs=m).value, a.trace())
        for m in (10, 20, 40)
    ]
    # 0.7^(m / 2) is 0.17, 0.028 and 8e-4; the root of m / 2 is averaged.
    assert xtrace[0] > 3 * xtrace[1] > 30 * xtrace[2]
    hutchpp = over_keys(D.trace_hutchpp, a, 30, matvecs=40).value
    assert 3 * xtrace[2] < rms(hutchpp, a.trace())  # which follows 0.7^(m / 3)


@pytest.mark.parametrize("trace", [D.trace_hutchpp, D.trace_xtrace])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)], ids=str
)
def test_low_rank_is_exact(trace, dtype, tolerance):
    # Tolerances: some hundred roundings of the trace, 10.
    a = with_eigenvalues([4.0, 3.0, 2.0, 1.0, *[0.0] * 46], dtype=dtype)
    value, stderr = trace(times(a), a[0], key=KEY, matvecs=18)
    assert abs(value - 10) < tolerance
    assert stderr < tolerance


@pytest.mark.parametrize("trace", [D.trace_hutchpp, D.trace_xtrace])
def test_exact_zeros_are_no_trouble(trace):
    d = torch.zeros(40)
    assert trace(lambda v: d * v, d, key=KEY, matvecs=12) == (0, 0)
    d[:3] = torch.tensor([1.0, 2.0, 4.0])
    value, _ = trace(lambda v: d * v, d, key=KEY, matvecs=60)
    assert abs(value - 7) < 1e-5  # ten roundings of 7 in float32


@pytest.mark.parametrize("trace", [D.trace_hutchpp, D.trace_xtrace])
def test_as_many_products_as_dimensions_are_exact(trace):
    a = symmetric(6)
    for matvecs in (18, 30, 60):
        value, _ = trace(times(a), a[0], key=KEY, matvecs=matvecs)
        # Rounding of the sum of numbers up to the norm 6.
        assert abs(value - a.trace()) < 1e-11


@pytest.mark.parametrize("trace", TRACES)
def test_a_single_number_is_its_own_trace(trace):
    value, stderr = trace(lambda v: 3 * v, torch.tensor(1.0), key=KEY, matvecs=4)
    assert abs(value - 3) < 1e-5  # ten roundings in float32
    assert stderr < 1e-5


def test_an_operator_may_write_to_its_argument():
    # Under vmap torch counts no writes, so that they cannot be refused.
    d = torch.linspace(1, 2, 8, dtype=torch.float64)
    for trace in TRACES:
        value = trace(lambda v: v.mul_(d), d, key=KEY, matvecs=16).value
        assert value == trace(lambda v: v * d, d, key=KEY, matvecs=16).value


def test_the_scale_of_the_operator_does_not_matter():
    a = with_eigenvalues(1 / np.arange(1, 31), dtype=torch.float32)
    for scale in (1e-15, 1e12):
        for trace in TRACES:
            one = trace(times(a), a[0], key=KEY, matvecs=12).value
            other = trace(times(scale * a), a[0], key=KEY, matvecs=12).value
            # Some hundred roundings, of float32.
            assert abs(other / scale - one) < 1e-4


@pytest.mark.parametrize("ell", [2, 3, 7, 12])
def test_xtrace_is_the_mean_over_the_vectors_left_out(ell):
    n = 12
    a = symmetric(n)
    omega = normal(KEY, (ell, n), dtype=torch.float64)
    samples = []
    for i in range(ell):
        others = torch.cat([omega[:i], omega[i + 1 :]])
        q = torch.linalg.qr(a @ others.mT)[0]
        r = omega[i] - q @ (q.mT @ omega[i])
        quotient = (r @ a @ r) / (r @ r)
        samples.append((q.mT @ a @ q).trace() + (n - ell + 1) * quotient)
    samples = torch.stack(samples)
    value, stderr = D.trace_xtrace(times(a), a[0], key=KEY, matvecs=2 * ell)
    # The condition numbers of the sketches are below 1e3: rounding times that.
    torch.testing.assert_close(value, samples.mean(), rtol=1e-10, atol=1e-10)
    error = samples.std() / math.sqrt(ell)
    torch.testing.assert_close(stderr, error, rtol=1e-8, atol=1e-10)
