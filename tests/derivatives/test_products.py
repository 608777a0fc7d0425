"""Products: closed forms, mpmath, compositions of torch.func, identities."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import mpmath
import pytest
import torch
from torch.func import jvp
from torch.nn import functional as F

import pureopt as po
from pureopt._tree import ravel, tree_leaves, tree_map, unravel
from tests.derivatives.observers import counted
from tests.derivatives.products_net import SAME, dense, flat_hessian, params, value
from tests.derivatives.recurrent_modules import layer, weights
from tests.derivatives.row import randn

D = po.derivatives


@pytest.mark.parametrize("product", [D.hvp, D.vhp])
def test_hessian_vector_products_are_columns_of_the_hessian(product):
    p = params()
    matrix = dense(lambda v: product(value, p, v), p)
    torch.testing.assert_close(matrix, flat_hessian(value, p), **SAME)


def test_the_third_order_product_of_a_sum_of_exponentials():
    # f = sum_r exp(a_r . x): T[u, v, .] = sum_r exp(a_r . x) (a_r . u) (a_r . v) a_r.
    a, x, u, v = randn(7, 4, seed=1), *randn(3, 4, seed=2)
    got = D.third_order_product(lambda x: (a @ x).exp().sum(), x, u, v)
    expected = ((a @ x).exp() * (a @ u) * (a @ v)) @ a
    torch.testing.assert_close(got, expected, **SAME)


def test_the_third_order_product_is_the_slope_of_the_hessian_along_trees():
    p, u, v = params(), params(20), params(30)
    got = ravel(D.third_order_product(value, p, u, v))
    flat = lambda x: flat_hessian(value, unravel(x, p))  # noqa: E731
    slope = jvp(flat, (ravel(p),), (ravel(u),))[1]
    torch.testing.assert_close(got, slope @ ravel(v), **SAME)


def test_the_third_order_product_is_symmetric_in_its_three_directions():
    p, *w = params(), params(20), params(30), params(40)
    numbers = torch.stack(
        [
            ravel(D.third_order_product(value, p, w[i], w[j])) @ ravel(w[k])
            for i, j, k in [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)]
        ]
    )
    torch.testing.assert_close(numbers, numbers[:1].expand(4), **SAME)


def normalized(x):
    return F.layer_norm(torch.stack([x, 2 * x, x**2]), (3,))[1]


def test_products_through_layer_norm_are_those_of_mpmath():
    def reference(x):
        h = [x, 2 * x, x * x]
        mean = sum(h) / 3
        variance = sum((a - mean) ** 2 for a in h) / 3
        return (h[1] - mean) / mpmath.sqrt(variance + mpmath.mpf("1e-5"))

    with mpmath.workdps(40):
        x = mpmath.mpf(0.7)
        second, third = (float(mpmath.diff(reference, x, n)) for n in (2, 3))
    x, one = torch.tensor([0.7, 1.0], dtype=torch.float64)
    # torch's own third derivative is 66.6, and `jacrev(jacfwd)` wrong at second order.
    # The sums cancel to the variance, 0.1, whose inverse powers multiply the rounding.
    near = {"rtol": 1e-11, "atol": 1e-11}
    for got, expected in [
        (D.hvp(normalized, x, one), second),
        (D.vhp(normalized, x, one), second),
        (D.hessian(normalized)(x), second),
        (D.hessian_diag(normalized)(x), second),
        (D.third_order_product(normalized, x, one, one), third),
    ]:
        torch.testing.assert_close(got, torch.full_like(got, expected), **near)
    assert abs(third + 1.68768) < 1e-5


def test_a_product_through_attention_is_the_product_of_its_formula():
    x, v = randn(1, 2, 5, 3, seed=1), randn(1, 2, 5, 3, seed=2)

    def kernel(x):
        return F.scaled_dot_product_attention(x, x.sin(), x.cos()).pow(2).sum()

    def formula(x):
        weights = (x @ x.sin().mT / 3**0.5).softmax(-1)
        return (weights @ x.cos()).pow(2).sum()

    expected = D.hvp(formula, x, v)
    torch.testing.assert_close(D.hvp(kernel, x, v), expected, **SAME)
    torch.testing.assert_close(D.vhp(kernel, x, v), expected, **SAME)


def test_vhp_goes_through_the_kernel_of_an_lstm():
    lstm = layer("LSTM")
    x, v = randn(5, 3), randn(5, 3, seed=1)

    def kernel(x):
        return lstm(x)[0].pow(2).sum()

    def unrolled(x):
        w_in, w_state, b_in, b_state = weights(lstm).values()
        h = c = x.new_zeros(4)
        total = x.new_zeros(())
        for row in x:
            gates = F.linear(row, w_in, b_in) + F.linear(h, w_state, b_state)
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            total = total + h.pow(2).sum()
        return total

    torch.testing.assert_close(D.vhp(kernel, x, v), D.hvp(unrolled, x, v), **SAME)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    "tree",
    [
        randn(3),
        randn(1)[0],
        (randn(2), [randn(1, seed=1)]),
        {"z": randn(2), "a": {"b": randn(1, 2, seed=1)}},
        Pair(randn(2), randn(1, seed=1)[0]),
        OrderedDict(b=randn(2), a=randn(0)),
    ],
    ids=["vector", "number", "tuple", "dict", "namedtuple", "ordered"],
)
def test_results_have_the_structure_of_the_point(tree):
    def f(x):
        return sum((leaf**3).sum() for leaf in tree_leaves(x))

    six = tree_map(lambda leaf: 6 * leaf, tree)
    twos = tree_map(torch.ones_like, tree)
    # One multiplication more or less than the closed form: a few roundings.
    near = {"rtol": 1e-14, "atol": 0}
    for got in (
        D.hvp(f, tree, twos),
        D.vhp(f, tree, twos),
        D.hessian_diag(f)(tree),
        D.hessian_diag_estimate(f, tree, key=po.random.key(0), samples=1).value,
    ):
        assert type(got) is type(tree)
        torch.testing.assert_close(got, six, **near)
    third = D.third_order_product(f, tree, twos, twos)
    torch.testing.assert_close(third, tree_map(lambda leaf: 6 + 0 * leaf, tree), **near)


def test_a_direction_may_have_its_keys_in_another_order():
    x = {"a": randn(2), "b": randn(2, seed=1)}
    v = {"b": randn(2, seed=2), "a": randn(2, seed=3)}
    got = D.hvp(lambda x: (x["a"] ** 2 * x["b"]).sum(), x, v)
    expected = {
        "a": 2 * x["b"] * v["a"] + 2 * x["a"] * v["b"],
        "b": 2 * x["a"] * v["a"],
    }
    assert list(got) == ["a", "b"]
    torch.testing.assert_close(got, expected, **SAME)


POINTWISE = {
    "hvp": lambda f, x, v: D.hvp(lambda x: f(x).sum(), x, v),
    "vhp": lambda f, x, v: D.vhp(lambda x: f(x).sum(), x, v),
    "third": lambda f, x, v: D.third_order_product(lambda x: f(x).sum(), x, v, v),
    "jacobian-rows": lambda f, x, _: D.jacobian(lambda x: f(x)[:2])(x),
    "jacobian-columns": lambda f, x, _: D.jacobian(lambda x: f(x).repeat(2))(x),
    "hessian": lambda f, x, _: D.hessian(lambda x: f(x).sum())(x),
    "hessians": lambda f, x, _: D.hessian(f)(x),
    "diagonal": lambda f, x, _: D.hessian_diag(lambda x: f(x).sum())(x),
    "ggnvp": lambda f, x, v: D.ggnvp(f, lambda z: z.exp().sum(), x, v),
    "fisher": lambda f, x, v: D.fisher_vp(f, x, v, likelihood=D.Poisson()),
    "empirical-fisher": lambda f, x, v: D.empirical_fisher_vp(
        lambda x, s: (s * f(x)).sum(), x, (randn(4, 3, seed=3),), v
    ),
}
pointwise = pytest.mark.parametrize("operator", POINTWISE.values(), ids=POINTWISE)


@pointwise
def test_entries_of_the_point_may_share_memory(operator):
    x, v = randn(1).expand(3), randn(3, seed=1)
    got, expected = (operator(torch.sin, a, v) for a in (x, x.clone()))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pointwise
def test_what_is_detached_is_a_constant(operator):
    x, v = randn(3), randn(3, seed=1)
    constant = x.exp()
    got = operator(lambda y: y.exp().detach() * y.sin(), x, v)
    expected = operator(lambda y: constant * y.sin(), x, v)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ggnvp", "fisher"])
def test_the_model_of_a_sandwich_is_evaluated_once(name):
    counting, calls = counted(torch.sin)
    POINTWISE[name](counting, randn(3), randn(3, seed=1))
    assert len(calls) == 1
