"""Networks and products in float32, with bounds on their rounding."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.derivatives.row import randn

EPS = torch.finfo(torch.float32).eps


def drawn(*shape, seed=0):
    return randn(*shape, seed=seed, dtype=torch.float32)


def assert_close(got, want, terms):
    """Sums of so many products of numbers of size one, in another order."""
    bound = 4 * terms * EPS * max(1.0, float(want.detach().abs().max()))
    assert got.shape == want.shape
    assert got.dtype == torch.float32
    assert float((got.detach().double() - want.double()).abs().max()) <= bound


def net(weights):
    def f(x):
        for w in weights[:-1]:
            x = torch.tanh(F.linear(x, w))
        return x @ weights[-1]

    return f
