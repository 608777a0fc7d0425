"""The rules of Taylor mode against mpmath and against nested derivatives."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from mpmath import mp
from torch.func import grad, hessian, jvp, vmap

from pureopt.derivatives import Jet, exact, jet, laplacian
from pureopt.derivatives._jets._transform import propagate
from pureopt.derivatives._laplacian import sum_along
from tests.derivatives.jet_case import Multivariate
from tests.derivatives.jet_multivariate import MULTIVARIATE
from tests.derivatives.jet_univariate import UNIVARIATE
from tests.derivatives.row import randn

EPS = torch.finfo(torch.float64).eps

univariate = pytest.mark.parametrize("row", UNIVARIATE, ids=lambda row: row.name)
multivariate = pytest.mark.parametrize("row", MULTIVARIATE, ids=lambda row: row.name)


def close(a, b, scale):
    """Equal up to ``scale`` roundings of the largest number."""
    size = max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a, b, rtol=0, atol=scale * EPS * size)


def curve(row, orders=3, dtype=torch.float64):
    x, *series = (randn(*row.shape, seed=s, dtype=dtype) for s in range(1, orders + 2))
    return x, tuple(series)


def bent(row):
    """The function of a curved path, so that no coefficient of its argument is zero."""
    return lambda x: row.f(x + 0.3 * torch.square(x))


@univariate
def test_coefficients_to_order_six_are_those_of_mpmath(row):
    x = torch.tensor(row.points, dtype=torch.float64)
    zero = torch.zeros_like(x)
    value, series = jet(row.f, x, (torch.ones_like(x), *[zero] * 5))
    with mp.workdps(40):
        truth = [[float(c) for c in mpmath.taylor(row.twin, p, 6)] for p in row.points]
    got, truth = torch.stack([value, *series], -1), torch.tensor(truth, dtype=x.dtype)
    # Each of six orders adds a few roundings of the coefficients below it, where the
    # quotient of sinc loses a factor 1 / |x| an order.
    slack = 3**6 if row.name == "sinc" else 32
    largest = truth.abs().amax(-1, keepdim=True).clamp_min(1e-2)
    assert ((got - truth).abs() <= slack * EPS * largest).all()


def paths(row, x, series):
    """The derivatives along the curve over the factorials, by nested forward mode."""
    f = exact(row.twin or row.f)

    def along(t):
        return f(x + sum(c * t ** (k + 1) for k, c in enumerate(series)))

    def slope(g):
        return lambda t: jvp(g, (t,), (torch.ones_like(t),))[1]

    g = along
    for k in range(1, len(series) + 1):
        g = slope(g)
        yield g(torch.zeros((), dtype=x.dtype)) / math.factorial(k)


@multivariate
def test_series_are_nested_derivatives_and_the_value_is_torchs(row):
    x, series = curve(row)
    value, coefficients = jet(row.f, x, series)
    # Sums of at most some thirty products, by other formulas than torch's kernels.
    close(value, row.f(x), 32)
    for k, (got, truth) in enumerate(
        zip(coefficients, paths(row, x, series), strict=True), 1
    ):
        # Formulas for order k have terms in 4 ** k, with inverses of numbers near 1/4.
        close(got, truth, 32 * 8**k)


@multivariate
def test_a_sum_over_directions_is_the_sum_of_the_series_along_each(row):
    x, _ = curve(row)
    zero, f = torch.zeros_like(x), bent(row)
    directions = torch.stack([randn(x.numel(), seed=s) for s in (7, 8, 9)])
    together = sum_along("f", f, x, directions, 4, None)
    alone = [jet(f, x, (v.reshape(x.shape), zero, zero, zero)) for v in directions]
    # The same formulas in another order; std and det divide by small numbers.
    close(together, 24 * sum(series[3] for _, series in alone), 1e5)


@multivariate
def test_the_laplacian_is_the_trace_of_the_hessian(row):
    x, _ = curve(row)
    f = bent(row)
    twin = bent(Multivariate(row.name, row.twin or row.f))
    out = laplacian(f)(x)
    n = x.numel()
    table = hessian(exact(twin))(x).reshape(*out.shape, n, n)
    # A sum of n second derivatives, each of some thirty products.
    close(out, table.diagonal(dim1=-2, dim2=-1).sum(-1), 1024 * n)


@multivariate
def test_single_precision_is_kept_at_every_order(row):
    x, series = curve(row, orders=2, dtype=torch.float32)
    value, coefficients = jet(row.f, x, series)
    assert {c.dtype for c in (value, *coefficients)} == {torch.float32}


@multivariate
def test_a_series_without_terms_is_a_value(row):
    x, _ = curve(row)
    y = propagate("f", row.f, x, [])
    assert isinstance(y, Jet)
    assert y.order == 0
    close(y.value, row.f(x), 32)


@multivariate
def test_a_lane_of_vmap_is_a_call(row):
    x, (v,) = curve(row, orders=1)
    xs, vs = torch.stack([x, x + 0.1]), torch.stack([v, -v])
    value, (first,) = vmap(lambda x, v: jet(row.f, x, (v,)))(xs, vs)
    for k in range(2):
        one, (slope,) = jet(row.f, xs[k], (vs[k],))
        # The same sums, in another order.
        close(value[k], one, 64)
        close(first[k], slope, 1024)


@multivariate
def test_the_gradient_of_a_coefficient_is_a_mixed_derivative(row):
    x, (v,) = curve(row, orders=1)
    f = exact(row.twin or row.f)
    ours = grad(lambda x: jet(row.f, x, (v,))[1][0].sum())(x)
    theirs = grad(lambda x: jvp(f, (x,), (v,))[1].sum())(x)
    # As for coefficients of order two.
    close(ours, theirs, 2048)
