"""What is refused of outputs, points, directions and batches, in which words."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

import pureopt as po
from pureopt._errors import DerivativeError, HyperparameterError, TreeError
from tests.derivatives.every_operator import ARRAYS, OPERATORS, SCALAR, X, over, said
from tests.derivatives.row import randn

D = po.derivatives

# --- What the function returns


@over(SCALAR)
@pytest.mark.parametrize(
    ("f", "got", "hint"),
    [
        (lambda x: x, "shape (3,)", "`.sum()`"),
        (lambda x: x[:1], "shape (1,)", "`.sum()`"),
        (lambda x: (x * 1j).sum(), "complex128", "view_as_real"),
        (lambda x: x.sum().long(), "int64", "no derivative"),
        (lambda x: None, "`NoneType`", "`return`"),
        (lambda x: 1.0, "`float`", "`.item()`"),
        (lambda x: (x.sum(), x), "(a tensor", "leave other results out"),
        (lambda x: {"loss": x.sum()}, "`dict`", "leave other results out"),
    ],
    ids=["vector", "one", "complex", "int", "none", "float", "tuple", "dict"],
)
def test_a_scalar_is_asked_for(name, operator, f, got, hint):
    with pytest.raises(DerivativeError) as error:
        operator(f, X, X)
    text = said(error)
    assert name in text
    assert "must return a 0-d floating tensor" in text
    assert got in text
    assert hint in text


@over(ARRAYS)
@pytest.mark.parametrize(
    ("f", "got", "hint"),
    [
        (lambda x: {"a": x, "b": x.long()}, "int64 at 'b'", "no derivative"),
        (lambda x: (x, x * 1j), "complex128 at '1'", "view_as_real"),
        (lambda x: [None], "`NoneType` at '0'", "`return`"),
        (lambda x: 2.5, "`float`", "`.item()`"),
        (lambda x: "loss", "`str`", "leave other results out"),
    ],
    ids=["int", "complex", "none", "float", "string"],
)
def test_floating_tensors_are_asked_for(name, operator, f, got, hint):
    with pytest.raises(DerivativeError) as error:
        operator(f, X, X)
    text = said(error)
    assert name in text
    assert "must return a floating tensor or a tree of them" in text
    assert got in text
    assert hint in text


@over(ARRAYS)
def test_some_output_is_asked_for(name, operator):
    with pytest.raises(DerivativeError, match="got an empty tree"):
        operator(lambda x: (), X, X)


# --- The point and the direction


@over(OPERATORS)
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.arange(3), "dtype torch.int64"),
        (randn(3) * 1j, "view_as_real"),
        ({"w": X, "n": torch.tensor(1)}, "at 'n'"),
        ({"w": None}, "`NoneType` at 'w'"),
        ((), "an empty tree"),
        (randn(0), "shape (0,)"),
        ([1.0], "`float` at '0'"),
        (nn.Linear(2, 2), "functionalize"),
    ],
    ids=["int", "complex", "leaf", "none", "tree", "empty", "number", "module"],
)
def test_the_point_is_a_tree_of_floating_tensors(name, operator, x, words):
    with pytest.raises(TreeError) as error:
        operator(lambda x: x.sum(), x, x)
    assert name in str(error.value)
    assert words in str(error.value)


DIRECTED = {
    name: OPERATORS[name]
    for name in ("hvp", "vhp", "third_order_product", "ggnvp", "fisher_vp")
} | {"empirical_fisher_vp": OPERATORS["empirical_fisher_vp"]}


@over(DIRECTED)
@pytest.mark.parametrize(
    ("v", "words"),
    [
        ({"a": {"b": X}}, "no 'c'"),
        ({"a": {"b": X}, "c": X, "d": X}, "an unknown 'd'"),
        ({"a": {"b": X[:2]}, "c": X}, "(2,) at 'a.b'"),
        ({"a": {"b": X.float()}, "c": X}, "torch.float32 at 'a.b'"),
        ({"a": {"b": X.long()}, "c": X}, "torch.int64 at 'a.b'"),
        ({"a": {"b": None}, "c": X}, "`NoneType` at 'a.b'"),
        (X, "no 'a.b'"),
    ],
    ids=["missing", "unknown", "shape", "dtype", "int", "none", "bare"],
)
def test_a_direction_is_like_the_point(name, operator, v, words):
    x = {"a": {"b": X}, "c": X}
    with pytest.raises(TreeError) as error:
        operator(lambda x: x["c"].sum(), x, v)
    assert name in str(error.value)
    assert words in str(error.value)


def test_the_second_direction_is_named():
    with pytest.raises(TreeError, match=r"third_order_product\(v=...\).*\(2,\)"):
        D.third_order_product(lambda x: x.sum(), X, X, X[:2])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (X, r"got a tensor.*`\(x,\)`"),
        ({"x": X}, r"got `dict`.*`\(x,\)`"),
        ((), r"got \(\)"),
        ((X, X[:2]), r"\(3,\).*\(2,\)"),
        ((X, X[0]), r"shape \(\)"),
        ((X, 1.0), "`float`"),
    ],
    ids=["tensor", "dict", "nothing", "sizes", "number", "float"],
)
def test_a_batch_is_a_tuple_with_one_leading_dimension(batch, words):
    with pytest.raises(TreeError, match=f"batch=.*one leading dimension.*{words}"):
        D.empirical_fisher_vp(lambda p, *_: p.sum(), X, batch, X)


def test_a_batch_has_a_sample():
    with pytest.raises(TreeError, match=r"batch=.* 1 sample or more, got 0"):
        D.empirical_fisher_vp(lambda p, *_: p.sum(), X, (randn(0, 2),), X)


@pytest.mark.parametrize(
    "operator",
    [D.laplacian, D.forward_laplacian, lambda f: D.nth_derivative(f, 2), D.bilaplacian],
    ids=["laplacian", "forward_laplacian", "nth_derivative", "bilaplacian"],
)
@pytest.mark.parametrize(
    "f", [torch.argmax, lambda x: x.sum() > 0], ids=["int", "bool"]
)
def test_taylor_mode_asks_for_floating_tensors(operator, f):
    x = torch.tensor(0.5) if operator not in {D.laplacian, D.bilaplacian} else X
    with pytest.raises(DerivativeError, match="must return floating tensors, got a t"):
        operator(f)(x)


def test_the_function_of_audit_and_of_exact_is_one():
    with pytest.raises(
        DerivativeError, match=r"audit\(f=.* got a tensor of shape \(\)"
    ):
        D.audit(X.sum(), X)
    with pytest.raises(DerivativeError, match=r"exact\(f=.* got `int`"):
        D.exact(3)


@pytest.mark.parametrize("transform", [lambda f: f, grad], ids=["value", "grad"])
def test_a_branch_on_values_in_lanes_is_told_of_exact(transform):
    f = D.exact(lambda x: x.sum() if x.sum() > 0 else -x.sum())
    with pytest.raises(DerivativeError) as error:
        vmap(transform(f))(randn(3, 2))
    assert "exact(f=...)" in said(error)
    assert "torch.where" in said(error)
    # Of an operator it is the operator that tells.
    with pytest.raises(DerivativeError, match=r"hvp\(f=...\)"):
        vmap(lambda x: D.hvp(lambda x: x.sum() if x.sum() > 0 else -x.sum(), x, x))(
            randn(3, 2)
        )


class MineError(ValueError):
    """An error of the program."""


def test_errors_of_the_program_are_left_alone_by_exact():
    def f(x):
        raise MineError("calling .item() on a Tensor")

    for call in (D.exact(f), grad(D.exact(f))):
        with pytest.raises(MineError):
            call(X)

    def own(x):
        raise RuntimeError("my own: data-dependent control flow is bad")

    def wrapped(x):
        try:
            return x.sum().item()
        except RuntimeError as error:
            raise ValueError(f"in my loss: {error}") from error

    for call in (grad(D.exact(own)), vmap(D.exact(own)), lambda x: D.hvp(own, x, x)):
        with pytest.raises(RuntimeError, match=r"^my own: data-dependent"):
            call(X)
    with pytest.raises(ValueError, match=r"^in my loss: "):
        vmap(D.exact(wrapped))(X)
    # Nor is there a transform to blame.
    with pytest.raises(RuntimeError, match="numpy"):
        D.exact(lambda x: x.numpy())(X.clone().requires_grad_())


def test_what_catches_errors_of_torch_catches_those_in_words():
    f = vmap(D.exact(lambda x: x if x > 0 else -x))
    with pytest.raises(RuntimeError, match="must be a pure function") as error:
        f(X)
    assert isinstance(error.value, DerivativeError)
    again = pickle.loads(pickle.dumps(error.value))  # noqa: S301
    assert (type(again), str(again)) == (type(error.value), str(error.value))


def test_exact_is_not_told_to_use_exact():
    f = D.exact(lambda x: torch.zeros(3, dtype=x.dtype).add_(x))
    with pytest.raises(DerivativeError, match="of fewer dimensions") as error:
        vmap(f)(randn(2, 3))
    assert said(error).endswith("`torch.cat` in place of `x[i] = y`.")


def test_a_log_determinant_names_itself():
    with pytest.raises(TreeError, match=r"log_determinant\(matvec="):
        D.log_determinant(lambda v: v[:1], X, key=po.random.key(0), probes=2, steps=2)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: x.sum(), r"got shape \(\)\. .*outputs\[None\]"),
        (lambda x: {"a": x, "b": x[:2]}, r"got shape \(2,\) at 'b'"),
        (lambda x: (x, x.sum()), r"got shape \(\) at '1'"),
    ],
    ids=["number", "sizes", "leaf"],
)
def test_fisher_needs_the_batch_in_front(model, words):
    with pytest.raises(DerivativeError, match=f"batch as leading dimension, {words}"):
        D.fisher_vp(model, X, X, likelihood=lambda z, u: u)


@pytest.mark.parametrize(
    ("likelihood", "got"),
    [
        (D.Bernoulli, "the class `Bernoulli`"),
        ("poisson", "`str`"),
        (None, "`NoneType`"),
    ],
    ids=["class", "name", "none"],
)
def test_a_likelihood_is_a_function(likelihood, got):
    with pytest.raises(HyperparameterError, match=rf"{got}\. .*=Categorical\(\)`"):
        D.fisher_vp(lambda x: x, X, X, likelihood=likelihood)


def test_the_batch_is_no_dimension_of_classes():
    with pytest.raises(DerivativeError, match=r"got shape \(3,\), which is the batch"):
        D.fisher_vp(lambda x: x, X, X, likelihood=D.Categorical())


def test_a_likelihood_returns_what_is_like_the_outputs():
    with pytest.raises(TreeError, match=r"likelihood=.*`outputs`, got \(\)"):
        D.fisher_vp(lambda x: x, X, X, likelihood=lambda z, u: u.sum())


def test_the_loss_of_gauss_newton_is_named_apart_from_its_model():
    with pytest.raises(DerivativeError, match=r"ggnvp\(loss=...\)` must return a 0-d"):
        D.ggnvp(lambda x: x, lambda z: z, X, X)
    with pytest.raises(DerivativeError, match=r"ggnvp\(model=...\)` must return a flo"):
        D.ggnvp(lambda x: x.long(), lambda z: z.sum(), X, X)
