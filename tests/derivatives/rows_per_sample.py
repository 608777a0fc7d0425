"""Rows of the quantities of the gradients per sample."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import pureopt as po
from tests.derivatives.row import OperatorRow, randn


def loss(params, x, y):
    return (F.linear(x, params["w"], params["b"]).tanh() - y).square().sum()


def penalized(params, x, y):
    """The penalty is a use of ``w`` that has no rule."""
    return loss(params, x, y) + 0.1 * params["w"].pow(2).sum()


def make(name: str, loss=loss):
    def made(dtype: torch.dtype):
        params = {
            "w": randn(3, 2, seed=1, dtype=dtype),
            "b": randn(3, seed=2, dtype=dtype),
        }
        batch = randn(4, 2, seed=4, dtype=dtype), randn(4, 3, seed=5, dtype=dtype)
        return getattr(po.derivatives, name)(loss), (params, *batch)

    return made


NAMES = [
    "grad_gram",
    "grad_variance",
    "gradient_diversity",
    "gsnr",
    "noise_scale",
    "per_sample_grad_norms",
    "per_sample_grads",
    "per_sample_squared_norms",
]
ROWS = [
    *(OperatorRow(name.replace("_", "-"), name, make(name)) for name in NAMES),
    OperatorRow("noise-scale-penalized", "noise_scale", make("noise_scale", penalized)),
]
