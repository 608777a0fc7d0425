"""Functions that do what a transform of torch.func refuses."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.derivatives.every_operator import X

STORE = torch.zeros(3, dtype=torch.float64)


def adds(x):
    x += 1
    return x.pow(2).sum()


def writes_entry(x):
    x[0] = 1.0
    return x.pow(2).sum()


def writes_view(x):
    x[:2].mul_(2)
    return x.pow(2).sum()


def stores(x):
    STORE.add_(x)
    return x.sum()


def loads(x):
    LINEAR.load_state_dict({"weight": x[None]})
    return LINEAR(X).sum()


LINEAR = nn.Linear(3, 1, bias=False, dtype=torch.float64)


def fills(x):
    out = torch.zeros(3, dtype=x.dtype)
    out[0] = x[0]
    return out.sum()


def overwrites(x):
    y = x.exp()
    y += 1
    return y.sum()


def entropy(x):
    return F.binary_cross_entropy_with_logits(x, torch.ones_like(x))


def out_argument(x):
    out = torch.empty(3, dtype=x.dtype)
    torch.sin(x, out=out)
    return out.sum()


def branches(x):
    return x.sum() if x.sum() > 0 else -x.sum()


def items(x):
    return x.sum() * x[0].item()


def floats(x):
    return x.sum() * float(x[0])


def lists(x):
    return x.sum() * sum(x.tolist())


def numpies(x):
    return x.sum() * torch.as_tensor(x.detach().numpy())


def draws(x):
    return F.dropout(x).sum()


def looks_up(x):
    return F.embedding(torch.tensor([0, 2]), x[:, None], sparse=True).exp().sum()


def masks(x):
    return x[x > 0].sum()


def grid(x):
    points = x.expand(1, 2, 1, 3)[..., :2]
    return F.grid_sample(x.expand(1, 1, 3, 3), points, align_corners=True).sum()


def ctc(x):
    one = torch.tensor([1])
    return F.ctc_loss(x.expand(5, 1, 3).log_softmax(-1), one[None], 5 * one, one)


def checkpoints(x):
    return checkpoint(torch.sin, x, use_reentrant=False).sum()


def calls_backward(x):
    y = x.detach().clone().requires_grad_()
    y.pow(2).sum().backward()
    return (x * y.grad).sum()


def backpropagates(x):
    weight = torch.ones_like(X, requires_grad=True)
    (x * weight).pow(2).sum().backward()
    return (x * weight.grad).sum()


def calls_autograd(x):
    return torch.autograd.grad(x.pow(2).sum(), X)[0].sum()


def keeps_gradient(x):
    y = x.sin()
    y.retain_grad()
    return y.sum()


def hooks(x):
    y = x.sin()
    y.register_hook(lambda g: 2 * g)
    return y.sum()


def copies(x):
    return copy.deepcopy(x).sin().sum()


def indices(x):
    return x[x.nonzero()[:, 0]].sum()


class Bare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class ReverseOnly(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Mapped(ReverseOnly):
    generate_vmap_rule = True


def bare(x):
    return Bare.apply(x).sum()


def reverse_only(x):
    return ReverseOnly.apply(x).sum()


def normalizes(x):
    norm = nn.BatchNorm1d(3, dtype=torch.float64)
    with torch.no_grad():
        norm.num_batches_tracked = None  # else its counter is what is written to
    return norm(x * torch.arange(4.0)[:, None]).pow(2).sum()


def normalizes_module(x):
    return NORM(x * torch.arange(4.0)[:, None]).pow(2).sum()


NORM = nn.BatchNorm1d(3, dtype=torch.float64)


def recurs(x):
    return GRU(x[None, None])[0].sum()


GRU = nn.GRU(3, 3, dtype=torch.float64)


def number(x):
    return 1.0
