"""Attention, recurrent cells, pools and losses under Taylor mode."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from tests.derivatives.jet_case import LABELS, given, positive, row


def module(make):
    """A module of random weights in the dtype of the argument."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        single = make().requires_grad_(requires_grad=False)
    made = {torch.float32: single, torch.float64: copy.deepcopy(single).double()}
    return lambda x: made[x.dtype](x)


class Attention(nn.MultiheadAttention):
    """Self-attention, of one argument and one result."""

    def forward(self, x):
        return super().forward(x, x, x)[0]


class Cell(nn.Module):
    """A recurrent cell unrolled over two steps."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = self.cell(x)
        after = self.cell(x.sin(), state)
        return after[0] if isinstance(after, tuple) else after


ATTENTION_AND_CELLS = [
    # Attention.
    row(
        "attention",
        lambda x: F.scaled_dot_product_attention(x, 2 * x, x.sin()),
        (1, 3, 2),
        compiled=True,
    ),
    row(
        "attention-causal",
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        (1, 3, 2),
    ),
    row(
        "attention-masked",
        lambda x: F.scaled_dot_product_attention(
            x, x, x, torch.ones(3, 3).tril().bool(), scale=0.3
        ),
        (1, 3, 2),
    ),
    row(
        "multi-head-attention",
        module(lambda: Attention(embed_dim=4, num_heads=2, batch_first=True)),
        (1, 2, 4),
    ),
    row(
        "encoder-layer",
        module(lambda: nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True)),
        (1, 2, 4),
    ),
    row(
        "encoder-layer-eval",
        module(lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True).eval()),
        (1, 2, 4),
    ),
    # Cells of recurrent networks.
    row("lstm-cell", module(lambda: Cell(nn.LSTMCell(3, 2)))),
    row("gru-cell", module(lambda: Cell(nn.GRUCell(3, 2)))),
    row("rnn-cell", module(lambda: Cell(nn.RNNCell(3, 2)))),
]


# Pooling and images.
POOLS = [
    row("max-pool", lambda x: F.max_pool2d(x.pow(2), 2), (1, 1, 4, 4)),
    row("max-pool-1d", lambda x: F.max_pool1d(x.pow(2), 3, 1, 1), (1, 2, 4)),
    row("avg-pool", lambda x: F.avg_pool2d(x.pow(2), 2, 1), (1, 1, 3, 3)),
    row(
        "adaptive-pools",
        lambda x: F.adaptive_avg_pool1d(x, 2) * F.adaptive_max_pool1d(x, 2),
        (1, 2, 5),
    ),
    row("lp-pool", lambda x: F.lp_pool1d(positive(x), 3, 2), (1, 1, 4)),
    row(
        "interpolate",
        lambda x: F.interpolate(x.pow(2), scale_factor=2.0, mode="bilinear"),
        (1, 1, 2, 3),
    ),
    row("unfold", lambda x: F.unfold(x, 2).pow(2), (1, 1, 3, 3)),
    row("pixel-shuffle", lambda x: F.pixel_shuffle(x.pow(2), 2), (1, 4, 1, 2)),
    row("glu", lambda x: F.glu(x, 0)),
]


LOSSES = [
    row("mse", lambda x: F.mse_loss(x[0], x[1])),
    row("l1", lambda x: F.l1_loss(x.sin(), given(2, 3, like=x), reduction="sum")),
    row("smooth-l1", lambda x: F.smooth_l1_loss(x.pow(2), given(2, 3, like=x))),
    row("huber", lambda x: F.huber_loss(x.pow(2), given(2, 3, like=x), delta=0.5)),
    row("cross-entropy", lambda x: F.cross_entropy(x, LABELS), compiled=True),
    row(
        "cross-entropy-all-options",
        lambda x: F.cross_entropy(
            x,
            torch.tensor([2, -100]),
            positive(given(3, like=x)),
            label_smoothing=0.2,
        ),
    ),
    row(
        "cross-entropy-soft",
        lambda x: F.cross_entropy(x, given(2, 3, like=x).softmax(-1), reduction="sum"),
    ),
    row("nll", lambda x: F.nll_loss(x.log_softmax(-1), LABELS, reduction="none")),
    row("bce", lambda x: F.binary_cross_entropy(x.sigmoid(), (x > 0).to(x.dtype))),
    row(
        "bce-logits",
        lambda x: F.binary_cross_entropy_with_logits(
            x, given(2, 3, like=x).sigmoid(), pos_weight=positive(given(3, like=x))
        ),
    ),
    row(
        "kl-div",
        lambda x: F.kl_div(
            x.log_softmax(-1), given(2, 3, like=x).softmax(-1), reduction="batchmean"
        ),
    ),
    row(
        "gaussian-nll",
        lambda x: F.gaussian_nll_loss(x[0], given(3, like=x), positive(x[1])),
    ),
    row(
        "poisson-nll",
        lambda x: F.poisson_nll_loss(x, positive(given(2, 3, like=x)), full=True),
    ),
    row(
        "cosine-embedding",
        lambda x: F.cosine_embedding_loss(x, x.cos(), torch.tensor([1.0, -1.0]).to(x)),
    ),
    row(
        "triplet", lambda x: F.triplet_margin_loss(x, x.sin(), given(2, 3, like=x), 9.0)
    ),
    row("soft-margin", lambda x: F.soft_margin_loss(x, x.detach().sign())),
    row(
        "hinge-embedding", lambda x: F.hinge_embedding_loss(x.exp(), x.detach().sign())
    ),
    row(
        "margin-ranking",
        lambda x: F.margin_ranking_loss(x[0].exp(), x[1], x[2].detach().sign()),
        (3, 3),
    ),
]
