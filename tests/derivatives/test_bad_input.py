"""What is refused, and in which words."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.func import grad, jacfwd, jvp, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import pureopt as po
from pureopt._errors import (
    DerivativeError,
    HyperparameterError,
    PureoptError,
    TreeError,
)
from pureopt.derivatives import _checks
from tests.derivatives.row import randn

D = po.derivatives
KEY = po.random.key(0)


def said(error):
    """The message, which must have four parts and none of torch's words."""
    text = str(error.value)
    assert len(error.value.args) == 4
    assert not re.search(r"functorch|vmap:|aten::|Tracking|github|at::", text)
    return text


# Every operator on one function, at x, in a direction like x.
SCALAR = {
    "hvp": D.hvp,
    "vhp": D.vhp,
    "third_order_product": lambda f, x, v: D.third_order_product(f, x, v, v),
    "hessian_diag": lambda f, x, _: D.hessian_diag(f)(x),
    "hessian_diag_estimate": lambda f, x, _: D.hessian_diag_estimate(
        f, x, key=KEY, samples=2
    ),
    "empirical_fisher_vp": lambda f, x, v: D.empirical_fisher_vp(
        lambda p, s: f(p), x, (randn(2),), v
    ),
    "ggnvp": lambda f, x, v: D.ggnvp(lambda x: x, f, x, v),
}
ARRAYS = {
    "jacobian": lambda f, x, _: D.jacobian(f)(x),
    "hessian": lambda f, x, _: D.hessian(f)(x),
    "fisher_vp": lambda f, x, v: D.fisher_vp(f, x, v, likelihood=D.Gaussian()),
}
OPERATORS = SCALAR | ARRAYS


def over(operators):
    return pytest.mark.parametrize(
        ("name", "operator"), operators.items(), ids=operators
    )


X = randn(3)


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
        ((X[:0],), r"shape \(0,\)"),
    ],
    ids=["tensor", "dict", "nothing", "sizes", "number", "float", "no-sample"],
)
def test_a_batch_is_a_tuple_with_one_leading_dimension(batch, words):
    with pytest.raises(TreeError, match=f"batch=.*one leading dimension.*{words}"):
        D.empirical_fisher_vp(lambda p, *_: p.sum(), X, batch, X)


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


# --- What the function does. Torch's own messages, under torch's own transforms: these
# tests fail when a release words them otherwise.

STORE = torch.zeros(3, dtype=torch.float64)


def adds(x):
    x += 1
    return x.pow(2).sum()


def writes_entry(x):
    x[0] = 1.0
    return x.pow(2).sum()


def writes_view(x):
    x[:2].mul_(2)
    return x.pow(2).sum()


def stores(x):
    STORE.add_(x)
    return x.sum()


def loads(x):
    LINEAR.load_state_dict({"weight": x[None]})
    return LINEAR(X).sum()


LINEAR = nn.Linear(3, 1, bias=False, dtype=torch.float64)


def fills(x):
    out = torch.zeros(3, dtype=x.dtype)
    out[0] = x[0]
    return out.sum()


def overwrites(x):
    y = x.exp()
    y += 1
    return y.sum()


def entropy(x):
    return F.binary_cross_entropy_with_logits(x, torch.ones_like(x))


def out_argument(x):
    out = torch.empty(3, dtype=x.dtype)
    torch.sin(x, out=out)
    return out.sum()


def branches(x):
    return x.sum() if x.sum() > 0 else -x.sum()


def items(x):
    return x.sum() * x[0].item()


def floats(x):
    return x.sum() * float(x[0])


def lists(x):
    return x.sum() * sum(x.tolist())


def numpies(x):
    return x.sum() * torch.as_tensor(x.detach().numpy())


def draws(x):
    return F.dropout(x).sum()


def looks_up(x):
    return F.embedding(torch.tensor([0, 2]), x[:, None], sparse=True).exp().sum()


def masks(x):
    return x[x > 0].sum()


def grid(x):
    points = x.expand(1, 2, 1, 3)[..., :2]
    return F.grid_sample(x.expand(1, 1, 3, 3), points, align_corners=True).sum()


def ctc(x):
    one = torch.tensor([1])
    return F.ctc_loss(x.expand(5, 1, 3).log_softmax(-1), one[None], 5 * one, one)


def checkpoints(x):
    return checkpoint(torch.sin, x, use_reentrant=False).sum()


def calls_backward(x):
    y = x.detach().clone().requires_grad_()
    y.pow(2).sum().backward()
    return (x * y.grad).sum()


def backpropagates(x):
    weight = torch.ones_like(X, requires_grad=True)
    (x * weight).pow(2).sum().backward()
    return (x * weight.grad).sum()


def calls_autograd(x):
    return torch.autograd.grad(x.pow(2).sum(), X)[0].sum()


def keeps_gradient(x):
    y = x.sin()
    y.retain_grad()
    return y.sum()


def hooks(x):
    y = x.sin()
    y.register_hook(lambda g: 2 * g)
    return y.sum()


def copies(x):
    return copy.deepcopy(x).sin().sum()


def indices(x):
    return x[x.nonzero()[:, 0]].sum()


class Bare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class ReverseOnly(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Mapped(ReverseOnly):
    generate_vmap_rule = True


def bare(x):
    return Bare.apply(x).sum()


def reverse_only(x):
    return ReverseOnly.apply(x).sum()


def normalizes(x):
    norm = nn.BatchNorm1d(3, dtype=torch.float64)
    with torch.no_grad():
        norm.num_batches_tracked = None  # else its counter is what is written to
    return norm(x * torch.arange(4.0)[:, None]).pow(2).sum()


def normalizes_module(x):
    return NORM(x * torch.arange(4.0)[:, None]).pow(2).sum()


NORM = nn.BatchNorm1d(3, dtype=torch.float64)


def recurs(x):
    return GRU(x[None, None])[0].sum()


GRU = nn.GRU(3, 3, dtype=torch.float64)


def number(x):
    return 1.0


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
    torch.testing.assert_close(got, expected)


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


def test_a_branch_on_the_point_is_followed_where_there_is_one_point():
    def f(x):
        return x.pow(3).sum() if x.sum() > 0 else x.pow(2).sum()

    x = X.abs()
    torch.testing.assert_close(D.hvp(f, x, X), 6 * x * X)
    torch.testing.assert_close(D.hessian_diag(f)(x), 6 * x)
    torch.testing.assert_close(D.hessian_diag(f)(-x), 2 * torch.ones_like(x))


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
    torch.testing.assert_close(D.vhp(f, X, X), -X.sin() * X)
    torch.testing.assert_close(D.hessian(f)(X), (-X.sin()).diag())
    torch.testing.assert_close(D.hessian_diag(f)(X), -X.sin())
    third = D.third_order_product(f, X, X, X)
    torch.testing.assert_close(third, -X.cos() * X * X)
    torch.testing.assert_close(D.jacobian(f)(X), X.cos())


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError, TypeError])
def test_an_error_of_the_function_itself_passes_as_it_is(error):
    def f(x):
        message = "of my own"
        raise error(message)

    for name, operator in OPERATORS.items():
        del name
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
