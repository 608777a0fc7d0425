"""``tap`` and ``grad_at`` against derivatives by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jacfwd, vmap

import pureopt as po
from tests.derivatives.row import randn

tap, grad_at = po.derivatives.tap, po.derivatives.grad_at


def cubes(x):
    """The cube of a square: at the square h the slope is 3 h^2."""
    return tap(x * x, "square").pow(3).sum()


def test_the_gradient_at_a_value_is_that_of_what_follows():
    x = randn(4)
    got = grad_at(cubes, "square")(x)
    assert list(got) == ["square"]
    # A few roundings of one multiplication each.
    torch.testing.assert_close(got["square"], 3 * x**4, rtol=1e-14, atol=0)


def test_names_come_in_the_order_that_was_asked_for_and_trees_as_they_are():
    def f(x, *, scale):
        pair = tap({"a": x, "b": (2 * x,)}, "pair")
        return scale * (tap(pair["a"] * pair["b"][0], "product")).sum()

    x = randn(3)
    got = grad_at(lambda x: f(x, scale=5.0), ["product", "pair"])(x)
    assert list(got) == ["product", "pair"]
    # The product of a and b has the slopes b = 2 x and a = x.
    torch.testing.assert_close(
        got,
        {
            "product": torch.full_like(x, 5.0),
            "pair": {"a": 10 * x, "b": (5 * x,)},
        },
        rtol=1e-14,
        atol=0,
    )


def test_a_module_is_tapped_as_retain_grad_does():
    first, second = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
    x = randn(2, 3)
    hidden = first(x)
    hidden.retain_grad()
    second(hidden.tanh()).sum().backward()
    got = grad_at(lambda x: second(tap(first(x), "h").tanh()).sum(), "h")(x)
    # The same operations in the same order.
    torch.testing.assert_close(got["h"], hidden.grad, rtol=1e-15, atol=0)


def test_outside_it_is_the_same_object():
    x, tree = randn(2), {"a": randn(2)}
    assert tap(x, "x") is x
    assert tap(tree, "tree") is tree


def test_a_value_that_is_not_used_has_the_gradient_zero():
    def f(x):
        tap(2 * x, "unused")
        return x.sum()

    assert torch.equal(
        grad_at(f, "unused")(randn(2))["unused"], torch.zeros(2).double()
    )


def test_under_vmap_the_gradients_are_those_of_each_sample():
    x = randn(5, 3)
    got = vmap(grad_at(cubes, "square"))(x)["square"]
    torch.testing.assert_close(got, 3 * x**4, rtol=1e-14, atol=0)


def test_its_derivatives_are_those_of_the_slope():
    x = randn(4)

    def total(x):
        return grad_at(cubes, "square")(x)["square"].sum()

    # The sum of 3 x^4 has the gradient 12 x^3 and the Hessian diag(36 x^2).
    torch.testing.assert_close(grad(total)(x), 12 * x**3, rtol=1e-13, atol=0)
    torch.testing.assert_close(jacfwd(total)(x), 12 * x**3, rtol=1e-13, atol=0)
    torch.testing.assert_close(hessian(total)(x), torch.diag(36 * x**2))


def test_the_gradient_at_a_gradient():
    def outer(x):
        return tap(grad_at(cubes, "square")(x)["square"], "slope").square().sum()

    x = randn(4)
    got = grad_at(outer, "slope")(x)["slope"]
    # Twice the slope, which is 3 x^4.
    torch.testing.assert_close(got, 6 * x**4, rtol=1e-14, atol=0)


def test_a_name_that_the_inner_call_does_not_ask_for_belongs_to_the_outer_one():
    def inner(x):
        return tap(tap(x, "input") * x.detach(), "product").pow(3).sum()

    def outer(x):
        return grad_at(inner, "product")(x)["product"].sum()

    x = randn(4)
    got = grad_at(outer, "input")(x)["input"]
    # The slope 3 (h x)^2 has at h = x the derivative 6 h x^2.
    torch.testing.assert_close(got, 6 * x**3, rtol=1e-14, atol=0)


def test_one_name_may_belong_to_two_calls():
    def outer(x):
        return tap(grad_at(cubes, "square")(x)["square"], "square").square().sum()

    x = randn(4)
    got = grad_at(outer, "square")(x)["square"]
    torch.testing.assert_close(got, 6 * x**4, rtol=1e-14, atol=0)


def test_inside_a_vmap_of_the_function_lanes_are_added():
    def f(x):
        return vmap(cubes)(x).sum()

    x = randn(5, 3)
    got = grad_at(f, "square")(x)["square"]
    torch.testing.assert_close(got, (3 * x**4).sum(0), rtol=1e-14, atol=0)


def test_half_precision_stays_half_precision():
    got = grad_at(cubes, "square")(torch.ones(2, dtype=torch.bfloat16))["square"]
    assert got.dtype == torch.bfloat16


def twice(x):
    return (tap(x, "a") * tap(x, "a")).sum()


def of_integers(x):
    return x.sum() + tap(torch.arange(3), "n").sum()


def of_a_list(x):
    return tap({"x": x, "n": 3.0}, "pair")["x"].sum()


MISTAKES = {
    "unknown": (
        cubes,
        "cube",
        (
            "`grad_at(names=...)` must be names that pass through `tap`, got 'cube'. "
            "There are 'square'."
        ),
    ),
    "no-tap": (
        lambda x: x.sum(),
        "a",
        (
            "`grad_at(names=...)` must be names that pass through `tap`, got 'a'. "
            "The function calls no `tap`."
        ),
    ),
    "twice": (
        twice,
        "a",
        (
            "`tap(name=...)` must be unique in a call, got 'a' twice. Number the names, as "
            "in f'layer{i}'."
        ),
    ),
    "integers": (
        of_integers,
        "n",
        (
            "`tap(h, 'n')` must have floating tensors for `h`, got a tensor of shape (3,) "
            "and dtype torch.int64."
        ),
    ),
    "no-tensor": (
        of_a_list,
        "pair",
        "`tap(h, 'pair')` must have floating tensors for `h`, got `float` at 'n'.",
    ),
    "no-scalar": (
        lambda x: tap(x, "a"),
        "a",
        (
            "`grad_at(f=...)` must return a 0-d floating tensor, got a tensor of shape (2,) "
            "and dtype torch.float64. Reduce it, for example with `.sum()` or `.mean()`."
        ),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_wrong_is_said(name):
    f, names, words = MISTAKES[name]
    with pytest.raises(po.DerivativeError) as raised:
        grad_at(f, names)(randn(2))
    assert str(raised.value) == words


def test_after_an_error_taps_are_the_identity_again():
    with pytest.raises(po.DerivativeError):
        grad_at(twice, "a")(randn(2))
    x = randn(2)
    assert tap(x, "a") is x


@pytest.mark.compile
def test_compiled_per_sample_and_of_second_order_it_is_eager():
    def f(x):
        slope = grad_at(cubes, "square")
        return vmap(slope)(x)["square"], grad(lambda x: slope(x)["square"].sum())(x)

    x = randn(3, 2)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    # The same operations, perhaps in another order.
    torch.testing.assert_close(compiled(x), f(x), rtol=1e-13, atol=0)


def test_a_function_that_stores_in_its_tree_does_not_reach_the_callers():
    params = {"w": torch.ones(2)}

    def f(p):
        p["w"] = tap(2 * p["w"], "twice")
        return (p["w"] ** 2).sum()

    assert grad_at(f, "twice")(params)["twice"].tolist() == [4, 4]
    assert params["w"].tolist() == [1, 1]
