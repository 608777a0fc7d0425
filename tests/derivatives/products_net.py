"""The net whose products and arrays are compared with those of torch.func."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch.nn import functional as F

from pureopt._tree import ravel, unravel
from tests.derivatives.row import randn

# Two routes to one number in float64, each with a few hundred roundings of terms of
# size one to a hundred: 1e-10 is what the package promises, 1e-12 what is seen.
SAME = {"rtol": 1e-10, "atol": 1e-11}


def net(p, x):
    """A smooth net without the kernels that torch differentiates wrongly."""
    h = torch.tanh(F.linear(x, p["w1"], p["b1"]))
    return F.softplus(F.linear(h, p["w2"]))


def params(seed=0):
    return OrderedDict(
        w1=randn(4, 3, seed=seed),
        b1=randn(4, seed=seed + 1),
        w2=randn(5, 4, seed=seed + 2),
    )


X = randn(6, 3, seed=10)
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])


def value(p):
    return F.cross_entropy(net(p, X), LABELS)


def dense(f, p):
    """The matrix of a map between trees, column by column."""
    n = ravel(p).numel()
    columns = [ravel(f(unravel(e, p))) for e in torch.eye(n, dtype=torch.float64)]
    return torch.stack(columns, 1)


def flat_hessian(f, p):
    """By torch.func over a vector: no tree takes part."""
    return torch.func.hessian(lambda x: f(unravel(x, p)))(ravel(p))
