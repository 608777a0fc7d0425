"""Losses of one sample through modules of ``torch.nn``."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.derivatives.per_sample_case import B, Case, functional, ints, of_module
from tests.derivatives.row import randn


def mlp():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False))
    return of_module(net, randn(B, 4), randn(B, 3))


def cnn():
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.GroupNorm(3, 6),
        nn.SiLU(),
        nn.Conv2d(6, 6, (3, 2), padding="same", dilation=2),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(96, 2),
    )
    return of_module(net.eval(), randn(B, 4, 8, 8), randn(B, 2), inside=True)


def unbatched_convolutions():
    net = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding="valid"),
        nn.LayerNorm([4, 6]),
        nn.Tanh(),
        nn.RMSNorm(6),
        nn.Conv1d(4, 2, 2, padding=1, stride=2),
    )
    return of_module(net, randn(B, 3, 8), randn(B, 2, 4))


def volumes():
    net = nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.ConvTranspose3d(3, 1, 2))
    return of_module(net, randn(B, 2, 3, 4, 3), randn(B, 1, 3, 4, 3))


def transposed_convolutions():
    net = nn.Sequential(
        nn.ConvTranspose2d(
            4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2
        ),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 2, 2, stride=3, output_padding=2),
    )
    return of_module(net, randn(B, 4, 5, 4), randn(B, 2, 37, 31))


def grouped_convolutions():
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 4, (3, 2), padding="same", dilation=2),
    )
    x, y = randn(B, 3, 4, 8, 9), randn(B, 3, 4, 4, 5, seed=1)
    return of_module(net, x, y)


def encoder(*, train):
    net = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return of_module(
        net.train(train), randn(B, 3, 8), randn(B, 3, 8, seed=1), inside=True
    )


class Attention(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **kwargs)

    def forward(self, x):
        key = x.flip(-2)[..., : self.attention.kdim] * 2
        mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
        out, weights = self.attention(x, key, x + 1, attn_mask=mask)
        return out + weights.std()


def attention(**kwargs):
    return of_module(
        Attention(**kwargs), randn(B, 3, 8), randn(B, 3, 8, seed=1), inside=True
    )


class AttentionWithBiasKV(nn.MultiheadAttention):
    def __init__(self):
        super().__init__(8, 2, batch_first=True, add_bias_kv=True)

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def attention_with_bias_kv():
    x, y = randn(B, 3, 8), randn(B, 3, 8, seed=1)
    return of_module(AttentionWithBiasKV(), x, y, opaque=["bias_k", "bias_v"])


def attention_with_padding():
    """A mask of its own for each sample."""
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    apply, params, buffers = functional(module)

    def loss(params, x, padding):
        x = x[None]
        y = apply(params, buffers, x, x, x, key_padding_mask=padding[None])[0][0]
        return y.sin().sum()

    padding = torch.arange(4) > torch.arange(B)[:, None]
    return Case(loss, params, randn(B, 4, 8), padding)


class Language(nn.Module):
    """A table that is the output map too, and a padding word."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=2)
        self.middle = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x):
        return self.out(self.middle(self.table(x)).tanh())


def tied_embedding():
    return of_module(Language(), ints(11, B, 7), ints(11, B, 7, seed=1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.position = nn.Parameter(torch.zeros(7, 3))

    def forward(self, x):
        return (self.table(x) + self.position).sin().sum(-2)


def words():
    # Five words in seven places: some come twice.
    return of_module(Words(), ints(5, B, 7), randn(B, 3))


def unrolled(cell):
    module = cell(3, 4).double()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = module

        def forward(self, x):
            h = x.new_zeros(4)
            pair = cell is nn.LSTMCell
            state = (h, h) if pair else h
            for step in x:
                state = self.cell(step, state)
            return state[0] if pair else state

    return of_module(Net(), randn(B, 5, 3), randn(B, 4))


def weight_norm():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    names = [f"0.parametrizations.weight.original{i}" for i in range(2)]
    return of_module(net, randn(B, 4), randn(B, 2), opaque=names)
