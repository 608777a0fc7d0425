"""What a function may not do, and in which words it is refused.

Torch's own messages, under torch's own transforms: the tests of words fail when a release
words them otherwise.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, jacfwd, jvp, vmap

import pureopt as po
from pureopt._errors import DerivativeError, PureoptError
from pureopt.derivatives import _checks
from tests.derivatives.bad_functions import (
    Mapped,
    adds,
    backpropagates,
    bare,
    branches,
    calls_autograd,
    calls_backward,
    checkpoints,
    copies,
    ctc,
    draws,
    entropy,
    fills,
    floats,
    grid,
    hooks,
    indices,
    items,
    keeps_gradient,
    lists,
    loads,
    looks_up,
    masks,
    normalizes,
    normalizes_module,
    number,
    numpies,
    out_argument,
    overwrites,
    recurs,
    reverse_only,
    stores,
    writes_entry,
    writes_view,
)
from tests.derivatives.every_operator import OPERATORS, SCALAR, X, over, said
from tests.derivatives.row import randn

D = po.derivatives
# Products and sums of three numbers below ten, in another order: some ten roundings.
NEAR = {"rtol": 0, "atol": 1e-13}


def reverse(f):
    return grad(f)(X.clone())


def twice(f):
    return grad(lambda x: grad(f)(x).sum())(X.clone())


def forward(f):
    return jvp(f, (X.clone(),), (X,))


def forward_twice(f):
    return jacfwd(jacfwd(f))(X.clone())


def product(f):
    return jvp(grad(f), (X.clone(),), (X,))


def lanes(f):
    return vmap(f)(X.expand(2, 3).clone())


def samples(f):
    return vmap(grad(f))(X.expand(2, 3).clone())


def columns(f):
    return jacfwd(lambda x: f(x)[None])(X.clone())


CASES = [
    ("writes in place to its input", "`x = x + y`", [
        (adds, reverse), (adds, product), (adds, samples), (adds, twice),
        (writes_entry, reverse), (writes_entry, product), (writes_view, reverse),
    ]),
    ("(`add`) to a tensor from outside", "Return the new value", [
        (stores, reverse), (stores, forward), (stores, product), (stores, samples),
    ]),
    ("(`copy`) to a tensor from outside", "`pureopt.functionalize`", [
        (loads, reverse), (loads, product), (loads, samples),
    ]),
    ("to a tensor from outside", "batch norm in train mode", [
        (normalizes_module, reverse), (normalizes_module, product),
    ]),
    ("batch norm in train mode", "eval mode, or use group norm", [
        (normalizes, lanes), (normalizes, samples),
    ]),
    ("batched value to a tensor that is not", "`torch.cat`", [
        (fills, lanes), (fills, samples),
    ]),
    ("a value that a derivative needs", "Compute a new", [(overwrites, reverse)]),
    ("zero tangent of forward mode", "`vhp`", [(entropy, forward_twice)]),
    ("fewer dimensions", "`pureopt.derivatives.exact(f)`", [(recurs, samples), (stores, lanes)]),
    ("`gru`, which has no rule for vmap", "composition", [
        (recurs, lanes),
    ]),
    ("`out=`", "result of the call", [
        (out_argument, reverse), (out_argument, forward), (out_argument, lanes),
    ]),
    ("branches on the value", "`torch.where(condition, a, b)`", [
        (branches, lanes), (branches, samples), (items, samples), (floats, samples),
    ]),
    ("reads the value of a tensor by `.item()`", "Keep it a tensor", [
        (items, lanes), (floats, lanes),
    ]),
    ("by `.numpy()` or `.tolist()`", "what leaves torch", [
        (lists, lanes), (numpies, reverse), (numpies, forward), (numpies, lanes),
    ]),
    ("draws random numbers", "pureopt.random", [(draws, lanes), (draws, samples)]),
    ("shape depends on values", "`torch.where(mask, x, 0.0)`", [
        (masks, lanes), (masks, samples), (indices, lanes), (indices, samples),
    ]),
    ("sparse tensors", "Leave `sparse=True` out", [
        (looks_up, samples), (looks_up, product),
    ]),
    ("`grid_sampler_2d`, which has no forward-mode", "`vhp`", [
        (grid, forward), (grid, product), (grid, columns),
    ]),
    ("`_ctc_loss_backward`, whose backward formula has no", "composition", [
        (ctc, twice),
    ]),
    ("no `setup_context`", "composition", [(bare, reverse), (bare, lanes)]),
    ("no `jvp`", "`vhp`", [(reverse_only, forward), (reverse_only, product)]),
    ("`ReverseOnly`, which has no rule for vmap", "generate_vmap_rule", [
        (reverse_only, lanes),
    ]),
    ("checkpointing", "`chunk_size`", [(checkpoints, reverse), (checkpoints, product)]),
    ("calls `backward`", "`torch.func.grad`", [
        (calls_backward, reverse), (calls_backward, lanes),
        (backpropagates, reverse), (backpropagates, product), (backpropagates, lanes),
        (calls_autograd, reverse), (calls_autograd, forward), (calls_autograd, lanes),
    ]),
    ("gradient of a value inside of it", "`grad_at`", [
        (keeps_gradient, reverse), (keeps_gradient, forward), (keeps_gradient, lanes),
        (hooks, forward), (hooks, lanes),
    ]),
    ("`copy.deepcopy`", "`.clone()`", [
        (copies, reverse), (copies, forward), (copies, lanes),
    ]),
    ("returns a `float`", "Return tensors", [
        (number, lanes), (number, forward),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("got", "hint", "f", "transform"),
    [
        pytest.param(got, hint, f, transform, id=f"{f.__name__}-{transform.__name__}")
        for got, hint, pairs in CASES
        for f, transform in pairs
    ],
)
def test_what_torch_refuses_is_told_in_words(got, hint, f, transform):
    with pytest.raises(DerivativeError) as error:
        _checks.call("hvp(f=...)", transform, f)
    text = said(error)
    assert text.startswith("`hvp(f=...)` must be a pure function that torch.func can")
    assert got in text
    assert hint in text
    # Torch's own message stays in the traceback.
    assert isinstance(error.value.__cause__, RuntimeError | ValueError)
    # What catches that, catches this.
    assert isinstance(error.value, type(error.value.__cause__))


@pytest.mark.parametrize("f", [adds, writes_entry, writes_view])
@pytest.mark.parametrize("transform", ["none", "forward", "lanes"])
def test_a_write_that_torch_lets_pass_is_seen(f, transform):
    x = X.expand(3, 3).clone()
    use = {"none": f, "forward": lambda x: jvp(f, (x,), (x,)), "lanes": vmap(f)}
    with pytest.raises(DerivativeError, match="writes in place to its input"):
        _checks.call("jacobian(f=...)", use[transform], x)


@over(OPERATORS)
@pytest.mark.parametrize("f", [adds, writes_entry])
def test_every_operator_refuses_a_function_that_writes_to_its_input(name, operator, f):
    g = f if name in SCALAR else lambda x: f(x).expand(5)
    with pytest.raises(DerivativeError, match=f"{name}.*writes in place to its input"):
        operator(g, X.clone(), X)


@over(SCALAR)
def test_a_write_to_an_intermediate_value_is_no_write_to_the_input(name, operator):
    def writes(x):
        y = x * 2
        y[0] = x[1]
        return y.pow(2).sum()

    def pure(x):
        return torch.cat([x[1:2], 2 * x[1:]]).pow(2).sum()

    before = X.clone()
    got, expected = operator(writes, X, X), operator(pure, X, X)
    assert torch.equal(X, before)
    torch.testing.assert_close(got, expected, **NEAR)


def stored(p):
    p["w"] = 2 * p["w"]
    return p["w"].pow(3)


def popped(p):
    return (2 * p.pop("w")).pow(3)


@over(OPERATORS)
@pytest.mark.parametrize("f", [stored, popped])
def test_a_tree_that_is_written_to_is_a_copy(name, operator, f):
    x, v = {"w": X}, {"w": randn(3, seed=1)}
    reduced = torch.sum if name in SCALAR else torch.sin
    before = dict(x)
    got = operator(lambda p: reduced(f(p)), x, v)
    expected = operator(lambda p: reduced((2 * p["w"]).pow(3)), x, v)
    # The same operations; `ggnvp` has the tree as outputs.
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert x.keys() == before.keys()
    assert x["w"] is X


@pytest.mark.parametrize("writes", [0, 1])
def test_taylor_mode_gives_a_tree_of_its_own(writes):
    def takes(p):
        w = p.pop("w")
        return w.pow(3).sum()

    def stores(p):
        p["w"] = 2 * p["w"]
        return p["w"].pow(3).sum()

    x = {"w": X.clone()}
    for _ in range(writes):  # the count of writes of what is stored is another one
        x["w"].mul_(1)
    leaf = x["w"]
    for f, factor in ((takes, 6), (stores, 48)):
        torch.testing.assert_close(D.laplacian(f)(x), factor * X.sum(), **NEAR)
        second = 2 * D.jet(f, x, ({"w": X}, None))[1][1]
        torch.testing.assert_close(second, factor * X.pow(3).sum(), **NEAR)
    assert x["w"] is leaf


def test_a_branch_on_the_point_is_followed_where_there_is_one_point():
    def f(x):
        return x.pow(3).sum() if x.sum() > 0 else x.pow(2).sum()

    x = X.abs()
    torch.testing.assert_close(D.hvp(f, x, X), 6 * x * X, **NEAR)
    torch.testing.assert_close(D.hessian_diag(f)(x), 6 * x, **NEAR)
    torch.testing.assert_close(D.hessian_diag(f)(-x), 2 * torch.ones_like(x), **NEAR)


def test_a_branch_under_vmap_is_refused_from_the_inside():
    points = X.expand(2, 3)
    with pytest.raises(DerivativeError, match=r"hvp\(f=...\).*branches on the value"):
        vmap(lambda x: D.hvp(branches, x, x))(points)
    with pytest.raises(DerivativeError, match=r"empirical_fisher_vp.*branches on the"):
        D.empirical_fisher_vp(lambda p, x: branches(p * x), X, (points,), X)


def test_random_numbers_in_a_batch_are_refused():
    with pytest.raises(DerivativeError, match="draws random numbers under vmap"):
        D.empirical_fisher_vp(lambda p, x: draws(p * x), X, (X.expand(2, 3),), X)


def test_batch_norm_in_train_mode_is_refused_and_in_eval_mode_is_not():
    norm = nn.BatchNorm1d(3, dtype=torch.float64)

    def loss(p, x):
        return norm((p * x)[None]).pow(2).sum()

    batch = (randn(4, 3, seed=1),)
    with pytest.raises(DerivativeError, match="eval mode, or use group norm"):
        D.empirical_fisher_vp(loss, X, batch, X)
    norm.eval()
    assert D.empirical_fisher_vp(loss, X, batch, X).isfinite().all()


def test_without_forward_mode_the_reverse_product_is_named_and_works():
    def f(x):
        return Mapped.apply(x).sum()

    with pytest.raises(DerivativeError, match=r"no `jvp`.*`vhp`"):
        D.hvp(f, X, X)
    torch.testing.assert_close(D.vhp(f, X, X), -X.sin() * X, **NEAR)
    torch.testing.assert_close(D.hessian(f)(X), (-X.sin()).diag(), **NEAR)
    torch.testing.assert_close(D.hessian_diag(f)(X), -X.sin(), **NEAR)
    third = D.third_order_product(f, X, X, X)
    torch.testing.assert_close(third, -X.cos() * X * X, **NEAR)
    torch.testing.assert_close(D.jacobian(f)(X), X.cos(), **NEAR)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError, TypeError])
def test_an_error_of_the_function_itself_passes_as_it_is(error):
    def f(x):
        message = "of my own, in words of torch: data-dependent control flow"
        raise error(message)

    for operator in OPERATORS.values():
        with pytest.raises(error, match="of my own") as caught:
            operator(f, X, X)
        assert not isinstance(caught.value, PureoptError)


def test_an_error_of_an_operator_inside_an_operator_passes_as_it_is():
    with pytest.raises(DerivativeError, match=r"^`vhp\(f=...\)` must return a 0-d"):
        D.hvp(lambda x: D.vhp(lambda x: x, x, x).sum(), X, X)


def test_a_forward_level_that_was_left_open_is_named():
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(DerivativeError, match="a fresh process"),
    ):
        _checks.call("hvp(f=...)", product, lambda x: x.pow(2).sum())


def test_a_library_that_knows_no_jets_is_explained_though_it_raises_itself():
    def asks(x):
        if not isinstance(x, torch.Tensor):
            message = f"expected a tensor, got {type(x)}"
            raise TypeError(message)
        return x.sum()

    with pytest.raises(DerivativeError, match="a library that takes tensors only"):
        _checks.call("jet(f=...)", lambda f: D.jet(f, X, (X,)), asks)
