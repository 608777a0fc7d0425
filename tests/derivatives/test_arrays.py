"""Jacobians and Hessians: closed forms, torch.func, chunks, evaluations."""

from __future__ import annotations

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

import pureopt as po
from pureopt._errors import HyperparameterError
from tests.derivatives.observers import counted
from tests.derivatives.products_net import SAME, X, net, params, value
from tests.derivatives.recurrent_modules import layer
from tests.derivatives.row import randn

D = po.derivatives
MORE = randn(10, 3, seed=4)


def outputs(p):
    z = net(p, X[:2])
    return {"last": z[:, -1], "all": (z, z.square().mean())}


# 36 parameters: 13 outputs are fewer, by rows; 50 are more, by columns.
@pytest.mark.parametrize(
    "f",
    [outputs, lambda p: net(p, MORE).reshape(5, 10)],
    ids=["rows", "columns"],
)
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 36, 1000])
def test_the_jacobian_is_that_of_torch_for_every_chunk_size(f, chunk_size):
    p = params()
    got = D.jacobian(f, chunk_size=chunk_size)(p)
    torch.testing.assert_close(got, jacrev(f)(p), **SAME)
    torch.testing.assert_close(got, jacfwd(f)(p), **SAME)


def test_the_jacobian_of_an_empty_output_is_empty():
    assert D.jacobian(lambda x: x[:0])(randn(3)).shape == (0, 3)


@pytest.mark.parametrize("m", [2, 5])
def test_the_derivatives_of_a_constant_are_zero(m):
    x, constant = randn(3), randn(m, seed=1)
    assert torch.equal(D.jacobian(lambda x: constant)(x), constant.new_zeros(m, 3))
    assert torch.equal(D.hessian(lambda x: constant)(x), constant.new_zeros(m, 3, 3))
    assert torch.equal(D.hessian_diag(lambda x: constant.sum())(x), 0 * x)
    assert torch.equal(D.hvp(lambda x: constant.sum(), x, x), 0 * x)
    assert torch.equal(D.vhp(lambda x: constant.sum(), x, x), 0 * x)


@pytest.mark.parametrize(
    ("shape", "f", "evaluations"),
    [
        # By rows the evaluation that gives the size is the one that is differentiated.
        ((5,), lambda x: x[:3].exp(), 1),
        # One column: the size of the output does not matter.
        ((1,), lambda x: x.expand(4).exp(), 1),
        # By columns: one to find the size, one for all columns.
        ((2,), lambda x: x.repeat(3).exp(), 2),
    ],
    ids=["rows", "one-column", "columns"],
)
def test_the_jacobian_evaluates_no_more_often_than_it_must(shape, f, evaluations):
    counting, calls = counted(f)
    D.jacobian(counting)(randn(*shape))
    assert len(calls) == evaluations


def test_arrays_of_leaves_of_several_dtypes_have_the_wider_one():
    x = {"a": randn(2, dtype=torch.float32), "b": randn(1)}

    def f(x):
        return x["a"].sin(), (x["b"] * x["a"]).exp(), x["b"].expand(3).cos()

    for g in (f, lambda x: f(x)[0][:1]):
        got = D.jacobian(g)(x)
        for out, y in zip(
            got if isinstance(got, tuple) else (got,), _tuple(g(x)), strict=True
        ):
            for name, leaf in x.items():
                assert out[name].dtype == torch.promote_types(y.dtype, leaf.dtype)
                assert out[name].shape == y.shape + leaf.shape
    hessian = D.hessian(lambda x: f(x)[1].sum())(x)
    for a, first in x.items():
        for b, second in x.items():
            wider = torch.promote_types(first.dtype, second.dtype)
            assert hessian[a][b].dtype == wider


def _tuple(y):
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 36, 1000])
def test_the_hessian_is_that_of_torch_for_every_chunk_size(chunk_size):
    p = params()
    got = D.hessian(value, chunk_size=chunk_size)(p)
    torch.testing.assert_close(got, torch.func.hessian(value)(p), **SAME)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_the_hessian_of_many_outputs_is_that_of_torch(chunk_size):
    p = params()
    got = D.hessian(outputs, chunk_size=chunk_size)(p)
    torch.testing.assert_close(got, torch.func.hessian(outputs)(p), **SAME)


def test_the_hessian_of_one_number_needs_no_forward_mode_in_any_shape():
    lstm, x = layer("LSTM"), randn(2, 3)
    loss = lambda x: lstm(x)[0].pow(2).sum()  # noqa: E731
    got = D.hessian(lambda x: {"loss": loss(x).expand(1, 1)})(x)["loss"]
    torch.testing.assert_close(got[0, 0], D.hessian(loss)(x), **SAME)


def test_a_hessian_of_a_hessian_is_the_fourth_derivative():
    x, a = randn(2), randn(3, 2, seed=1)
    got = D.hessian(D.hessian(lambda x: (a @ x).exp().sum()))(x)
    expected = torch.einsum("r,ri,rj,rk,rl->ijkl", (a @ x).exp(), a, a, a, a)
    torch.testing.assert_close(got, expected, **SAME)


def test_per_sample_hessians_are_a_vmap():
    points = randn(5, 3)
    a = randn(4, 3, seed=1)
    got = vmap(D.hessian(lambda x: (a @ x).cos().sum()))(points)
    expected = torch.einsum("br,ri,rj->bij", -(points @ a.mT).cos(), a, a)
    torch.testing.assert_close(got, expected, **SAME)


@pytest.mark.parametrize("operator", [D.jacobian, D.hessian, D.hessian_diag])
@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True, torch.tensor(3)])
def test_a_chunk_size_is_a_positive_integer(operator, chunk_size):
    with pytest.raises(HyperparameterError, match=r"chunk_size=.*positive integer"):
        operator(value, chunk_size=chunk_size)
