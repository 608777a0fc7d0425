"""Rows of the products with second and third derivatives, and of the dense arrays."""

from __future__ import annotations

import torch
from torch.func import vmap
from torch.nn import functional as F

import pureopt as po
from tests.derivatives.row import OperatorRow, randn

D = po.derivatives


def params(dtype: torch.dtype):
    return {"w": randn(3, 2, seed=1, dtype=dtype), "b": randn(3, seed=2, dtype=dtype)}


def direction(dtype: torch.dtype, seed: int = 3):
    return {
        "w": randn(3, 2, seed=seed, dtype=dtype),
        "b": randn(3, seed=seed + 1, dtype=dtype),
    }


def data(dtype: torch.dtype):
    return randn(4, 2, seed=9, dtype=dtype)


def model(p, x):
    """A layer with a normalization whose kernel is wrong above first order."""
    return F.layer_norm(F.linear(x, p["w"], p["b"]), (3,)).tanh()


def value(x):
    return lambda p: model(p, x).pow(3).sum() + (p["w"] ** 2).sum()


def hvp(dtype: torch.dtype):
    def use(p, v, x):
        return D.hvp(value(x), p, v)

    return use, (params(dtype), direction(dtype), data(dtype))


def vhp(dtype: torch.dtype):
    def use(p, v, x):
        return D.vhp(value(x), p, v)

    return use, (params(dtype), direction(dtype), data(dtype))


def third_order_product(dtype: torch.dtype):
    def use(p, u, v, x):
        return D.third_order_product(value(x), p, u, v)

    return use, (params(dtype), direction(dtype), direction(dtype, 5), data(dtype))


def wide(dtype: torch.dtype):
    """Nine inputs and twelve outputs: forward mode."""

    def use(p, x):
        return D.jacobian(lambda p: model(p, x), chunk_size=5)(p)

    return use, (params(dtype), data(dtype))


def tall(dtype: torch.dtype):
    """Nine inputs and four outputs, in a tree: reverse mode."""

    def use(p, x):
        def outputs(p):
            y = model(p, x)
            return {"mean": y.mean(0), "square": y.square().sum()}

        return D.jacobian(outputs, chunk_size=3)(p)

    return use, (params(dtype), data(dtype))


def hessian(dtype: torch.dtype):
    def use(p, x):
        return D.hessian(value(x), chunk_size=5)(p)

    return use, (params(dtype), data(dtype))


def hessians(dtype: torch.dtype):
    """Of each sample: torch's own, in forward mode, do not compile under vmap."""

    def use(x, w):
        return vmap(D.hessian(lambda x: (w @ x).sin().prod()))(x)

    return use, (data(dtype), randn(3, 2, seed=1, dtype=dtype))


def diagonals(dtype: torch.dtype):
    def use(x, w):
        return vmap(D.hessian_diag(lambda x: (w @ x).sin().prod()))(x)

    return use, (data(dtype), randn(3, 2, seed=1, dtype=dtype))


def hessian_diag(dtype: torch.dtype):
    def use(p, x):
        return D.hessian_diag(value(x), chunk_size=5)(p)

    return use, (params(dtype), data(dtype))


def hessian_diag_estimate(dtype: torch.dtype):
    def use(p, x, key):
        return D.hessian_diag_estimate(value(x), p, key=key, samples=5, chunk_size=2)

    return use, (params(dtype), data(dtype), po.random.key(0))


def ggnvp(dtype: torch.dtype):
    def use(p, v, x):
        labels = torch.arange(4, device=x.device) % 3
        return D.ggnvp(
            lambda p: model(p, x), lambda z: F.cross_entropy(z, labels), p, v
        )

    return use, (params(dtype), direction(dtype), data(dtype))


def fisher(dtype: torch.dtype):
    """All likelihoods without a parameter, each of outputs of its own."""
    likelihoods = {"one": D.Categorical(), "yes": D.Bernoulli(), "many": D.Poisson()}

    def likelihood(z, u):
        return {name: each(z[name], u[name]) for name, each in likelihoods.items()}

    def use(p, v, x):
        def outputs(p):
            return dict.fromkeys(likelihoods, model(p, x))

        return D.fisher_vp(outputs, p, v, likelihood=likelihood)

    return use, (params(dtype), direction(dtype), data(dtype))


def scaled_fisher(dtype: torch.dtype):
    def use(p, v, x, scale):
        likelihood = D.Gaussian(scale)
        return D.fisher_vp(lambda p: model(p, x), p, v, likelihood=likelihood)

    scale = randn(3, seed=8, dtype=dtype).exp()
    return use, (params(dtype), direction(dtype), data(dtype), scale)


def empirical_fisher_vp(dtype: torch.dtype):
    def loss(p, x, y):
        return F.mse_loss(model(p, x), y)

    def use(p, v, x, y):
        return D.empirical_fisher_vp(loss, p, (x, y), v)

    target = randn(4, 3, seed=7, dtype=dtype)
    return use, (params(dtype), direction(dtype), data(dtype), target)


ROWS = [
    OperatorRow("hvp", "hvp", hvp),
    OperatorRow("vhp", "vhp", vhp),
    OperatorRow("third-order-product", "third_order_product", third_order_product),
    OperatorRow("jacobian-forward", "jacobian", wide),
    OperatorRow("jacobian-reverse", "jacobian", tall),
    OperatorRow("hessian", "hessian", hessian),
    OperatorRow("hessian-per-sample", "hessian", hessians),
    OperatorRow("hessian-diag", "hessian_diag", hessian_diag),
    OperatorRow("hessian-diag-per-sample", "hessian_diag", diagonals),
    OperatorRow(
        "hessian-diag-estimate", "hessian_diag_estimate", hessian_diag_estimate
    ),
    OperatorRow("ggnvp", "ggnvp", ggnvp),
    OperatorRow("fisher", "fisher_vp", fisher),
    OperatorRow("fisher-gaussian", "fisher_vp", scaled_fisher),
    OperatorRow("empirical-fisher", "empirical_fisher_vp", empirical_fisher_vp),
]
