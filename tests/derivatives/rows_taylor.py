"""Rows of what is made of Taylor mode."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import pureopt as po
from tests.derivatives.row import OperatorRow, randn


def net(params, x):
    h = torch.tanh(F.linear(x, params["w"], params["b"]))
    return torch.exp(-h * h) @ params["v"]


def params(dtype: torch.dtype):
    return {
        "w": randn(4, 3, seed=1, dtype=dtype),
        "b": randn(4, seed=2, dtype=dtype),
        "v": randn(4, seed=3, dtype=dtype),
    }


def of_the_input(operator):
    """The operator on a net as a function of its input, parameters passed along."""

    def make(dtype: torch.dtype):
        def call(p, x):
            return operator(lambda x: net(p, x))(x)

        return call, (params(dtype), randn(3, dtype=dtype))

    return make


def of_a_number(dtype: torch.dtype):
    def call(a, x):
        return po.derivatives.nth_derivative(lambda x: (a * x).sin().exp(), 3)(x)

    return call, (randn(dtype=dtype), randn(seed=1, dtype=dtype))


def along(dtype: torch.dtype):
    def call(p, x, v):
        def f(x):
            return net(p, x)

        return po.derivatives.directional_derivatives(f, x, v, 3)

    return call, (params(dtype), randn(3, dtype=dtype), randn(3, seed=5, dtype=dtype))


ROWS = [
    OperatorRow("nth-derivative", "nth_derivative", of_a_number),
    OperatorRow("directional", "directional_derivatives", along),
    OperatorRow("laplacian", "laplacian", of_the_input(po.derivatives.laplacian)),
    OperatorRow(
        "laplacian-chunked",
        "laplacian",
        of_the_input(lambda f: po.derivatives.laplacian(f, chunk_size=2)),
    ),
    OperatorRow(
        "forward-laplacian",
        "forward_laplacian",
        of_the_input(po.derivatives.forward_laplacian),
    ),
    OperatorRow("bilaplacian", "bilaplacian", of_the_input(po.derivatives.bilaplacian)),
]
