"""Rows of the operators on symmetric linear operators."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import pureopt as po
from tests.derivatives.row import OperatorRow, randn

KEY = po.random.key(3)


def symmetric(n, seed=0, dtype=torch.float64):
    a = randn(n, n, seed=seed, dtype=dtype)
    return a + a.mT


def operator(a):
    """The matrix as an operator on a tree of two leaves of half the size."""
    n = a.shape[0] // 2

    def matvec(v):
        w = a @ torch.cat([v["x"], v["y"][0]])
        return {"x": w[:n], "y": (w[n:],)}

    return matvec, {"x": a[0, :n], "y": (a[0, n:],)}


def lanczos(dtype):
    def f(a, start):
        return po.derivatives.lanczos(
            operator(a)[0], {"x": start[:4], "y": (start[4:],)}, 2
        )

    return f, (symmetric(8, dtype=dtype), randn(8, seed=1, dtype=dtype))


def spectral_density(dtype):
    def f(a, key):
        spectrum = po.derivatives.spectral_density(
            *operator(a), key=key, probes=2, steps=2
        )
        grid = a.new_tensor([-1.0, 0.5])
        return (
            spectrum,
            spectrum.density(grid, width=0.5),
            spectrum.integrate(torch.cos),
            spectrum.cumulative(grid),
        )

    return f, (symmetric(8, dtype=dtype), KEY)


def log_determinant(dtype):
    def f(a, key):
        matvec, like = operator(a.mT @ a / 8 + torch.eye(8).to(a))
        return po.derivatives.log_determinant(matvec, like, key=key, probes=2, steps=2)

    return f, (symmetric(8, dtype=dtype), KEY)


def top_eigenpairs(dtype):
    def f(a, key):
        return po.derivatives.top_eigenpairs(*operator(a), 2, key=key, steps=2)

    return f, (symmetric(8, dtype=dtype), KEY)


def trace(name):
    def make(dtype):
        def f(a, key):
            return getattr(po.derivatives, name)(*operator(a), key=key, matvecs=7)

        return f, (symmetric(8, dtype=dtype), KEY)

    return make


def trace_of_a_hessian(dtype):
    def f(x, key):
        def loss(x):
            return (x["a"] @ x["b"]).tanh().sum()

        def matvec(v):
            return po.derivatives.hvp(loss, x, v)

        return po.derivatives.trace_xtrace(matvec, x, key=key, matvecs=4)

    x = {"a": randn(2, 3, dtype=dtype), "b": randn(3, 2, seed=1, dtype=dtype)}
    return f, (x, KEY)


def network(params, x):
    h = F.layer_norm(F.linear(x, params["w"], params["b"]).tanh(), (4,), params["s"])
    return h @ params["v"]


def network_params(dtype):
    return {
        "w": randn(4, 3, seed=1, dtype=dtype),
        "b": randn(4, seed=2, dtype=dtype),
        "s": randn(4, seed=3, dtype=dtype),
        "v": randn(4, 2, seed=4, dtype=dtype),
    }


def logits(params, x):
    return F.linear(x, params["w"], params["b"])


def logits_params(dtype):
    return {"w": randn(3, 2, seed=1, dtype=dtype), "b": randn(3, seed=2, dtype=dtype)}


def kfac(dtype):
    def f(params, x):
        curvature = po.derivatives.kfac(
            logits, params, (x,), likelihood=po.derivatives.Categorical()
        )
        return (
            curvature,
            curvature.matvec(params),
            curvature.solve(params, damping=0.1),
            curvature.log_determinant(damping=0.1),
            curvature.trace(),
        )

    return f, (logits_params(dtype), randn(5, 2, dtype=dtype))


def kfac_sampled(dtype):
    def f(params, x, key):
        return po.derivatives.kfac_sampled(
            logits,
            params,
            (x,),
            likelihood=po.derivatives.Bernoulli(),
            key=key,
            sharing="reduce",
        )

    return f, (logits_params(dtype), randn(5, 2, dtype=dtype), KEY)


def kfac_empirical(dtype):
    def f(params, x):
        def loss(params, x):
            return network(params, x).square().sum()

        return po.derivatives.kfac_empirical(loss, params, (x,))

    return f, (network_params(dtype), randn(5, 3, dtype=dtype))


# Nodes, values and vectors come from an eigendecomposition, whose derivative divides by
# differences of eigenvalues: the docstrings say that they are not to be differentiated.
ROWS = [
    OperatorRow("lanczos", "lanczos", lanczos),
    OperatorRow(
        "spectral-density", "spectral_density", spectral_density, differentiable=False
    ),
    OperatorRow(
        "log-determinant", "log_determinant", log_determinant, differentiable=False
    ),
    OperatorRow(
        "top-eigenpairs", "top_eigenpairs", top_eigenpairs, differentiable=False
    ),
    OperatorRow("trace-hutchinson", "trace_hutchinson", trace("trace_hutchinson")),
    OperatorRow("trace-hutchpp", "trace_hutchpp", trace("trace_hutchpp")),
    OperatorRow("trace-xtrace", "trace_xtrace", trace("trace_xtrace")),
    OperatorRow("trace-of-a-hessian", "trace_xtrace", trace_of_a_hessian),
    # The root of the Fisher matrix of the outputs is an eigendecomposition.
    OperatorRow("kfac", "kfac", kfac, differentiable=False),
    OperatorRow("kfac-sampled", "kfac_sampled", kfac_sampled, differentiable=False),
    OperatorRow("kfac-empirical", "kfac_empirical", kfac_empirical),
]
