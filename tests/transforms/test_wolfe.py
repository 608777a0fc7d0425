"""The line search alone, on functions of one variable."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, vmap

from benchmarks.more_thuente import STARTS, TABLES
from pureopt.transforms._wolfe import Point, Search, advance, start

EPS = torch.finfo(torch.float64).eps


def search(phi, t, c1=1e-4, c2=0.9, noise=0.0, max_trials=50):
    """Run a search; the accepted point, the evaluations, and whether it failed."""
    zero = torch.zeros((), dtype=torch.float64)
    base = Point(zero, *phi(zero))
    state = start(base.f, base.slope, torch.as_tensor(t, dtype=torch.float64))
    for evaluations in range(1, max_trials + 1):
        point = Point(state.t, *phi(state.t))
        state, accepted, failed = advance(
            state,
            base,
            point,
            c1=c1,
            c2=c2,
            noise=noise,
            resolution=4 * EPS,
            max_trials=max_trials,
        )
        if accepted or failed:
            return point, evaluations, bool(failed), base
    raise AssertionError("neither accepted nor failed")


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"table{t.number}")
@pytest.mark.parametrize("column", range(4), ids=lambda i: f"from{STARTS[i]:g}")
def test_reproduces_the_paper_cell_by_cell(table, column):
    point, evaluations, failed, base = search(
        table.phi, STARTS[column], c1=table.mu, c2=table.eta
    )
    assert not failed
    assert point.f <= base.f + table.mu * point.t * base.slope
    assert point.slope.abs() <= table.eta * base.slope.abs()
    assert evaluations == table.evaluations[column]
    # The paper and its reproductions print five significant digits at most.
    assert float(point.t) == pytest.approx(table.steps[column], rel=5e-3)


def next_step(base: Point, trial: Point) -> Tensor:
    """Where a fresh search goes after its first trial."""
    state, _, _ = advance(
        start(base.f, base.slope, trial.t),
        base,
        trial,
        c1=1e-4,
        c2=0.9,
        noise=0.0,
        resolution=4 * EPS,
        max_trials=20,
    )
    return state.t


def test_lanes_search_side_by_side():
    phi = TABLES[0].phi
    starts = torch.tensor(STARTS, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    base = Point(zero, *phi(zero))
    states = vmap(start)(base.f, base.slope, starts)
    accepted_at = torch.zeros(4, dtype=torch.int64)
    steps = torch.zeros(4, dtype=torch.float64)

    def one(state: Search, base: Point, f: Tensor, slope: Tensor):
        return advance(
            state,
            base,
            Point(state.t, f, slope),
            c1=0.001,
            c2=0.1,
            noise=0.0,
            resolution=4 * EPS,
            max_trials=50,
        )

    for k in range(1, 8):
        trial = states.t
        states, accepted, _ = vmap(one)(states, base, *phi(trial))
        new = accepted & (accepted_at == 0)
        steps = torch.where(new, trial, steps)
        accepted_at = torch.where(new, k, accepted_at)
    assert tuple(accepted_at.tolist()) == TABLES[0].evaluations
    torch.testing.assert_close(
        steps.tolist(), list(TABLES[0].steps), rtol=5e-3, atol=0.0
    )


def test_a_non_finite_trial_moves_in():
    """`t - 1e-3 log(t)`-like barriers: torch's zoom expands there (pytorch#5953)."""

    def barrier(t):
        return -t - 1e-3 * torch.log(1 - t), -1 + 1e-3 / (1 - t)

    point, evaluations, failed, base = search(barrier, 1e6)
    assert not failed
    assert point.f <= base.f + 1e-4 * point.t * base.slope
    # Six decades to come back, then a few trials below the pole.
    assert evaluations <= 15


def test_values_below_their_noise_do_not_decide():
    """Values are rounded to a grid far coarser than their change: slopes must decide."""
    grid = 1e-3

    def coarse(t):
        value = 1e-5 * (t - 0.3) ** 2
        return torch.round(value / grid) * grid, 2e-5 * (t - 0.3)

    point, evaluations, failed, base = search(coarse, 1.0, noise=grid)
    assert not failed
    assert evaluations <= 3
    assert point.slope.abs() <= 0.9 * base.slope.abs()


def test_fails_where_the_slope_is_not_that_of_the_value():
    point, _, failed, _ = search(lambda t: (1 + t, -torch.ones_like(t)), 1.0)
    assert failed
    assert math.isfinite(point.t)


def test_derivatives_are_finite_in_all_branches():
    """Reverse and forward mode agree: no branch leaks a NaN through `torch.where`."""

    def next_trial(numbers: Tensor) -> Tensor:
        t, f0, slope0, f, slope = numbers
        base = Point(torch.zeros_like(t), f0, slope0)
        return next_step(base, Point(t, f, slope))

    cases = [
        [1.0, 0.0, -1.0, 2.0, 3.0],  # case 1: higher
        [1.0, 0.0, -1.0, -0.1, 2.0],  # case 2: turned
        [1.0, 0.0, -1.0, -0.99, -0.95],  # case 3: flatter
        [1.0, 0.0, -1.0, -2.0, -3.0],  # case 4: steeper
        [1.0, 0.0, -1.0, 0.0, -1.0],  # equal
        [1.0, 0.0, -1.0, 0.0, 0.0],  # flat
        [1.0, 0.0, -1.0, math.inf, math.nan],  # not finite
        [1.0, 0.0, -1.0, math.nan, 0.0],
    ]
    for case in cases:
        numbers = torch.tensor(case, dtype=torch.float64)
        reverse, forward = grad(next_trial)(numbers), jacfwd(next_trial)(numbers)
        assert torch.isfinite(reverse).all(), case
        torch.testing.assert_close(reverse, forward, rtol=1e-12, atol=1e-12)


def test_case_1_derivative_against_differences():
    """The interpolation is smooth inside a case: central differences, error O(h^2)."""

    def next_trial(f: Tensor) -> Tensor:
        one = torch.ones((), dtype=torch.float64)
        return next_step(Point(0 * one, 0 * one, -one), Point(one, f, 3 * one))

    f, h = torch.tensor(2.0, dtype=torch.float64), 1e-5
    difference = (next_trial(f + h) - next_trial(f - h)) / (2 * h)
    torch.testing.assert_close(grad(next_trial)(f), difference, rtol=1e-8, atol=0.0)
