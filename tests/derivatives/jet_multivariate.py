"""The functions of more than one number that have rules of Taylor mode."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.derivatives.row import randn


@dataclass(frozen=True)
class Multivariate:
    """A function of one tensor of random numbers to a tensor.

    Attributes:
        name: The id.
        f: The function; what it takes from outside has the dtype of its argument.
        shape: The shape of the argument.
        compiled: It is among those that are compiled.
        twin: What is differentiated by torch, where torch cannot differentiate ``f``.
    """

    name: str
    f: Callable[..., Any]
    shape: tuple[int, ...] = (2, 3)
    compiled: bool = False
    twin: Callable[..., Any] | None = None


NUMBERS = randn(64, seed=5)


def given(*shape, like):
    """A constant of the dtype of ``like``; no transform is asked to draw it."""
    return NUMBERS[: math.prod(shape)].reshape(shape).to(like.dtype)


def spd(x):
    """A positive definite matrix."""
    return torch.matmul(x, x.mT) + torch.eye(x.shape[-1], dtype=x.dtype)


def regular(x):
    """A matrix far from singular."""
    return x + 3 * torch.eye(x.shape[-1], dtype=x.dtype)


def apart(x):
    """A symmetric matrix whose eigenvalues are far from one another."""
    return x + x.mT + skewed(torch.zeros_like(x))


def skewed(x):
    """A matrix whose eigenvalues are far from one another."""
    return x + 6 * torch.diag(torch.arange(x.shape[-1], dtype=x.dtype))


def positive(x):
    return x.exp() + 0.1


def wave(x):
    """Complex numbers away from zero and from the negative axis."""
    return torch.complex(x.cosh(), x.sin() + 0.5 * x)


def hermitian(x):
    """Not by `mH`, for which torch has no batching rule above first order."""
    re, im = x.cosh(), x.sin() + 0.5 * x
    return torch.complex(re + re.mT, im - im.mT)


def real_part_of_cholesky(x):
    """Of ``wave(x) @ wave(x).mH + 2 I``, two by two, in real arithmetic."""
    c, s = x.cosh(), x.sin() + 0.5 * x
    re, im = c @ c.mT + s @ s.mT + 2 * torch.eye(2), s @ c.mT - c @ s.mT
    first = re[0, 0].sqrt()
    below, zero = re[1, 0] / first, torch.zeros_like(first)
    last = (re[1, 1] - below**2 - (im[1, 0] / first) ** 2).sqrt()
    return torch.stack([first, zero, below, last]).reshape(2, 2)


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


def row(name, f, shape=(2, 3), **flags):
    return Multivariate(name, f, shape, **flags)


LABELS = torch.tensor([1, 0])

MULTIVARIATE = [
    # Pieces.
    row("clamp", lambda x: torch.clamp(x, -0.5, 0.5)),
    row("clamp-tensors", lambda x: x.clamp(given(3, like=x) - 2, given(3, like=x))),
    row("clamp-by-jets", lambda x: torch.clip(given(2, 3, like=x), x[:1] - 1, x[1:])),
    row("maximum", lambda x: torch.maximum(x[0].pow(2), x[1])),
    row("minimum-constant", lambda x: torch.minimum(x, given(3, like=x)).pow(2)),
    row("fmax", lambda x: torch.fmax(given(2, 3, like=x), x).exp()),
    row("fmin", lambda x: torch.fmin(x[0], x[1]).exp()),
    row("remainder", lambda x: x % 0.7),
    row("remainder-of-jets", lambda x: torch.remainder(x[0], positive(x[1]))),
    row(
        "number-mod-jet",
        lambda x: 2.0 % positive(x),
        twin=lambda x: torch.full_like(x, 2.0) % positive(x),
    ),
    row("fmod", lambda x: torch.fmod(5 * x[0], positive(x[1]))),
    row("floor-divide", lambda x: x * (x // 0.3), twin=lambda x: x * (x / 0.3).floor()),
    row("copysign", lambda x: torch.copysign(x.sin(), -x)),
    row("prelu", lambda x: F.prelu(x, given(3, like=x)).pow(2)),
    row("prelu-weight", lambda x: F.prelu(given(2, 3, like=x), x[0])),
    row("xlog1py", lambda x: torch.special.xlog1py(x, positive(x))),
    row("xlogy-constant", lambda x: torch.xlogy(given(3, like=x), positive(x))),
    row("nan-to-num", lambda x: torch.nan_to_num(x / x, nan=1.0) * x),
    # Reductions and scans.
    row("softmax", lambda x: F.softmax(x, -1), compiled=True),
    row("softmax-0", lambda x: x.softmax(0)),
    row("softmin", lambda x: F.softmin(x, 1)),
    row("log-softmax", lambda x: F.log_softmax(x, -1), compiled=True),
    row("logsumexp", lambda x: torch.logsumexp(5 * x, (0, 1)), compiled=True),
    row("logsumexp-keepdim", lambda x: x.logsumexp(-1, keepdim=True)),
    row("logaddexp", lambda x: torch.logaddexp(x[0], x[1])),
    row("logaddexp2", lambda x: torch.logaddexp2(x[0], x[1])),
    row("logcumsumexp", lambda x: torch.logcumsumexp(x, -1), (2, 5)),
    row("cumprod", lambda x: torch.cumprod(x, 0), (5,)),
    row("prod-with-a-zero", lambda x: torch.prod(x - x[0].detach()), (4,)),
    row("trapezoid", lambda x: torch.trapezoid(x[0].pow(2), x[1])),
    row("var", lambda x: x.var(), compiled=True),
    row("var-dim", lambda x: x.var(-1, correction=0, keepdim=True)),
    row("std", lambda x: torch.std(x, dim=0, unbiased=False), (3, 3)),
    row("var-mean", lambda x: torch.stack([*torch.var_mean(x, -1)])),
    row("std-mean", lambda x: torch.stack([*torch.std_mean(x, -1)])),
    # Norms.
    row("norm", lambda x: x.norm(), compiled=True),
    row("norm-1", lambda x: torch.norm(x, 1, -1)),
    row("norm-inf", lambda x: torch.linalg.norm(x, torch.inf, -1)),
    row("vector-norm-3", lambda x: torch.linalg.vector_norm(x, 3, 0, keepdim=True)),
    row("norm-columns", lambda x: torch.linalg.norm(x.exp(), 1)),
    row("norm-fro", torch.linalg.matrix_norm),
    row("norm-squared", lambda x: torch.linalg.vector_norm(x) ** 2),
    row("normalize", lambda x: F.normalize(x, dim=-1), compiled=True),
    row("cosine", lambda x: F.cosine_similarity(x[0], x[1], dim=0)),
    row("pairwise", lambda x: F.pairwise_distance(x, given(3, like=x))),
    row("cdist", lambda x: torch.cdist(x, given(4, 3, like=x))),
    row("dist", lambda x: torch.dist(x[0], x[1], 3)),
    # Sorting.
    row("sort", lambda x: x.sort(-1, descending=True).values.pow(2)),
    row("topk", lambda x: torch.topk(x, 2).values.exp()),
    row("kthvalue", lambda x: x.kthvalue(2).values.exp()),
    row("median", lambda x: x.median() * x.median(0)[0]),
    row("max-dim", lambda x: x.max(-1)[0].pow(2)),
    row("mode", lambda x: torch.mode(x.repeat(1, 2)).values.exp()),
    row("amax-of-three-equal", lambda x: (x.sum() * torch.ones(3).to(x)).amax().exp()),
    row("max-all", lambda x: x.max() * x.min()),
    row("max-two", lambda x: torch.max(x[0], x[1]).exp()),
    row("amax", lambda x: x.amax((0, 1)).exp() + torch.amin(x, 0)),
    row("aminmax", lambda x: torch.stack([*torch.aminmax(x, dim=0)]).exp()),
    row(
        "cummax",
        lambda x: torch.cummax(x, -1).values.exp(),
        twin=lambda x: torch.gather(x, -1, torch.cummax(x, -1).indices).exp(),
    ),
    row("quantile", lambda x: torch.quantile(x, 0.3).exp()),
    row(
        "quantiles",
        lambda x: torch.quantile(
            x, torch.tensor([0.1, 0.6]).to(x), dim=-1, keepdim=True
        ),
    ),
    # Normalizations.
    row("layer-norm", lambda x: F.layer_norm(x, (3,)), compiled=True),
    row("layer-norm-weights", lambda x: F.layer_norm(x, (3,), x[0], x[1])),
    row(
        "group-norm",
        lambda x: F.group_norm(x, 2, given(4, like=x), given(4, like=x).exp()),
        (1, 4, 3),
        compiled=True,
    ),
    row("rms-norm", lambda x: F.rms_norm(x, (3,), given(3, like=x))),
    row(
        "batch-norm-eval",
        lambda x: F.batch_norm(x, given(3, like=x), positive(given(3, like=x))),
    ),
    row(
        "batch-norm-train",
        lambda x: F.batch_norm(x, None, None, given(3, like=x), None, training=True),
        (3, 3),
    ),
    row("instance-norm", F.instance_norm, (1, 2, 4)),
    row("local-response-norm", lambda x: F.local_response_norm(x, 2, 0.5), (1, 3, 2)),
    # Products.
    row("matmul", lambda x: torch.matmul(x, x.sin().mT), compiled=True),
    row(
        "matmul-operator-compiled",
        lambda x: (x.exp() @ given(3, 4, like=x)).mT @ given(2, like=x),
        compiled=True,
    ),
    row(
        "einsum",
        lambda x: torch.einsum("ij,kj,kl->il", x, x.exp(), given(2, 3, like=x)),
    ),
    row("einsum-diagonal", lambda x: torch.einsum("ii,ij,j", x, x, x[0]), (3, 3)),
    row(
        "bilinear",
        lambda x: F.bilinear(x, x.sin(), given(2, 3, 3, like=x), x[0, :2]),
        twin=lambda x: (
            torch.einsum("bi,oij,bj->bo", x, given(2, 3, 3, like=x), x.sin()) + x[0, :2]
        ),
    ),
    row("addmm", lambda x: torch.addmm(x[:, :2], x, x.mT, beta=2, alpha=0.5)),
    row("conv", lambda x: F.conv1d(x[None], x[None, :, :2].exp(), x[0, :1])),
    row(
        "conv-transpose", lambda x: F.conv_transpose1d(x.exp(), given(2, 2, 2, like=x))
    ),
    row("cross", lambda x: torch.linalg.cross(x[0], x[1])),
    row("lerp", lambda x: torch.lerp(x, x[0].exp(), x[1, 1])),
    row("hypot", lambda x: torch.hypot(x[0], x[1])),
    row("atan2", lambda x: torch.atan2(x, positive(x[0]))),
    row("power-of-jets", lambda x: positive(x) ** x[0]),
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
    # Linear algebra.
    row(
        "solve",
        lambda x: torch.linalg.solve(regular(x), torch.matmul(x, x)),
        (3, 3),
        compiled=True,
    ),
    row("solve-A", lambda x: torch.linalg.solve(regular(x), given(3, like=x)), (3, 3)),
    row(
        "solve-B", lambda x: torch.linalg.solve(regular(given(3, 3, like=x)), x), (3, 2)
    ),
    row(
        "solve-right",
        lambda x: torch.linalg.solve(regular(x), x.pow(2), left=False),
        (2, 2, 2),
    ),
    row(
        "solve-broadcast",
        lambda x: torch.linalg.solve(regular(x), given(3, 2, 1, like=x)),
        (2, 2),
    ),
    row(
        "solve-triangular",
        lambda x: torch.linalg.solve_triangular(regular(x), x.sin(), upper=True),
        (3, 3),
    ),
    row(
        "solve-unitriangular",
        lambda x: torch.linalg.solve_triangular(
            x, x.sin(), upper=False, left=False, unitriangular=True
        ),
        (3, 3),
    ),
    row("inv", lambda x: torch.linalg.inv(regular(x)), (3, 3)),
    row("cholesky", lambda x: torch.linalg.cholesky(spd(x)), (3, 3), compiled=True),
    row(
        "cholesky-upper",
        lambda x: torch.linalg.cholesky_ex(spd(x), upper=True)[0],
        (2, 2, 2),
    ),
    row(
        "cholesky-solve",
        lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(spd(x))),
        (3, 3),
    ),
    row("pdist", lambda x: F.pdist(x, 3.0), (3, 2)),
    row("eigh", lambda x: torch.linalg.eigh(apart(x))[1], (3, 3), compiled=True),
    row("eigvalsh", lambda x: torch.linalg.eigvalsh(apart(x), UPLO="U"), (2, 2, 2)),
    row("eig", lambda x: torch.linalg.eig(skewed(x))[1].real, (3, 3)),
    row("eigvals", lambda x: torch.linalg.eigvals(skewed(x)).real, (3, 3)),
    row("lu-factor", lambda x: torch.linalg.lu_factor(regular(x))[0], (3, 3)),
    row(
        "lu-solve",
        lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(x), x.sin()),
        (3, 3),
        compiled=True,
    ),
    row(
        "lu-solve-adjoint",
        lambda x: torch.linalg.lu_solve(
            *torch.linalg.lu_factor(x), x.sin(), left=False
        ),
        (3, 3),
    ),
    row(
        "complex-lu-solve",
        lambda x: (
            torch.linalg.lu_solve(
                *torch.linalg.lu_factor(regular(wave(x))),
                wave(2 * x),
                left=False,
                adjoint=True,
            ).imag
        ),
        (3, 3),
    ),
    row("det", torch.linalg.det, (3, 3), compiled=True),
    row("slogdet", lambda x: torch.linalg.slogdet(x)[1], (3, 3)),
    row("logdet", lambda x: torch.logdet(spd(x)), (3, 3)),
    row("matrix-power", lambda x: torch.linalg.matrix_power(x, 5), (2, 2)),
    row("matrix-power-inverse", lambda x: torch.matrix_power(regular(x), -2), (2, 2)),
    row("matrix-exp", torch.linalg.matrix_exp, (3, 3)),
    row("matrix-exp-curved", lambda x: torch.matrix_exp(x.sin() @ x), (2, 2)),
    # Pooling and images.
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
    # Losses.
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
    # Complex numbers on the way; the ends are real.
    row("complex-abs", lambda x: wave(x).abs()),
    row("complex-abs-squared", lambda x: wave(x).abs() ** 2),
    row("complex-angle", lambda x: torch.angle(wave(x))),
    row("complex-sgn", lambda x: torch.view_as_real(torch.sgn(wave(x)))),
    row("complex-norm", lambda x: torch.linalg.vector_norm(wave(x), dim=-1)),
    row("complex-var", lambda x: torch.var(wave(x), -1)),
    row("complex-slogdet", lambda x: torch.linalg.slogdet(wave(x))[1], (2, 2)),
    row(
        "complex-eigh",
        lambda x: torch.linalg.eigh(hermitian(x))[1].abs(),
        (2, 2),
    ),
    row(
        "complex-cholesky",
        lambda x: torch.linalg.cholesky(wave(x) @ wave(x).mH + 2 * torch.eye(2)).real,
        (2, 2),
        twin=real_part_of_cholesky,
    ),
    row(
        "view-as-complex",
        lambda x: torch.view_as_complex(x.exp()).square().imag,
        (3, 2),
    ),
    row("polar", lambda x: torch.polar(positive(x), x.square()).real),
    row("fft", lambda x: torch.view_as_real(torch.fft.rfft(x)).pow(2)),
    # Shapes and indexing.
    row("expand-as", lambda x: x[:, :1].pow(2).expand_as(x) * x.view_as(x)),
    row(
        "meshgrid",
        lambda x: torch.stack(torch.meshgrid(x[0], x[1], indexing="xy")).pow(2),
    ),
    row("block-diag", lambda x: torch.block_diag(x, x.pow(2), given(1, 2, like=x))),
    row("index-put", lambda x: torch.index_put(x, (LABELS, LABELS), x[:, 0].exp())),
    row("index-fill", lambda x: x.pow(2).index_fill(1, LABELS, 3.0)),
    row("select-scatter", lambda x: x.pow(2).select_scatter(x[0], 0, 1)),
    row("scatter-value", lambda x: x.pow(2).scatter(1, LABELS[:, None], 2.0)),
    row(
        "scatter-reduce",
        lambda x: x.scatter_reduce(1, LABELS[:, None], x.exp(), "prod"),
    ),
    row("where-method", lambda x: x.exp().where(x > 0, 0.0)),
    row(
        "constant-index", lambda x: x[torch.zeros_like(x[:, 0], dtype=torch.long)] ** 2
    ),
    row(
        "scatter-add",
        lambda x: x.exp().scatter_add(1, index=LABELS[:, None], src=x[:, 1:2].sin()),
    ),
    row("numpys-names", lambda x: x.var(axis=0, keepdims=True) * x.softmax(axis=-1)),
    row(
        "named-argument",
        lambda x: torch.exp(input=x) * torch.reshape(input=x, shape=(2, 3)),
    ),
    row("scalars-of-numpy", lambda x: np.sqrt(2.0) * x**2 - np.float64(3.0) / x.exp()),
    row("embedding", lambda x: F.embedding(LABELS, x.pow(2))),
    row("to-and-back", lambda x: x.pow(2).double().to(x.dtype) * x.long()),
    row("broadcast-ranks", lambda x: x.pow(2) * x[0] + x[0, 0] - x.unsqueeze(0).exp()),
]
