"""A loss of one sample, and its gradients by ``vmap(grad)``."""

from __future__ import annotations

import torch
from torch.func import grad, vmap
from torch.nn import functional as F

import pureopt as po
from pureopt._tree import tree_leaves
from tests.derivatives.row import randn

D = po.derivatives
# Sums of a few thousand products of numbers of order one, in two orders: 1e4 roundings
# of float64 at the very worst.
RTOL = 1e-10
B = 5


class Case:
    """A loss of one sample, parameters, a batch, and the leaves without a rule."""

    def __init__(self, loss, params, *batch, opaque=()):
        self.loss, self.params, self.batch = loss, params, batch
        self.opaque = set(opaque)


def ints(high, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, shape, generator=generator)


def functional(module):
    """What ``functionalize`` returns, with parameters from fixed seeds."""
    module.double()
    for i, p in enumerate(module.parameters()):
        p.data = 0.5 * randn(*p.shape, seed=100 + i)
    return po.functionalize(module)


def of_module(module, x, target, *, opaque=(), inside=False):
    """The squared error of a module; ``inside`` gives it samples as batches of one."""
    apply, params, buffers = functional(module)

    def loss(params, x, target):
        y = apply(params, buffers, x[None] if inside else x)[0]
        y = y[0] if inside else y
        if target.is_floating_point():
            return (y - target).square().sum()
        return F.cross_entropy(y, target)

    return Case(loss, params, x, target, opaque=opaque)


def reference(case):
    """The gradients per sample, leaf by leaf, as rows."""
    in_dims = (None, *[0] * len(case.batch))
    grads = vmap(grad(case.loss), in_dims)(case.params, *case.batch)
    return [g.reshape(g.shape[0], -1) for g in tree_leaves(grads)]


def close(got, want, scale=None):
    """Relative to the largest entry: sums may cancel in an entry."""
    scale = want.abs().max() if scale is None else scale
    torch.testing.assert_close(got, want, rtol=0, atol=float(RTOL * scale) + 1e-300)


def noise(g):
    """The closed forms: trace of the covariance and squared norm of the mean."""
    trace = g.var(0).sum()
    return trace, g.mean(0).square().sum() - trace / len(g)


def check(case):
    leaves = reference(case)
    g = torch.cat(leaves, 1)
    args = case.params, *case.batch
    close(D.per_sample_grad_norms(case.loss)(*args), g.norm(dim=1))
    squares = tree_leaves(D.per_sample_squared_norms(case.loss)(*args))
    for got, leaf in zip(squares, leaves, strict=True):
        close(got, leaf.square().sum(1))
    close(D.grad_gram(case.loss)(*args), g @ g.mT)
    variances = tree_leaves(D.grad_variance(case.loss)(*args))
    for got, leaf in zip(variances, leaves, strict=True):
        # Its rounding error is relative to the mean square.
        close(got.reshape(-1), leaf.var(0), leaf.square().mean(0).max())
    ratio, trace, signal = D.noise_scale(case.loss)(*args)
    close(trace, noise(g)[0])
    close(signal, noise(g)[1], g.square().sum())
    assert ratio == trace / signal
    diversity = D.gradient_diversity(case.loss)(*args)
    close(diversity, g.square().sum() / g.sum(0).square().sum())
