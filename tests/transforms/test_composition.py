"""`>>`: data flows left to right, and state and answers go along."""

from __future__ import annotations

import torch

import pureopt as po

W, G = torch.zeros(2), torch.tensor([3.0, 4.0])


def test_a_chain_steps_with_what_its_links_emit():
    chained = po.ClipByGlobalNorm(1.0) >> po.SGD(lr=1.0, momentum=0.5)
    new, (clip_state, sgd_state) = chained.step(W, chained.init(W), G)
    torch.testing.assert_close(new, -G / 5)  # -G / |G|, to the rounding of 1/5
    assert clip_state == ()
    torch.testing.assert_close(sgd_state.mu, G / 5)


def test_composition_is_associative():
    a, b, c = po.ClipByGlobalNorm(4.0), po.ClipByGlobalNorm(1.0), po.SGD(lr=1.0)
    steps = [(a >> b) >> c, a >> (b >> c), po.chain(a, b, c)]
    results = [t.step(W, t.init(W), G)[0] for t in steps]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_chain_of_one_is_that_one():
    sgd = po.SGD(lr=0.1)
    assert po.chain(sgd) is sgd


def test_a_chain_that_ends_in_a_wrapper_has_its_answer():
    chained = po.ClipByGlobalNorm(1.0) >> po.EMA(po.SGD(lr=1.0), decay=0.5)
    new, state = chained.step(W, chained.init(W), G)
    torch.testing.assert_close(new, -G / 5)
    torch.testing.assert_close(chained.eval_params(new, state), -G / 10)
    assert chained.restart(state)[1].step == state[1].step


def test_gradients_of_a_wider_dtype_are_taken_and_the_leaf_keeps_its_own():
    w = torch.zeros(2, dtype=torch.bfloat16)
    for transform in (po.SGD(lr=1.0), po.Adam(), po.ClipByGlobalNorm(1.0) >> po.SGD()):
        new, _ = transform.step(w, transform.init(w), G.double())
        assert new.dtype == torch.bfloat16


def test_a_tree_may_hold_an_empty_tensor():
    params = {"w": torch.ones(2), "none": torch.zeros(0, 3)}
    adam = po.ClipByGlobalNorm(1.0) >> po.Adam(lr=0.5)
    new, _ = adam.step(params, adam.init(params), params)
    assert new["none"].shape == (0, 3)
    assert new["w"].isfinite().all()
