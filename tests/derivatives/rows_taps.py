"""Rows of ``tap`` and ``grad_at``."""

from __future__ import annotations

import torch
from torch.func import grad

import pureopt as po
from tests.derivatives.row import OperatorRow, randn

tap, grad_at = po.derivatives.tap, po.derivatives.grad_at


def f(w, x):
    h = tap((x @ w).tanh(), "hidden")
    return (tap({"square": h * h}, "squares")["square"] * h).sum()


def at_two(dtype: torch.dtype):
    args = randn(3, 2, seed=1, dtype=dtype), randn(4, 3, seed=2, dtype=dtype)
    return grad_at(f, ["hidden", "squares"]), args


def outside(dtype: torch.dtype):
    args = randn(3, 2, seed=1, dtype=dtype), randn(4, 3, seed=2, dtype=dtype)
    return grad(f), args


ROWS = [
    OperatorRow("grad-at", "grad_at", at_two),
    OperatorRow("tap", "tap", outside),
]
