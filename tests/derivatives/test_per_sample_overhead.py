"""What the one run of a recording must not lose, and what it must not cost."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.func import grad
from torch.nn import functional as F

import pureopt as po
from pureopt.derivatives._per_sample import _sums
from tests.derivatives.observers import Largest, counted
from tests.derivatives.per_sample_case import B, Case, close, of_module, reference
from tests.derivatives.row import randn

D = po.derivatives


def check_squares(case):
    squares = D.per_sample_squared_norms(case.loss)(case.params, *case.batch)
    leaves = zip(squares.values(), reference(case), strict=True)
    for got, leaf in leaves:
        close(got, leaf.square().sum(1))


def written_outputs(write):
    def loss(p, x, image):
        h = F.linear(x, p["w"], p["b"])
        maps = F.conv1d(image[None], p["k"])
        write(h)
        write(maps[0])
        return h.sin().sum() + (maps * maps.cos()).sum()

    params = {"w": randn(3, 4), "b": randn(3, seed=1), "k": randn(2, 1, 2, seed=2)}
    return Case(loss, params, randn(B, 2, 4, seed=3), randn(B, 1, 5, seed=4))


WRITES = {
    "all": lambda h: h.mul_(2),
    "rows": lambda h: h[:1].add_(1),
    "inplace": lambda h: F.relu(h, inplace=True),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_to_the_output_of_a_layer_leaves_its_gradient_alone(write):
    check_squares(written_outputs(write))


def test_an_output_that_nobody_uses_has_the_gradient_zero():
    def loss(p, x):
        F.linear(x, p["unused"])
        return F.linear(x, p["w"]).sin().sum()

    params = {"unused": randn(2, 3), "w": randn(2, 3, seed=1)}
    case = Case(loss, params, randn(B, 3, seed=2))
    check_squares(case)
    norms = D.per_sample_squared_norms(loss)
    assert torch.equal(norms(params, *case.batch)["unused"], torch.zeros(B).double())


def test_a_loss_that_does_not_depend_on_the_parameters_has_no_gradient():
    norms = D.per_sample_grad_norms(lambda w, x: x.sum())
    assert torch.equal(norms(randn(3), randn(B, 3)), torch.zeros(B).double())


def test_layers_of_what_all_samples_share_have_their_gradients():
    shared = randn(2, 3)

    def loss(p, x):
        return (F.linear(shared, p["w"], p["b"]) * x).sin().sum()

    params = {"w": randn(4, 3, seed=1), "b": randn(4, seed=2)}
    check_squares(Case(loss, params, randn(B, 2, 4, seed=3)))


def test_a_loss_that_catches_what_ends_the_recording_has_its_norms():
    def loss(p, x):
        try:
            y = grad(lambda w: (x @ w).sin())(p["w"]).sum()
        except Exception:  # noqa: BLE001
            y = (x @ p["w"]).cos()
        return y + (x @ p["w"]).tanh() * p["s"]

    check_squares(Case(loss, {"w": randn(3), "s": randn(seed=1)}, randn(B, 3, seed=2)))


def test_a_recording_ends_where_the_first_transform_begins():
    def inner(w, x):
        return (x @ w).sin()

    counting, calls = counted(lambda w, x: inner(w, x) ** 2)

    def loss(p, x):
        return grad(inner)(p["w"], x).sum() + counting(p["w"], x)

    params, x = {"w": randn(3)}, randn(B, 3, seed=1)
    got = D.per_sample_grad_norms(loss)(params, x)
    assert len(calls) == 1
    close(got, reference(Case(loss, params, x))[0].norm(dim=1))


def test_a_call_leaves_no_tensor_behind():
    case = of_module(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh()), randn(B, 4), randn(B, 3)
    )
    norms = D.per_sample_grad_norms(case.loss)

    def alive():
        norms(case.params, *case.batch)
        # Reading the class asks no tensor for anything.
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        assert alive() == alive()
    finally:
        gc.enable()


def test_on_a_cpu_gradients_are_formed_in_portions_that_a_cache_holds(monkeypatch):
    net = nn.Conv2d(4, 8, 5)
    case = of_module(net, randn(64, 4, 20, 20), randn(64, 8, 16, 16), inside=True)
    largest = []
    for cached in (2**22, 2**15):
        monkeypatch.setattr(_sums, "CACHED", cached)
        with Largest() as sizes:
            got = D.per_sample_grad_norms(case.loss)(case.params, *case.batch)
        close(got, torch.cat(reference(case), 1).norm(dim=1))
        largest.append(sizes.numel)
    # All images unfolded at once; the outputs of the convolution.
    assert largest == [64 * 100 * 256, 64 * 8 * 256]


@pytest.mark.compile
def test_compiled_writing_to_the_input_of_a_layer_is_refused_too():
    def loss(w, x):
        h = x.clone()
        y = F.linear(h, w)
        h.add_(y)
        return (h * y).sum()

    norms = D.per_sample_grad_norms(loss)
    compiled = torch.compile(norms, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        compiled(randn(3, 3), randn(B, 3))


@pytest.mark.compile
def test_compiled_writing_to_the_output_of_a_layer_leaves_its_gradient_alone():
    case = written_outputs(WRITES["rows"])
    norms = D.per_sample_grad_norms(case.loss)
    compiled = torch.compile(norms, fullgraph=True, backend="aot_eager")
    want = torch.cat(reference(case), 1).norm(dim=1)
    close(compiled(case.params, *case.batch), want)
