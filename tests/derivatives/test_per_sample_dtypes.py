"""Per-sample quantities in half, single and mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, jvp
from torch.nn import functional as F

import pureopt as po
from pureopt._tree import tree_leaves, tree_map
from pureopt.derivatives._per_sample import _sums
from tests.derivatives.per_sample_case import B, Case, of_module, reference
from tests.derivatives.per_sample_cases_modules import (
    grouped_convolutions,
    transposed_convolutions,
    unbatched_convolutions,
    volumes,
)
from tests.derivatives.row import randn

D = po.derivatives


def test_half_precision_is_summed_in_single():
    # 300 squared does not fit into half precision, the norm does.
    w = {"w": torch.zeros(2, dtype=torch.half), "b": torch.zeros((), dtype=torch.half)}
    x = torch.tensor([[300.0, 400.0]] * 2, dtype=torch.half)
    norms = D.per_sample_grad_norms(lambda p, x: x @ p["w"] + 0.0 * x[0] * p["b"])
    got = norms(w, x)
    assert got.dtype == torch.half
    assert torch.equal(got, torch.full_like(got, 500.0))


def test_a_bias_in_half_precision_is_that_of_vmap_of_grad():
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    case = of_module(module, randn(B, 4), randn(B, 2))
    args = tree_map(lambda t: t.bfloat16(), (case.params, *case.batch))
    got = D.per_sample_grad_norms(case.loss)(*args)
    want = torch.cat(reference(Case(case.loss, *args)), 1).float().norm(dim=1)
    # A dozen roundings to 8 bits on the way, some of them of what is normalized: 0.05.
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0)


def test_sums_over_a_batch_in_half_precision_do_not_overflow():
    half = torch.half
    params = {"w": torch.zeros(1, 1), "b": torch.zeros(1), "e": torch.zeros(1, 1)}
    params = tree_map(lambda p: p.to(half), params)
    x, ids = torch.ones(2000, 1, dtype=half), torch.zeros(2000, dtype=torch.long)

    def loss(p, x, i):
        return 64 * (F.linear(x, p["w"], p["b"]) + F.embedding(i, p["e"])).sum()

    # Each gradient is (64, 64, 64), and 2000 * 64 is larger than any half.
    _, trace, signal = D.noise_scale(loss)(params, x, ids)
    assert (trace, signal) == (0, 3 * 64**2)


def cast_inside():
    """What is saved and its delta have two dtypes."""

    def loss(p, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = F.linear(x, p["w"], p["b"]).tanh()
            return F.linear(h, p["v"]).float().sin().sum()

    params = {"w": randn(6, 3), "b": randn(6, seed=1), "v": randn(2, 6, seed=2)}
    args = tree_map(lambda t: t.float(), (params, randn(B, 20, 3, seed=3)))
    return Case(loss, *args)


def norm_in_single():
    """Its output is in the dtype of its input."""

    def loss(p, x):
        return F.linear(F.layer_norm(x, (4,), p["s"], p["b"]), p["w"]).sin().sum()

    params = {"s": randn(4).float(), "b": randn(4).float(), "w": randn(2, 4).bfloat16()}
    return Case(loss, params, randn(B, 4, 4).bfloat16())


@pytest.mark.parametrize("make", [cast_inside, norm_in_single])
def test_mixed_precision_has_the_norms_of_vmap_of_grad(make):
    case = make()
    want = torch.cat([leaf.float() for leaf in reference(case)], 1).norm(dim=1)
    got = D.per_sample_grad_norms(case.loss)(case.params, *case.batch)
    # A dozen roundings to 8 bits on the way, as above.
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0)


def convolved(case):
    """In single precision, where the gradients are formed by torch's convolutions."""
    args = tree_map(lambda t: t.float(), (case.params, *case.batch))
    leaves = reference(case)
    g = torch.cat(leaves, 1)
    # Sums of a few hundred products of order one: 1e3 roundings.
    close = {"rtol": 0, "atol": 1e-4 * float(g.square().sum(1).max())}
    gram = D.grad_gram(case.loss)(*args)
    torch.testing.assert_close(gram.double(), g @ g.mT, **close)
    squares = tree_leaves(D.per_sample_squared_norms(case.loss)(*args))
    variances = tree_leaves(D.grad_variance(case.loss)(*args))
    for square, variance, leaf in zip(squares, variances, leaves, strict=True):
        torch.testing.assert_close(square.double(), leaf.square().sum(1), **close)
        torch.testing.assert_close(variance.double().reshape(-1), leaf.var(0), **close)
    return args


@pytest.mark.parametrize(
    "make",
    [unbatched_convolutions, volumes, transposed_convolutions, grouped_convolutions],
)
@pytest.mark.parametrize("budget", [1, _sums.BUDGET])
def test_convolutions_in_single_precision_are_those_in_double(
    make, budget, monkeypatch
):
    monkeypatch.setattr(_sums, "BUDGET", budget)
    convolved(make())


def test_a_penalty_on_norms_of_convolutions_in_single_precision_has_its_gradient():
    case = grouped_convolutions()

    def both(params, batch):
        def penalty(p):
            return D.per_sample_squared_norms(case.loss)(p, *batch)["0.weight"].sum()

        direction = tree_map(torch.cos, params)
        slope = jvp(penalty, (params,), (direction,))[1]
        return [slope, *tree_leaves(grad(penalty)(params))]

    params, *batch = convolved(case)
    want = both(case.params, case.batch)
    # As for the norms; the second derivative sums as many products again.
    atol = 1e-4 * float(max(w.abs().max() for w in want))
    for got, expected in zip(both(params, batch), want, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


@pytest.mark.compile
def test_compiled_convolutions_in_single_precision_are_those_in_double():
    case = grouped_convolutions()
    args = convolved(case)
    norms = D.per_sample_grad_norms(case.loss)
    got = torch.compile(norms, fullgraph=True, backend="aot_eager")(*args)
    want = torch.cat(reference(case), 1).norm(dim=1)
    # As above: sums of a few hundred products.
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=0)
