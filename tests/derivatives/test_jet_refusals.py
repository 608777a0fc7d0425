"""What Taylor mode has no rule for, what it says of it, and how it is taught."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad
from torch.nn import functional as F

import pureopt as po
from pureopt.derivatives import jet, laplacian, nth_derivative
from tests.derivatives.jet_case import point
from tests.derivatives.row import randn


def refused(f):
    x = randn(2, 3)
    with pytest.raises(po.DerivativeError) as error:
        jet(f, x, (x,))
    return error.value


FORBIDDEN = {
    "add_": lambda x: x.add_(1.0),
    "`relu_`": F.relu_,
    "`torch.sin` with `out=`": lambda x: torch.sin(x, out=torch.empty(2, 3)),
    "`dropout` in train mode": nn.Dropout(0.3),
    "rrelu(training=True)": lambda x: F.rrelu(x, training=True),
    "`bernoulli`": lambda x: torch.bernoulli(x.sigmoid()),
    "a call of `torch.autograd`": lambda x: torch.autograd.grad(x.sum(), x)[0],
    "transform of `torch.func`": grad(torch.sum),
    "got an assignment": lambda x: torch.zeros(2, 3).__setitem__(0, x[0]),
    "got `x.item()`": lambda x: x * x.sum().item(),
    "got `x.tolist()`": lambda x: x * x.tolist()[0][0],
    "got `x.numpy()`": lambda x: x.numpy(),
    "got `float(x)`": lambda x: math.sin(x[0, 0]),
    "got `int(x)`": lambda x: x * int(x[0, 0]),
    "got an array of `x`": np.sin,
    "Join tensors with `torch.stack": lambda x: torch.tensor([x[0, 0], x[0, 1]]),
    "got `torch.linalg.ldl_factor`": lambda x: torch.linalg.ldl_factor(x @ x.mT)[0],
    "`torch.linalg.svd(A)` of 2 x 3": lambda x: torch.linalg.svd(x)[1],
    "got `torch.Tensor.histc`": lambda x: x.histc(),
    "`size_average` or `reduce`": lambda x: F.mse_loss(x, x, size_average=True),
    "factor square matrices": torch.linalg.lu_factor,
    "assignment to `x[...]`": lambda x: x.__setitem__(0, 1.0),
    "to a constant, got an": lambda x: torch.ones(3).__setitem__(0, x[0, 0]),
    "got a call of `torch.autograd`": lambda x: x.requires_grad_().sum(),
}


@pytest.mark.parametrize("words", FORBIDDEN)
def test_what_has_no_rule_is_named_with_a_way_out(words):
    error = refused(FORBIDDEN[words])
    assert words in str(error)
    # The fourth part: what to do. That matrices must be square says it.
    assert "square" in words or error.args[3]
    assert "functorch" not in str(error)


def test_an_order_that_torch_refuses_is_refused_by_torch():
    with pytest.raises(RuntimeError, match="Order 3 not supported"):
        jet(lambda x: torch.linalg.matrix_norm(x, 3), randn(2, 2), (randn(2, 2),))


REFUSED = {
    "huber": lambda x: F.huber_loss(x, x.mT, delta=0.0),
    "cdist": lambda x: torch.cdist(x, x[:, :1]),
    "grid": lambda x: F.grid_sample(x[None, None], x[None], align_corners=False),
    "attention": lambda x: F.scaled_dot_product_attention(
        x, x, x, torch.ones(3, 3).long()
    ),
    "labels": lambda x: F.multi_margin_loss(x, x),
    "glu": F.glu,
    "det": lambda x: torch.det(x[:2]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_in_its_words(name):
    x = randn(3, 3)
    with pytest.raises(RuntimeError) as theirs:
        REFUSED[name](x)
    with pytest.raises(RuntimeError) as ours:
        jet(REFUSED[name], x, (x,))
    assert str(theirs.value) in str(ours.value)


@torch.library.custom_op("pureopt_tests::softcube", mutates_args=())
def softcube(x: torch.Tensor) -> torch.Tensor:
    return x**3 + x


def test_an_operator_of_a_library_is_named_and_can_be_taught():
    assert "`torch.ops.pureopt_tests.softcube.default`" in str(refused(softcube))
    po.derivatives.register_jet(softcube, lambda x: x**3 + x)
    x, (v, _) = point(3)
    spelled = (
        softcube,
        torch.ops.pureopt_tests.softcube,
        torch.ops.pureopt_tests.softcube.default,
    )
    for op in spelled:
        _, series = jet(op, x, (v, torch.zeros_like(v), torch.zeros_like(v)))
        # By hand: the cube of x + t v. Three products each.
        truth = ((3 * x**2 + 1) * v, 3 * x * v**2, v**3)
        for got, want in zip(series, truth, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-15)


@torch.library.custom_op("pureopt_tests::wave", mutates_args=())
def wave(x: torch.Tensor, speed: float = 1.0) -> torch.Tensor:
    return torch.sin(speed * x)


def test_a_taught_derivative_is_given_the_constants_and_serves_many_directions():
    po.derivatives.register_jet_derivative(
        wave, lambda x, _, speed=1.0: speed * torch.cos(speed * x)
    )
    x = randn(3)
    # Two roundings for each of three terms.
    torch.testing.assert_close(
        laplacian(lambda x: wave(x, speed=2.0).sum())(x),
        -4 * torch.sin(2 * x).sum(),
        rtol=1e-14,
        atol=1e-14,
    )


@pytest.mark.compile
@pytest.mark.parametrize("batched", [False, True], ids=["one", "vmap"])
def test_a_product_that_the_compiler_turns_around_is_put_right(batched):
    # `x @ w` arrives as `w @ x`; square, nothing tells them apart.
    x, w = randn(2, 2), randn(2, 2, seed=1)

    def f(x):
        y = torch.tanh(x @ w) @ w
        z = w @ (w @ x.exp()).sin()
        z @= w
        return (y * z).sum()

    trace = laplacian(f)
    trace, x = (torch.func.vmap(trace), x[None]) if batched else (trace, x)
    compiled = torch.compile(trace, fullgraph=True, backend="aot_eager")
    # Sums of products of some ten numbers of order one.
    torch.testing.assert_close(compiled(x), trace(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("inner", ["laplacian", "nth_derivative", "hvp"])
def test_an_operator_called_on_a_series_says_where_it_must_stand(inner):
    def cube(x):
        return x**3

    calls = {
        "laplacian": laplacian(cube),
        "nth_derivative": nth_derivative(cube, 2),
        "hvp": lambda x: po.derivatives.hvp(cube, x, x),
    }
    with pytest.raises(po.DerivativeError, match="outside of Taylor mode, got a `Jet`"):
        laplacian(calls[inner])(torch.tensor(1.0))
