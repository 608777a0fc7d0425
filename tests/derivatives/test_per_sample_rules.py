"""The uses of a weight that have a rule: bags of embeddings, edges of others."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

import pureopt as po
from pureopt.derivatives._per_sample._record import record
from tests.derivatives.per_sample_case import B, Case, check, close, ints
from tests.derivatives.row import randn

D = po.derivatives


def test_dimensions_that_a_weight_has_not_are_refused_by_torch():
    norms = D.per_sample_grad_norms(lambda w, x: (x @ w.transpose(2, 1)).sum())
    with pytest.raises(IndexError):
        norms(randn(2, 3), randn(B, 3))


BAGS = {
    "mean": {},
    "sum": {"mode": "sum"},
    "sparse": {"sparse": True},
    "padded": {"padding_idx": 2},
    "padded-sum": {"mode": "sum", "padding_idx": -4},
    "weighted": {"mode": "sum", "per_sample_weights": randn(3, 4), "padding_idx": 0},
}


@pytest.mark.parametrize("options", BAGS.values(), ids=BAGS)
def test_bags_of_embeddings_have_a_rule(options):
    table, ids = randn(6, 3), ints(6, B, 3, 4)

    def loss(w, i, sparse):
        named = options | {"sparse": sparse}
        return F.embedding_bag(i, w, **named).sin().sum()

    def ours(w, i):
        return loss(w, i, options.get("sparse", False))

    # Torch's own kernel, one by one: under `vmap` it warns that it is slow.
    want = torch.stack([grad(loss)(table, i, False) for i in ids])
    assert record("test", ours, table, (ids,)).opaque == [False]
    close(D.per_sample_grads(ours)(table, ids), want)
    close(D.per_sample_grad_norms(ours)(table, ids), want.flatten(1).norm(dim=1))
    close(D.grad_variance(ours)(table, ids), want.var(0))


def test_an_empty_bag_has_the_gradient_zero():
    def loss(w, i):
        return F.embedding_bag(i, w).cos().sum() + w[0].sum()

    grads = D.per_sample_grads(loss)(randn(6, 3), ints(6, B, 2, 0))
    assert torch.equal(grads.sum(1), torch.ones(B, 3).double())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"padding_idx": 6}, "padding_idx"), ({"mode": "least"}, "mode has to be")],
)
def test_bags_that_torch_refuses_are_refused(options, words):
    def loss(w, i):
        return F.embedding_bag(i, w, **options).sum()

    with pytest.raises((RuntimeError, ValueError), match=words):
        D.per_sample_grads(loss)(randn(6, 3), ints(6, B, 2, 4))


@pytest.mark.compile
def test_compiled_bags_of_embeddings_have_their_norms():
    def loss(w, i):
        return F.embedding_bag(i, w, padding_idx=2).sin().sum()

    args = randn(6, 3), ints(6, B, 3, 4)
    norms = D.per_sample_grad_norms(loss)
    close(
        torch.compile(norms, fullgraph=True, backend="aot_eager")(*args), norms(*args)
    )


def test_a_map_of_no_features_has_the_norm_of_its_bias():
    params = {"w": randn(3, 0), "b": randn(3)}
    norms = D.per_sample_grad_norms(lambda p, x: F.linear(x, p["w"], p["b"]).sum())
    close(norms(params, randn(B, 0)), torch.full((B,), 3**0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, w: F.layer_norm(x, (4,), w),
        lambda x, w: F.rms_norm(x, (4,), w),
        lambda x, w: F.group_norm(x[None], 2, w),
    ],
    ids=["layer", "rms", "group"],
)
def test_a_scale_of_as_many_numbers_in_another_shape_is_refused_by_torch(norm):
    with pytest.raises(RuntimeError, match="Expected weight to be"):
        D.per_sample_grad_norms(lambda w, x: norm(x, w).sum())(randn(2, 2), randn(B, 4))


def test_a_layer_that_raises_is_no_use_of_its_weight():
    def loss(p, x):
        with contextlib.suppress(RuntimeError):
            F.linear(x, p["w"], p["b"])  # more outputs than biases
        return (x @ p["w"].T).sin().sum()

    params = {"w": randn(3, 4), "b": randn(2)}
    check(Case(loss, params, randn(B, 4, seed=1)))


@pytest.mark.compile
def test_compiled_the_attribute_t_of_a_weight_is_right():
    # Compilers do not show `.T` to modes; in eager code it has a rule.
    def loss(w, x):
        return (x @ w.T).tanh().sum()

    w, x = randn(2, 3), randn(4, 3)
    norms = D.per_sample_grad_norms(loss)

    def both(w, x):
        return norms(w, x), vmap(norms, (0, None))(torch.stack([w, w.cos()]), x)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(w, x), both(w, x), strict=True):
        close(got, want)


@pytest.mark.compile
def test_compiled_unflatten_and_rows_that_are_written_are_traced():
    def loss(w, x):
        rows = x.new_zeros(2, 4)
        rows[1] = w
        return (rows * x.unflatten(0, (2, 4))).sin().sum()

    w, x = randn(4), randn(B, 8)
    norms = D.per_sample_grad_norms(loss)
    compiled = torch.compile(norms, fullgraph=True, backend="aot_eager")
    close(compiled(w, x), norms(w, x))
