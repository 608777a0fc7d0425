"""What per-sample quantities refuse, and in which words."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pureopt as po
from tests.derivatives.per_sample_case import B, ints
from tests.derivatives.row import randn

D = po.derivatives


def test_a_table_that_is_renormed_in_place_is_refused_in_words():
    def loss(w, i):
        return F.embedding(i, w, max_norm=1.0).sum()

    for quantity in (D.per_sample_grads, D.per_sample_grad_norms):
        with pytest.raises(po.DerivativeError, match="writes in place a batched value"):
            quantity(loss)(randn(6, 3), ints(6, B, 4))


@pytest.mark.parametrize(
    "write",
    [
        lambda h, y: h.add_(y),
        lambda h, y: h[:1].mul_(2),
        lambda h, y: F.relu(h, inplace=True),
    ],
    ids=["add", "view", "inplace"],
)
def test_writing_to_the_input_of_a_layer_is_refused_as_by_torch(write):
    def loss(w, x):
        h = x.clone()
        y = F.linear(h, w)
        write(h, y)
        return (h * y).sum()

    for quantity in (D.per_sample_grad_norms, D.per_sample_grads):
        with pytest.raises(po.DerivativeError, match="writes in place to a value"):
            quantity(loss)(randn(3, 3), randn(B, 3))


def loss_of(w, x):
    return (w * x).sum()


MISTAKES = {
    "other-sizes": (
        lambda p, x, y: (p * x).sum() + y,
        (randn(2), randn(3, 2), randn(4)),
        "first dimension is the sample, got 3 and 4 samples. Close over",
    ),
    "no-tensor": (loss_of, (randn(2), 3.0), "is the sample, got `float`"),
    "nothing": (loss_of, (randn(2),), "first dimension is the sample, got nothing"),
    "no-sample": (loss_of, (randn(2), randn(0, 2)), "or more, got 0."),
    "no-scalar": (
        lambda w, x: w * x,
        (randn(2), randn(3, 2)),
        "must return a 0-d floating tensor, got a tensor of shape (2,)",
    ),
    "integers": (
        loss_of,
        (torch.arange(2), randn(3, 2)),
        "must hold only floating-point tensors, got a tensor of dtype torch.int64",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("quantity", ["grad_gram", "per_sample_grads"])
def test_what_is_wrong_with_a_batch_is_said(name, quantity):
    loss, args, words = MISTAKES[name]
    with pytest.raises(po.PureoptError) as raised:
        getattr(D, quantity)(loss)(*args)
    assert str(raised.value).startswith(f"`{quantity}(")
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ["grad_variance", "gsnr", "noise_scale"])
def test_a_variance_needs_two_samples(name):
    with pytest.raises(po.DerivativeError, match="hold 2 samples or more, got 1"):
        getattr(D, name)(loss_of)(randn(2), randn(1, 2))


@pytest.mark.parametrize("quantity", ["per_sample_grad_norms", "per_sample_grads"])
def test_batch_norm_in_train_mode_is_refused_and_told_why(quantity):
    net = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)).double()
    apply, params, buffers = po.functionalize(net)

    def loss(params, x):
        return apply(params, buffers, x[None])[0].square().sum()

    with pytest.raises(po.DerivativeError) as raised:
        getattr(D, quantity)(loss)(params, randn(B, 2, 4))
    assert "batch norm" in str(raised.value)
    assert "eval mode" in str(raised.value)


@pytest.mark.parametrize("quantity", ["per_sample_grad_norms", "per_sample_grads"])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.Sequential(nn.Unflatten(1, (3, 1)), nn.InstanceNorm1d(3)),
        lambda y: F.batch_norm(y, None, None, training=True),
    ],
    ids=["batch", "instance", "function"],
)
def test_so_is_that_of_a_single_value(quantity, norm):
    w = randn(3, 2)

    def loss(w, x):
        return norm(F.linear(x[None], w).float()).square().sum()

    with pytest.raises(po.DerivativeError) as raised:
        getattr(D, quantity)(loss)(w, randn(B, 2))
    assert "batch or instance norm in train mode" in str(raised.value)
    assert "eval mode" in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "per_sample_grads",
        "per_sample_grad_norms",
        "per_sample_squared_norms",
        "grad_gram",
        "grad_variance",
        "gsnr",
        "noise_scale",
        "gradient_diversity",
    ],
)
def test_a_loss_is_a_function(name):
    with pytest.raises(po.DerivativeError, match=rf"{name}\(loss=.* got `int`"):
        getattr(D, name)(3)


def test_random_numbers_are_refused_and_told_why():
    def loss(w, x):
        return (w * F.dropout(x)).sum()

    with pytest.raises(po.DerivativeError) as raised:
        D.per_sample_grad_norms(loss)(randn(2), randn(3, 2))
    assert "random numbers under vmap" in str(raised.value)
    assert "pureopt.random" in str(raised.value)


def test_a_loss_may_store_in_its_tree():
    def loss(p, x):
        p["w"] = 2 * p["w"]
        return (p["w"] * x).sum() ** 3

    params, x = {"w": torch.ones(2)}, torch.ones(3, 2)
    grads = D.per_sample_grads(loss)(params, x)["w"]
    assert grads.tolist() == [[96, 96]] * 3  # 3 * 4 ** 2 * 2
    assert params["w"].tolist() == [1, 1]
    norms = D.per_sample_grad_norms(loss)(params, x)
    # A few roundings of float32.
    torch.testing.assert_close(norms, grads.norm(dim=1), rtol=1e-6, atol=0)
