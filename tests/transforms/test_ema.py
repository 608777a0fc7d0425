"""EMA: where to evaluate next and the answer so far are two points."""

from __future__ import annotations

import pytest
import torch

import pureopt as po
from pureopt._tree import tree_leaves


def test_the_steps_are_those_of_the_inner_transform():
    inner = po.AdamW(lr=0.1)
    ema = po.EMA(inner, decay=0.9)
    w = v = torch.tensor([1.0, -2.0])
    a, b = ema.init(w), inner.init(v)
    for g in (torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5])):
        w, a = ema.step(w, a, g)
        v, b = inner.step(v, b, g)
    assert torch.equal(w, v)
    same = zip(tree_leaves(a.inner), tree_leaves(b), strict=True)
    assert all(torch.equal(x, y) for x, y in same)


def test_a_class_is_told():
    with pytest.raises(po.CompositionError, match="got the class `SGD`"):
        po.EMA(po.SGD)  # pyright: ignore[reportArgumentType]


def test_the_average_is_its_closed_form():
    decay, steps = 0.5, 10
    ema = po.EMA(po.SGD(lr=1.0), decay=decay)
    w = torch.zeros(())
    state = ema.init(w)
    for _ in range(steps):
        w, state = ema.step(w, state, torch.tensor(-1.0))  # w = 1, 2, 3, ...
    want = sum((1 - decay) * decay ** (steps - t) * t for t in range(1, steps + 1))
    # All terms are multiples of 2**-10: exact.
    assert float(ema.eval_params(w, state)) == want
    assert float(w) == steps


def test_a_point_that_rests_is_its_own_average():
    """`d * e + (1 - d) * a` would drift by an ulp here and there."""
    ema = po.EMA(po.SGD(lr=0.1), decay=0.7)
    w = torch.rand(100, generator=torch.Generator().manual_seed(0))
    state = ema.init(w)
    for _ in range(10):
        w, state = ema.step(w, state, torch.zeros(100))
    assert torch.equal(ema.eval_params(w, state), w)


def test_the_average_of_half_precision_is_kept_in_float32():
    ema = po.EMA(po.SGD(lr=1.0), decay=0.999)
    w = torch.zeros(1, dtype=torch.bfloat16)
    state = ema.init(w)
    w, state = ema.step(w, state, torch.tensor([-1.0]).bfloat16())
    for _ in range(99):
        w, state = ema.step(w, state, torch.zeros(1).bfloat16())
    # In bfloat16 the average stands still as soon as an update is below half an ulp;
    # in float32, 100 steps of three operations each.
    want = 1 - 0.999**100
    assert abs(float(state.ema) - want) <= 300 * torch.finfo(torch.float32).eps
    assert ema.eval_params(w, state).dtype == torch.bfloat16


def test_searching_and_restarting_go_through_to_the_inner_transform():
    plain, searching = po.EMA(po.SGD(lr=0.1)), po.EMA(po.LBFGS())
    assert not plain.searches
    assert searching.searches
    w = torch.tensor([1.0, 2.0])
    state = searching.init(w)
    for _ in range(4):
        w, state = searching.step(w, state, 2 * w, value=w.square().sum())
    restarted = searching.restart(state)
    inner = searching.inner.restart(state.inner)
    assert int(restarted.inner.phase) == int(inner.phase)
    assert int(restarted.step) == int(state.step)
    assert torch.equal(restarted.ema, state.ema)
