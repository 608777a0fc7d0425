"""Derivatives through optimizer steps: forward, reverse, nested, and at zero."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from torch.func import jacfwd, jacrev

from pureopt._tree import ravel, tree_map, unravel
from tests.objectives import bowl, bowl_grads, run
from tests.strategies import Case, Leaf, cases
from tests.tables import TRANSFORMS

STEPS = 3
H = 1e-5
SMOOTH = [row for row in TRANSFORMS if row.smooth]
each_smooth_row = pytest.mark.parametrize("row", SMOOTH, ids=lambda row: row.name)
each_row = pytest.mark.parametrize("row", TRANSFORMS, ids=lambda row: row.name)
POINT = Case({"w": Leaf((2,), torch.float64), "b": Leaf((), torch.float64)}, 3, 1.0)


def after_steps(row, like):
    """The point and the answer after some steps, of one vector ``[lr, *params]``."""

    def fn(theta):
        transform = row.make(theta[0])
        params, state = run(transform, unravel(theta[1:], like), STEPS)
        return torch.cat([ravel(params), ravel(transform.eval_params(params, state))])

    return fn


def inputs(like):
    return torch.cat([torch.tensor([0.05], dtype=torch.float64), ravel(like)])


def differences(fn, x):
    columns = [
        (fn(x + H * e) - fn(x - H * e)) / (2 * H) for e in torch.eye(len(x)).to(x)
    ]
    return torch.stack(columns, -1)


@each_smooth_row
@given(case=cases(dtypes=(torch.float64,)))
def test_forward_and_reverse_mode_agree_with_differences(row, case):
    like = case.fill()
    fn, x = after_steps(row, like), inputs(like)
    forward, reverse = jacfwd(fn)(x), jacrev(fn)(x)
    # At least 1, the derivative of the start by itself, from which smaller ones are
    # differences.
    scale = max(1.0, float(reverse.abs().max()))
    # Some tens of operations deep, in float64: 1e4 ulp leave room for Adam, whose
    # quotients cancel where the gradients keep their ratio.
    exact = 1e4 * torch.finfo(torch.float64).eps * scale
    torch.testing.assert_close(forward, reverse, rtol=0, atol=exact)
    # Rounding: eps * |f| / H = 2e-11 * |f|. Truncation: H^2 / 6 times a third derivative,
    # which grows as 1 / scale^2 (the drawn parameters are at least scale / 2).
    size = float(fn(x).abs().max())
    bound = 2e-10 * size + 1e3 * H**2 * scale * max(1.0, (1 / case.scale) ** 2)
    torch.testing.assert_close(reverse, differences(fn, x), rtol=0, atol=bound)


@each_row
@pytest.mark.parametrize("mode", [jacfwd, jacrev], ids=["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_first_derivatives_are_finite_at_zero_gradients(row, mode, dtype):
    """The roots and norms have no derivative there; what is returned must be a number."""
    params = {"w": torch.zeros(2, dtype=dtype), "b": torch.ones((), dtype=dtype)}

    def fn(lr, grads):
        transform = row.make(lr)
        now, state = params, transform.init(params)
        for _ in range(STEPS):
            now, state = transform.step(now, state, grads, value=bowl(params))
        return now, transform.eval_params(now, state)

    lr = torch.tensor(0.1, dtype=dtype)
    zero = tree_map(torch.zeros_like, params)
    derivatives = ravel(mode(fn, argnums=(0, 1))(lr, zero))
    assert derivatives.isfinite().all()
    if row.has_lr:
        assert derivatives.abs().max() > 0


@each_row
@pytest.mark.parametrize(
    "modes",
    list(itertools.product([jacfwd, jacrev], repeat=2)),
    ids=lambda modes: "-".join(mode.__name__ for mode in modes),
)
def test_second_derivatives_are_finite_at_zero_gradients(row, modes):
    params = torch.zeros(2, dtype=torch.float64)

    def fn(grads):
        transform = row.make(0.1)
        return transform.step(
            params, transform.init(params), grads, value=torch.ones_like(grads[0])
        )[0]

    outer, inner = modes
    assert outer(inner(fn))(torch.zeros_like(params)).isfinite().all()


@each_smooth_row
def test_the_four_second_order_nestings_agree(row):
    like = POINT.fill()
    fn, x = after_steps(row, like), inputs(like)
    modes = [jacfwd, jacrev]
    hessians = [a(b(fn))(x) for a, b in itertools.product(modes, repeat=2)]
    scale = max(1.0, float(hessians[0].abs().max()))
    for other in hessians[1:]:
        # As for the first derivatives, one order deeper: 1e5 ulp.
        exact = 1e5 * torch.finfo(torch.float64).eps * scale
        torch.testing.assert_close(other, hessians[0], rtol=0, atol=exact)
    by_differences = differences(jacrev(fn), x)
    # H^2 / 6 = 2e-11 times a fourth derivative of some 1e4 times the scale.
    torch.testing.assert_close(hessians[0], by_differences, rtol=0, atol=1e-6 * scale)


def test_the_objective_of_the_laws_has_the_gradient_it_says():
    params = POINT.fill()
    expected = torch.func.grad(bowl)(params)
    got = bowl_grads(params)
    # A dozen operations in float64 on numbers below 10.
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
