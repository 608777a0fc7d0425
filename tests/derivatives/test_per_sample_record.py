"""What a recording of the uses of the weights sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pureopt as po
from pureopt._tree import tree_leaves, tree_map
from pureopt.derivatives._per_sample._scope import Scope
from tests.derivatives.observers import counted
from tests.derivatives.per_sample_case import B, Case, close, reference
from tests.derivatives.per_sample_cases_modules import mlp
from tests.derivatives.row import randn

D = po.derivatives


def test_each_call_runs_the_loss_once():
    case = mlp()
    loss, calls = counted(case.loss)
    norms = D.per_sample_grad_norms(loss)
    norms(case.params, *case.batch)
    first = len(calls)
    params = tree_map(torch.sin, case.params)
    batch = tree_map(lambda leaf: leaf[:3].cos(), case.batch)
    got = norms(params, *batch)
    assert (first, len(calls)) == (1, 2)
    want = torch.cat(reference(Case(case.loss, params, *batch)), 1)
    close(got, want.norm(dim=1))


@pytest.mark.parametrize(
    "other",
    [
        lambda p, x: F.linear(x, p["w"]).tanh().sum(),
        lambda p, x: F.linear(x[:1], p["w"], p["b"]).tanh().sum(),
        lambda p, x: F.linear(x, p["w"], p["b"]).tanh().sum() + p["w"].sum(),
        lambda p, x: F.linear(F.linear(x, p["w"], p["b"]), p["w"][:, :3]).sum(),
    ],
    ids=["fewer-uses", "other-shapes", "a-use-without-a-rule", "more-uses"],
)
def test_a_loss_that_has_become_another_one_is_looked_at_anew(other):
    losses = [lambda p, x: F.linear(x, p["w"], p["b"]).tanh().sum()]
    params, x = {"w": randn(3, 4), "b": randn(3, seed=1)}, randn(B, 2, 4)

    def loss(p, x):
        return losses[-1](p, x)

    norms = D.per_sample_grad_norms(loss)
    norms(params, x)
    losses.append(other)
    want = torch.cat(reference(Case(other, params, x)), 1)
    close(norms(params, x), want.norm(dim=1))


def test_a_loss_that_begins_to_write_to_its_sample_is_refused():
    calls = []

    def loss(w, x, y):
        calls.append(0)
        if len(calls) > 1:
            y.add_(1)
        return (x @ w).tanh()

    norms = D.per_sample_grad_norms(loss)
    norms(randn(3), randn(B, 3), randn(B))
    with pytest.raises(po.DerivativeError, match="writes in place"):
        norms(randn(3), randn(B, 3), randn(B))


def weight_normalized():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    apply, params, buffers = po.functionalize(layer.double())
    return lambda p, x: apply(p, buffers, x)[0].sin().sum(), params


TEACHER = nn.Linear(3, 2, dtype=torch.float64)
WEIGHTS = {"w": randn(3, 3), "v": randn(2, 3, seed=1)}
# What compilers do not show to a mode, or only its result.
UNSHOWN = {
    "pad": lambda p, x: p["v"] @ (F.pad(p["w"], (1, 0)) @ F.pad(x, (0, 1))).sin(),
    "of the same sizes": lambda p, x: F.linear(
        torch._weight_norm(p["w"], p["v"][0, :, None].exp()) @ x, p["v"]
    ).sin(),
    "rows": lambda p, x: torch.stack([(row * x).sum().sin() for row in p["w"]]),
    "zip": lambda p, x: sum(
        (a * b * x).sin() for a, b in zip(p["v"], p["v"], strict=True)
    ),
    "unpacked": lambda p, x: torch.mul(*p["v"]) * x.sin(),
    "T": lambda p, x: p["v"] @ (x @ p["w"].T).sin(),
    "after operations": lambda p, x: p["v"] @ (x @ p["w"].sin().cos().T).sin(),
}


@pytest.mark.compile
@pytest.mark.parametrize("name", ["weight norm", *UNSHOWN])
def test_compiled_uses_that_are_not_shown_are_differentiated_sample_by_sample(name):
    if name in UNSHOWN:
        loss, params = (lambda p, x: UNSHOWN[name](p, x).square().sum()), WEIGHTS
    else:
        loss, params = weight_normalized()
    x = randn(B, 3, seed=2)

    def both(params, x):
        return D.per_sample_squared_norms(loss)(params, x), D.grad_gram(loss)(params, x)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    (squares, gram), truth = compiled(params, x), reference(Case(loss, params, x))
    # In the order in which trees are flattened.
    for got, want in zip(tree_leaves(squares), truth, strict=True):
        close(got, want.square().sum(1))
    flat = torch.cat(truth, 1)
    close(gram, flat @ flat.mT)


@pytest.mark.compile
def test_compiled_a_loss_that_is_a_number_of_the_parameters():
    norms = D.per_sample_grad_norms(lambda w, x: next(iter(w)))
    compiled = torch.compile(norms, fullgraph=True, backend="aot_eager")
    close(compiled(randn(3), randn(B, 3)), torch.ones(B, dtype=torch.float64))


# Not in the test: what is appended to its own variables while it is traced gets lost.
HIDDEN = []
CLOSED_OVER = randn(2, seed=4).requires_grad_()


def shown(p, x):
    y = F.linear((x @ p["w"].t()).sin(), p["v"]) - TEACHER(x)
    return (y * CLOSED_OVER * CLOSED_OVER.detach()).sum()


def sine_of_a_weight(p, x):
    return F.linear((x @ p["w"].sin().cos().t()).sin(), p["v"]).sum()


def padded_weight(p, x):
    return F.linear((x @ F.pad(p["w"], (0, 0)).t()).sin(), p["v"]).sum()


@pytest.mark.compile
@pytest.mark.parametrize(
    ("loss", "hidden"),
    # Leaves in the order of the tree: `w` and `v`. Of the padded one anything may be made.
    [(shown, set()), (sine_of_a_weight, {0}), (padded_weight, {0, 1})],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_compiled_what_is_shown_keeps_its_rules(monkeypatch, loss, hidden):
    hide = Scope.hide

    def listed(self, leaves):
        HIDDEN.extend(leaves)
        return hide(self, leaves)

    monkeypatch.setattr(Scope, "hide", listed)
    HIDDEN.clear()
    norms = D.per_sample_grad_norms(loss)
    torch.compile(norms, fullgraph=True, backend="aot_eager")(WEIGHTS, randn(B, 3))
    assert set(HIDDEN) == hidden


def test_a_use_that_cannot_be_seen_gives_nan_and_no_wrong_number():
    def loss(p, x):
        with torch._C.DisableTorchFunction():
            hidden = x @ p["w"]
        return hidden + x @ p["w"] + x @ p["v"]

    params = {"w": randn(3), "v": randn(3, seed=1)}
    squares = D.per_sample_squared_norms(loss)(params, randn(B, 3))
    assert squares["w"].isnan().all()
    assert squares["v"].isfinite().all()
    assert D.noise_scale(loss)(params, randn(B, 3)).ratio.isnan()
