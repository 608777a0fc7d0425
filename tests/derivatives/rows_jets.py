"""Rows of ``jet`` and of what teaches it functions."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import pureopt as po
from tests.derivatives.row import OperatorRow, randn


def _taught(function):
    """A function of one argument that lets others stand in for tensors."""
    return torch.overrides.wrap_torch_function(lambda x: (x,))(function)


def _bump(x):
    return torch.exp(-x * x)


def _cube(x):
    return x * x * x


BUMP, CUBE = _taught(_bump), _taught(_cube)
po.derivatives.register_jet(BUMP, _bump)
po.derivatives.register_jet_derivative(CUBE, lambda x, _: 3 * x * x)


def series(f, *shape):
    """The series of ``f`` to order three along a curve, as a function of the curve."""

    def make(dtype):
        def expand(x, v, w):
            return po.derivatives.jet(f, x, (v, w, torch.zeros_like(x)))

        return expand, tuple(randn(*shape, seed=s, dtype=dtype) for s in range(3))

    return make


def attention(x):
    h = F.gelu(F.layer_norm(x, (4,)))
    return F.scaled_dot_product_attention(h, h, x).softmax(-1).logsumexp(0)


def system(x):
    eye = torch.eye(2, dtype=x.dtype, device=x.device)
    return torch.linalg.solve(x + 3 * eye, x.sin())


def tree(dtype):
    def f(params):
        return {
            "y": torch.tanh(torch.mv(params["w"], params["b"][0])),
            "n": params["w"].norm(),
        }

    def expand(x, v):
        return po.derivatives.jet(f, x, [v])

    def params(seed):
        w, b = randn(3, 2, seed=seed, dtype=dtype), randn(2, seed=seed + 1, dtype=dtype)
        return {"w": w, "b": (b,)}

    return expand, (params(0), params(2))


ROWS = [
    OperatorRow("jet-of-attention", "jet", series(attention, 1, 3, 4)),
    OperatorRow("jet-of-a-tree", "jet", tree),
    OperatorRow("jet-of-a-system", "jet", series(system, 2, 2)),
    OperatorRow("register-jet", "register_jet", series(BUMP, 3)),
    OperatorRow("register-jet-derivative", "register_jet_derivative", series(CUBE, 3)),
]
