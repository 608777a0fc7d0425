"""Taylor mode along the parameters of modules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import pureopt as po
from pureopt.derivatives import exact, jet
from tests.derivatives.row import randn


class Tied(nn.Module):
    """A weight in two places, and a buffer that it is added to."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x):
        self.total = self.total + self.second.weight.sum(0)
        return self.second(self.first(x).tanh()) * self.total


MODULES = {
    "mlp": nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.LayerNorm(3), nn.Linear(3, 2)),
    "cnn": nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Flatten()),
    "tied": Tied(),
    "encoder": nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
    "lstm": nn.LSTM(4, 3),
    "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)),
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODULES)
def test_the_parameters_of_a_module_may_be_series(name, train):
    apply, params, buffers = po.functionalize(MODULES[name].double().train(train))
    direction = {k: randn(*w.shape, seed=i) for i, (k, w) in enumerate(params.items())}
    x = randn(3, 2, 4)

    def f(params):
        out = apply(params, buffers, x)[0]
        return (out[0] if isinstance(out, tuple) else out).sin().sum()

    def line(t):
        return f({k: w + t * direction[k] for k, w in params.items()})

    zero = {k: torch.zeros_like(w) for k, w in params.items()}
    value, series = jet(f, params, (direction, zero, zero))
    t, slope = torch.zeros((), dtype=torch.float64), exact(line)
    torch.testing.assert_close(value, line(t), rtol=1e-13, atol=1e-13)
    for k, got in enumerate(series, 1):
        slope = grad(slope)
        # Third derivatives through a few layers; the largest are some thousand.
        torch.testing.assert_close(
            math.factorial(k) * got, slope(t), rtol=1e-10, atol=1e-9
        )


def test_a_buffer_that_depends_on_a_series_is_one():
    apply, params, buffers = po.functionalize(MODULES["tied"].double())
    x = randn(2, 4)
    ones = {k: torch.ones_like(w) for k, w in params.items()}
    _, (slope,) = jet(lambda p: apply(p, buffers, x)[1]["total"], params, (ones,))
    # Each is the sum of a column of four weights.
    assert torch.equal(slope, torch.full((4,), 4.0, dtype=torch.float64))


def test_a_buffer_that_is_a_series_may_be_handed_on():
    apply, params, buffers = po.functionalize(MODULES["tied"].double())
    x = randn(2, 4)
    ones = {k: torch.ones_like(w) for k, w in params.items()}

    def twice(params):
        _, new = apply(params, buffers, x)
        return apply(params, new, x)[1]["total"]

    _, (slope,) = jet(twice, params, (ones,))
    # The sum of a column of four weights, twice.
    assert torch.equal(slope, torch.full((4,), 8.0, dtype=torch.float64))


@pytest.mark.compile
def test_the_curvature_along_the_parameters_of_a_module_is_compiled():
    apply, params, buffers = po.functionalize(MODULES["mlp"].double())
    x = randn(5, 4)

    def curvature(params, v):
        f = lambda p: apply(p, buffers, x)[0].square().mean()  # noqa: E731
        return jet(f, params, (v, None))[1][1]

    v = {k: torch.ones_like(w) for k, w in params.items()}
    compiled = torch.compile(curvature, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params, v), curvature(params, v))


def test_functional_call_takes_no_series():
    net = nn.Linear(4, 1)
    params = {k: w.detach() for k, w in net.named_parameters()}
    with pytest.raises(po.DerivativeError, match="whose `apply` takes them"):
        jet(lambda p: functional_call(net, p, (randn(4),)), params, (params,))
