"""Clipping: exact inside and on the ball, in every dtype, and finite at zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.func import jacfwd, jacrev

import pureopt as po
from pureopt._tree import tree_flatten, tree_leaves
from tests.strategies import cases


def clipped(grads, max_norm):
    clip = po.ClipByGlobalNorm(max_norm)
    return clip.update(grads, clip.init(grads), grads)[0]


def norm(tree):
    return sum(float(g.double().square().sum()) for g in tree_leaves(tree)) ** 0.5


@given(case=cases())
def test_gradients_inside_the_ball_pass_bit_by_bit(case):
    grads = case.fill()
    out = clipped(grads, 1.01 * norm(grads))
    assert tree_flatten(out)[1] == tree_flatten(grads)[1]
    for a, b in zip(tree_leaves(out), tree_leaves(grads), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@given(case=cases())
def test_gradients_outside_end_on_the_sphere_in_the_same_direction(case):
    grads = case.fill()
    radius = norm(grads) / 3
    out = clipped(grads, radius)
    for a, b in zip(tree_leaves(out), tree_leaves(grads), strict=True):
        # The norm in float32 (a sum of up to 40 squares), a quotient and a product, and
        # one rounding to the dtype of the leaf; float16 is subnormal below 6e-5, where
        # its spacing is 6e-8.
        eps = 40 * torch.finfo(torch.float32).eps + torch.finfo(a.dtype).eps
        torch.testing.assert_close(a.double(), b.double() / 3, rtol=eps, atol=1e-7)


def test_the_norm_is_over_all_leaves():
    out = clipped({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}, 1.0)
    # Exact up to the rounding of 1/5.
    torch.testing.assert_close(out["a"], torch.tensor([0.6]))
    torch.testing.assert_close(out["b"], torch.tensor([[0.8]]))


def test_one_nan_spoils_all():
    out = clipped({"a": torch.tensor([torch.nan]), "b": torch.tensor([1.0])}, 1e3)
    assert out["a"].isnan().all()
    assert out["b"].isnan().all()


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
@pytest.mark.parametrize("mode", [jacfwd, jacrev], ids=["forward", "reverse"])
def test_zero_gradients_have_finite_derivatives(mode, max_norm):
    zero = torch.zeros(3)
    assert torch.equal(clipped(zero, max_norm), zero)
    slopes = mode(lambda g: clipped(g, max_norm))(zero)
    assert slopes.isfinite().all()
    if max_norm:  # inside the ball the map is the identity
        assert torch.equal(slopes, torch.eye(3))


@pytest.mark.parametrize("mode", [jacfwd, jacrev], ids=["forward", "reverse"])
def test_the_derivative_outside_projects_on_the_tangent(mode):
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    unit = g / 5
    want = (torch.eye(2).double() - torch.outer(unit, unit)) * 2 / 5
    # Some ten operations on numbers of order 1.
    torch.testing.assert_close(
        mode(lambda x: clipped(x, 2.0))(g), want, rtol=0, atol=1e-15
    )


def test_a_tensor_radius_is_its_number():
    g = torch.tensor([3.0, 4.0])
    assert torch.equal(clipped(g, torch.tensor(2.5)), clipped(g, 2.5))
    assert clipped(g, torch.tensor(2.5).double()).dtype == torch.float32
