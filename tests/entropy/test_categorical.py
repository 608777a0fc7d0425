"""Predictive entropy: against arbitrary precision, and at the edges."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, jacrev, vmap

from pureopt import PureoptError
from pureopt.derivatives import nth_derivative
from pureopt.entropy import categorical

INF = math.inf
NESTINGS = list(itertools.product([jacfwd, jacrev], repeat=2))
EDGES = {
    "certain by +inf": ([INF, 0.0, -3.0], 0.0),
    "certain by 1e4": ([1e4, 0.0, -1e4], 0.0),
    "certain beside -inf": ([-INF, 5.0, -INF], 0.0),
    "shared by two +inf": ([INF, 2.0, INF], math.log(2)),
    "shared beside -inf": ([-INF, INF, INF], math.log(2)),
    "excluded class": ([-INF, 1.0, 1.0], math.log(2)),
    "far apart": ([3e38, -3e38, 3e38], math.log(2)),
    "all equal": ([7.0, 7.0, 7.0], math.log(3)),
    "all at -1e4": ([-1e4, -1e4, -1e4], math.log(3)),
}
each_edge = pytest.mark.parametrize("name", EDGES)


def exact(logits):
    """In 60 digits, each logit being the number that it holds."""
    with mpmath.workdps(60):
        x = [mpmath.mpf(float(v)) for v in logits]
        z = [v - max(x) for v in x]
        total = mpmath.fsum(mpmath.e**v for v in z)
        p = [mpmath.e**v / total for v in z]
        return float(-mpmath.fsum(q * mpmath.log(q) for q in p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(
    logits=st.lists(st.integers(-1000, 1000), min_size=1, max_size=8),
    scale=st.sampled_from([1e-3, 1e-2, 0.1]),
)
def test_it_is_right_to_relative_precision(dtype, logits, scale):
    x = scale * torch.tensor(logits, dtype=dtype)
    want = exact(x)
    # The differences z (up to 200) are rounded to half an ulp, which exp turns into a
    # relative error of 100 eps; all else is sums of positive terms. Entropies below the
    # smallest normal number lose digits.
    tiny = torch.finfo(dtype).tiny
    assert (
        abs(float(categorical(x)) - want) <= 220 * torch.finfo(dtype).eps * want + tiny
    )


def test_it_is_scipys_entropy_of_the_probabilities():
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    for dim in (0, 1, -1):
        p = np.exp(x.numpy())
        want = torch.from_numpy(scipy.stats.entropy(p, axis=dim))
        # Sums of six terms of order 1.
        torch.testing.assert_close(categorical(x, dim=dim), want, rtol=1e-14, atol=0)


def test_known_values():
    x = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    # 1.75 bits; four terms of order 1.
    assert abs(float(categorical(x)) - 1.75 * math.log(2)) <= 1e-15


@each_edge
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_value_at_the_edges(name, dtype):
    logits, want = EDGES[name]
    got = float(categorical(torch.tensor(logits, dtype=dtype)))
    assert abs(got - want) <= 2 * torch.finfo(dtype).eps


@each_edge
def test_the_gradient_at_the_edges_is_finite_and_zero(name):
    # All edges are at extremes of the entropy, over the classes that take part.
    x = torch.tensor(EDGES[name][0])
    for mode in (grad, jacfwd, jacrev):
        # One rounding of log(k) - log(k).
        torch.testing.assert_close(
            mode(categorical)(x), torch.zeros(3), rtol=0, atol=2e-7
        )


@each_edge
@pytest.mark.parametrize(
    "nesting", NESTINGS, ids=lambda n: f"{n[0].__name__}-{n[1].__name__}"
)
def test_second_derivatives_at_the_edges_are_the_limits(name, nesting):
    logits = EDGES[name][0]
    x = torch.tensor(logits, dtype=torch.float64)
    outer, inner = nesting
    got = outer(inner(categorical))(x)
    # Beside +inf nothing finite matters; else the formula, with p = 0 where excluded.
    if INF in logits:
        want = torch.zeros(3, 3, dtype=torch.float64)
    else:
        want = hessian(torch.softmax(x, -1))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-15)  # numbers of order 1


def hessian(p):
    """By hand: with a = log p + H, the gradient is -p a."""
    logs = torch.where(p > 0, p.log(), 0.0)
    a = logs - (p * logs).sum()
    first = -p * a
    jac = torch.diag(p) - torch.outer(p, p)
    return -jac * a[:, None] - torch.diag(p) + torch.outer(p, p - first)


@pytest.mark.parametrize(
    "nesting", NESTINGS, ids=lambda n: f"{n[0].__name__}-{n[1].__name__}"
)
@given(seed=st.integers(0, 1000))
def test_first_and_second_derivatives_are_the_formulas(nesting, seed):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(4, generator=generator, dtype=torch.float64)
    p = torch.softmax(x, -1)
    first = -p * (p.log() + categorical(x))
    outer, inner = nesting
    # Some tens of operations on numbers up to 10.
    close = {"rtol": 0, "atol": 1e-14}
    torch.testing.assert_close(inner(categorical)(x), first, **close)
    torch.testing.assert_close(outer(inner(categorical))(x), hessian(p), **close)


@pytest.mark.parametrize(
    "logits",
    [[-INF, -INF], [-INF], [math.nan], [0.0, math.nan], [INF, math.nan]],
    ids=str,
)
def test_what_has_no_answer_is_nan_and_stays_in_its_lane(logits):
    good = [0.0] * len(logits)
    x = torch.tensor([good, logits])
    value = categorical(x)
    slopes = grad(lambda x: categorical(x).sum())(x)
    assert value[1].isnan()
    assert float(value[0]) == pytest.approx(math.log(len(good)))
    assert slopes[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = categorical(x)
    assert got.dtype == dtype
    assert torch.equal(got, categorical(x.float()).to(dtype))


@pytest.mark.parametrize(
    "logits", [torch.ones(3, dtype=torch.int64), [1.0, 2.0]], ids=str
)
def test_what_is_no_logit_is_refused(logits):
    message = r"`categorical\(logits=...\)` must be a floating-point tensor"
    with pytest.raises(PureoptError, match=message):
        categorical(logits)


@pytest.mark.parametrize("shape", [(), (3, 0)], ids=str)
def test_no_class_is_refused(shape):
    with pytest.raises(PureoptError, match=r"must have classes along dim -1"):
        categorical(torch.zeros(shape))


@pytest.mark.parametrize("dim", [2, -3])
def test_a_dimension_that_is_not_there_is_refused(dim):
    with pytest.raises(PureoptError, match=f"must have classes along dim {dim}"):
        categorical(torch.zeros(2, 3), dim=dim)


def test_no_sample_is_no_error():
    assert categorical(torch.zeros(0, 3)).shape == (0,)


def test_lanes_may_be_mapped():
    x = torch.tensor([logits for logits, _ in EDGES.values()])
    assert torch.equal(vmap(categorical)(x), categorical(x))


def test_taylor_mode_goes_through():
    draw = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 3, 5, dtype=torch.float64, generator=draw)
    slope = lambda t: categorical(x + t * v).sum()  # noqa: E731
    for order in range(1, 5):
        t = torch.zeros((), dtype=torch.float64)
        got = nth_derivative(lambda t: categorical(x + t * v).sum(), order)(t)
        slope = grad(slope)
        # Some ten terms for each of 15 numbers, of size one.
        torch.testing.assert_close(got, slope(t), rtol=1e-12, atol=1e-12)
