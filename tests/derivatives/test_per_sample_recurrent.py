"""Gradients per sample of recurrent layers, whose kernels ``vmap`` refuses."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pack_padded_sequence

from pureopt import DerivativeError
from pureopt import derivatives as D
from pureopt.derivatives._per_sample._record import record
from tests.derivatives.recurrent_modules import LANES, layer, value, weights
from tests.derivatives.row import randn


def one_by_one(loss, params, xs):
    """The gradients of the samples, each by torch's own kernels."""
    rows = []
    for x in xs:
        w = {k: v.clone().requires_grad_() for k, v in params.items()}
        rows.append(torch.autograd.grad(loss(w, x), list(w.values())))
    return [torch.stack(leaf) for leaf in zip(*rows, strict=True)]


PER_SAMPLE = {
    **LANES,
    "deep": lambda: layer("LSTM", num_layers=2, bidirectional=True, batch_first=True),
}


@pytest.mark.parametrize("reparametrized", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("name", PER_SAMPLE)
def test_gradients_per_sample_are_those_of_a_loop(name, reparametrized):
    module = PER_SAMPLE[name]()
    params, xs = weights(module), randn(5, 3, 3)

    def loss(w, x):
        if reparametrized:  # which has no rule
            w = {k: v * v.square().sum() for k, v in w.items()}
        x = x[0] if name.endswith("Cell") else x
        return value(functional_call(module, w, (x,))).sin().sum()

    # Each weight of each layer has a rule, but where it is scaled before.
    assert set(record("test", loss, params, (xs,)).opaque) == {reparametrized}
    expected = one_by_one(loss, params, xs)
    g = torch.cat([leaf.flatten(1) for leaf in expected], 1)
    # Relative to the largest: some hundred products in a sum.
    got = D.per_sample_grads(loss)(params, xs)
    torch.testing.assert_close(list(got.values()), expected, rtol=1e-12, atol=1e-13)
    norms = D.per_sample_grad_norms(loss)(params, xs)
    torch.testing.assert_close(norms, g.norm(dim=1), rtol=1e-12, atol=0)
    gram = D.grad_gram(loss)(params, xs)
    torch.testing.assert_close(gram, g @ g.mT, rtol=1e-12, atol=1e-11)


def test_gradients_per_sample_behind_a_frozen_layer_are_those_of_a_loop():
    module, xs = layer("GRU"), randn(5, 4, 3)
    loss = lambda w, x: module(x)[0][-1] @ w["v"]  # noqa: E731
    norms = D.per_sample_grad_norms(loss)({"v": randn(4)}, xs)
    expected = module(xs.transpose(0, 1))[0][-1].norm(dim=1)
    # Of numbers below one.
    torch.testing.assert_close(norms, expected.detach(), rtol=1e-13, atol=0)


def ends(module):
    """The loss of a sequence with its length, packed and padded."""

    def packed(w, x, length):
        steps = pack_padded_sequence(x.unsqueeze(1), length.unsqueeze(0))
        return functional_call(module, w, (steps,))[1].sin().sum()

    def padded(w, x, length):
        y = functional_call(module, w, (x,))[0]
        return y[length[None] - 1].sin().sum()

    return packed, padded


def test_lengths_of_their_own_for_each_sample_are_refused_and_told_what_to_do():
    module = layer("GRU")
    params, xs, lengths = weights(module), randn(4, 5, 3), torch.tensor([2, 5, 1, 4])
    packed, padded = ends(module)
    lanes = vmap(D.exact(packed), (None, 0, 0))
    for call in (D.per_sample_grads(packed), D.per_sample_grad_norms(packed), lanes):
        with pytest.raises(
            DerivativeError, match=r"pack_padded_sequence.*Run the padded"
        ):
            call(params, xs, lengths)
    # What it says to do is the same.
    each = [
        one_by_one(lambda w, x, n=n: packed(w, x, n), params, x.unsqueeze(0))
        for x, n in zip(xs, lengths, strict=True)
    ]
    want = [torch.cat(leaf) for leaf in zip(*each, strict=True)]
    got = D.per_sample_grads(padded)(params, xs, lengths)
    # Some hundred products of numbers below one.
    torch.testing.assert_close(list(got.values()), want, rtol=1e-12, atol=1e-13)
