"""Rows of ``exact`` and ``exact_ops``."""

from __future__ import annotations

import torch
from torch.func import grad, jacfwd
from torch.nn import functional as F

import pureopt as po
from tests.derivatives.row import OperatorRow, randn


def normed(x):
    return F.layer_norm(x, x.shape).pow(3).sum()


def nested(dtype: torch.dtype):
    return jacfwd(grad(po.derivatives.exact(normed))), (randn(4, dtype=dtype),)


def scoped(dtype: torch.dtype):
    def f(x):
        with po.derivatives.exact_ops():
            return normed(x)

    return grad(f), (randn(4, dtype=dtype),)


ROWS = [
    OperatorRow("exact", "exact", nested),
    OperatorRow("exact-ops", "exact_ops", scoped),
]
