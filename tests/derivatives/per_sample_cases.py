"""The losses whose gradients per sample are compared with ``vmap(grad)``."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import grad, hessian
from torch.nn import functional as F

import pureopt as po
from tests.derivatives.per_sample_case import B, Case, ints
from tests.derivatives.per_sample_cases_modules import (
    attention,
    attention_with_bias_kv,
    attention_with_padding,
    cnn,
    encoder,
    grouped_convolutions,
    mlp,
    tied_embedding,
    transposed_convolutions,
    unbatched_convolutions,
    unrolled,
    volumes,
    weight_norm,
    words,
)
from tests.derivatives.row import randn

D = po.derivatives


def tied_autoencoder(*positions):
    params = {
        "w": randn(4, 6),
        "b": randn(4, seed=1),
        "c": randn(6, seed=2),
        "s": randn(seed=3),
        "unused": randn(2, 2),
    }

    def loss(p, x):
        h = torch.tanh(x @ p["w"].T + p["b"])
        y = F.linear(h, p["w"].t(), p["c"])
        return (y * p["s"] - x - p["s"]).square().sum()

    return Case(loss, params, randn(B, *positions, 6, seed=4))


def products():
    params = {
        "w": randn(7, 5),
        "v": randn(7, seed=1),
        "u": randn(3, 5, seed=2),
        "q": randn(2, 5, seed=3),
        "d": randn(5, seed=4),
    }

    def loss(p, x):
        hidden = p["w"] @ x[0] - x.sum()
        both = (p["q"] @ x.mT).sin().sum() + torch.mm(x, p["u"].mT).cos().sum()
        return p["v"] @ hidden.tanh() + both + torch.mv(x, p["d"]).tanh().sum()

    return Case(loss, params, randn(B, 4, 5, seed=5))


def rows_of_one_weight():
    params = {"w": randn(6, 3), "b": randn(6, seed=1), "v": randn(4, seed=2)}

    def loss(p, x):
        first, second = p["w"].chunk(2)
        bias = p["b"].split([2, 4])
        left, right = p["v"].chunk(2)
        y = F.linear(x, first).tanh() + x @ second.t()
        return (y[:2] + bias[0]).sin() @ left + y[:2] @ right + (y[:1] * bias[1]).sum()

    return Case(loss, params, randn(B, 3, seed=3))


def shared_bias():
    def loss(p, x):
        y = F.linear(x, p["w"], p["b"])
        return ((y * p["b"]).tanh() - p["b"]).square().sum()

    return Case(loss, {"w": randn(3, 4), "b": randn(3, seed=1)}, randn(B, 2, 4))


def bias_of_one():
    """One number for all outputs."""

    def loss(p, x):
        return F.linear(x, p["w"], p["b"]).tanh().sum()

    return Case(loss, {"w": randn(3, 4), "b": randn(1, seed=1)}, randn(B, 2, 4))


def transposed_bias():
    """The positions have biases of their own, in another order than in memory."""

    def loss(p, x):
        return F.linear(x, p["w"], p["c"].T).sin().sum()

    params = {"w": randn(4, 3), "c": randn(4, 2, seed=1)}
    return Case(loss, params, randn(B, 2, 3), opaque=["c", "w"])


def constrained():
    start = {"w": torch.linalg.qr(randn(5, 3)).Q, "b": randn(3)}
    space = po.constrain(start, {"w": po.constraints.Orthogonal()})

    def loss(free, x):
        p = space.forward(free)
        return (x @ p["w"] + p["b"]).tanh().sum()

    return Case(loss, space.free, randn(B, 5), opaque=["w"])


def weight_decay():
    def loss(p, x):
        return F.linear(x, p["w"], p["b"]).sin().sum() + 0.1 * p["w"].pow(2).sum()

    params = {"w": randn(3, 4), "b": randn(3, seed=1)}
    return Case(loss, params, randn(B, 4), opaque=["w"])


def physics():
    """A Laplacian inside: the parameters enter the inner derivative too."""

    def loss(p, x):
        def u(x):
            return (F.linear(x, p["w"]).tanh() @ p["v"]).sum()

        return hessian(u)(x).diagonal().sum() ** 2 + (u(x) - p["offset"]).square()

    params = {"w": randn(4, 2), "v": randn(4, seed=1), "offset": randn()}
    return Case(loss, params, randn(B, 2), opaque=params)


def series_inside():
    """Taylor mode, over the sample and over a parameter."""

    def loss(p, x):
        def u(x):
            return F.linear(x, p["w"]).tanh() @ p["v"]

        def along(w):
            return F.linear(x, w).sin().sum()

        slope = D.jet(along, p["w"], (p["w"].cos(),))[1][0]
        return D.laplacian(u)(x) ** 2 + slope

    params = {"w": randn(4, 2), "v": randn(4, seed=1)}
    return Case(loss, params, randn(B, 2), opaque=params)


def without_gradient():
    """What ``no_grad`` makes passes none on: layers, and views, wherever they are used."""

    def loss(p, x):
        with torch.no_grad():
            target = F.linear(x, p["w"], p["b"])
            columns, rows = p["w"].T, p["w"].chunk(3)
        y = F.linear(x, p["w"]) + x @ columns + F.linear(x, rows[0])
        return (y - target).square().sum()

    return Case(loss, {"w": randn(3, 4), "b": randn(3, seed=1)}, randn(B, 4))


def inner_argument():
    """The parameter is the argument of an inner transform."""

    def loss(p, x):
        return grad(lambda w: (x @ w).square())(p["w"]).sin().sum() + x @ p["v"]

    params = {"w": randn(3), "v": randn(3, seed=1)}
    return Case(loss, params, randn(B, 3), opaque=params)


def norms_inside():
    """A recording inside of a recording."""

    def inner(p, x):
        return F.linear(x, p["w"]).tanh().sum()

    def loss(p, x):
        return D.per_sample_grad_norms(inner)(p, x).sum() + F.linear(x, p["w"]).sum()

    return Case(loss, {"w": randn(2, 3)}, randn(B, 4, 3, seed=1), opaque=["w"])


class Scale(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, g * x


def own_function():
    def loss(p, x):
        return Scale.apply(x, p["w"]).sin().sum() + x @ p["w"]

    return Case(loss, {"w": randn(3)}, randn(B, 3), opaque=["w"])


def other_uses():
    def loss(p, x):
        sliced = (p["slice"][:2] @ x).tanh().sum()
        summed = torch.einsum("ij,j->i", p["einsum"], x).tanh().sum()
        written = x.clone()
        written += p["written"]
        rows = x.new_zeros(2, 4)
        rows[1] = p["row"]
        named = torch.mv(p["named"], vec=x).sin().sum()
        return sliced + summed + named + written.sin().sum() + (rows * x).sin().sum()

    params = {
        "slice": randn(3, 4),
        "einsum": randn(3, 4, seed=1),
        "written": randn(4, seed=2),
        "row": randn(4, seed=3),
        "named": randn(3, 4, seed=4),
    }
    return Case(loss, params, randn(B, 4), opaque=params)


def nothing_inside():
    """Samples without positions."""

    def loss(p, one, x, ids, image):
        y = F.linear(x, p["w"]).sum() + F.linear(one, p["w"]).sin().sum()
        z = F.embedding(ids, p["w"]).sum() + F.conv1d(image, p["k"], p["b"]).sum()
        return y + z

    params = {"w": randn(2, 3), "b": randn(2, seed=1), "k": randn(2, 1, 2, seed=2)}
    batch = randn(B, 3), randn(B, 0, 3), ints(2, B, 0), randn(B, 0, 1, 4)
    return Case(loss, params, *batch)


def scalars_and_one_tensor():
    return Case(lambda w, x: (w * x).exp(), randn(), randn(B))


def one_object_twice():
    w = randn(3)
    return Case(
        lambda p, x: x @ p["a"] + (x * p["b"]).sin().sum() + x @ w,
        {"a": w, "b": w},
        randn(B, 3, seed=1),
    )


CASES = {
    "mlp": mlp,
    "cnn": cnn,
    "unbatched-convolutions": unbatched_convolutions,
    "volumes": volumes,
    "transposed-convolutions": transposed_convolutions,
    "grouped-convolutions": grouped_convolutions,
    "encoder-train": lambda: encoder(train=True),
    "encoder-eval": lambda: encoder(train=False),
    "attention": attention,
    "attention-without-bias": lambda: attention(bias=False),
    "attention-other-keys": lambda: attention(kdim=4),
    "attention-bias-kv": attention_with_bias_kv,
    "attention-padding": attention_with_padding,
    "tied-embedding": tied_embedding,
    "words": words,
    "tied-autoencoder": tied_autoencoder,
    "tied-autoencoder-positions": lambda: tied_autoencoder(3),
    "products": products,
    "rnn-cell": lambda: unrolled(nn.RNNCell),
    "gru-cell": lambda: unrolled(nn.GRUCell),
    "lstm-cell": lambda: unrolled(nn.LSTMCell),
    "rows-of-one-weight": rows_of_one_weight,
    "shared-bias": shared_bias,
    "bias-of-one": bias_of_one,
    "transposed-bias": transposed_bias,
    "weight-norm": weight_norm,
    "constrained": constrained,
    "weight-decay": weight_decay,
    "physics": physics,
    "series-inside": series_inside,
    "without-gradient": without_gradient,
    "inner-argument": inner_argument,
    "norms-inside": norms_inside,
    "own-function": own_function,
    "other-uses": other_uses,
    "nothing-inside": nothing_inside,
    "scalars": scalars_and_one_tensor,
    "one-object-twice": one_object_twice,
}
