"""Calls of what `exact` replaces, with other arguments than those of the cases."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.derivatives.row import randn

X = randn(3, 3) + 3 * torch.eye(3, dtype=torch.float64)
V = randn(3, seed=1)

SDPA = F.scaled_dot_product_attention
MASK = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1]]).bool()
Q = randn(2, 4, 3, 8)
INDEX = torch.tensor([[0, 2, 0], [1, 1, 2]])
LABELS = torch.tensor([[0, -1, 1], [1, 2, -1], [2, 0, 1]])

# Each of a 3 x 3 matrix.
CALLS = {
    "layer norm, affine": lambda x: F.layer_norm(x, (3, 3), x, x.mT, 0.1),
    "batch norm, affine": lambda x: F.batch_norm(
        x, V.to(x), V.to(x) ** 2, V.to(x), V.to(x)
    ),
    "instance norm": lambda x: F.instance_norm(
        x.unsqueeze(0), weight=V.to(x), bias=V.to(x)
    ),
    "det of a batch": lambda x: torch.det(torch.stack([x, x.mT, x * 2])),
    "det of nothing": lambda x: torch.det(x[:0, :0]),
    "det of a permutation": lambda x: torch.det(torch.eye(3, dtype=x.dtype)[[1, 2, 0]]),
    "det of a swap": lambda x: torch.det(torch.eye(3, dtype=x.dtype)[[1, 0, 2]]),
    "sign of slogdet": lambda x: torch.slogdet(-x)[0],
    "logdet of a negative": lambda x: torch.logdet(-x),
    "slogdet of a singular": lambda x: torch.slogdet(x * 0)[1],
    "solve a batch of vectors": lambda x: torch.linalg.solve(
        torch.stack([x, x.mT]), x[:2]
    ),
    "solve from the right": lambda x: torch.linalg.solve(x, x.mT, left=False),
    "tensorsolve, dims": lambda x: torch.linalg.tensorsolve(
        torch.stack([x, 2 * x.mT, x + 1], 1).reshape(3, 3, 3)[:, 0], V.to(x), dims=(0,)
    ),
    "ormqr, transposed": lambda x: torch.ormqr(x[:, :2], V[:2].to(x), x, False, True),
    "cholesky solve, upper": lambda x: torch.cholesky_solve(x, x, upper=True),
    "cholesky inverse, upper": lambda x: torch.cholesky_inverse(x, upper=True),
    "triangular solve": lambda x: torch.triangular_solve(x, x, True, True, True)[0],
    "prod over a dim": lambda x: x.prod(1, keepdim=True),
    "prod of nothing": lambda x: x[:, :0].prod(1),
    "prod of integers": lambda x: x.long().prod(),
    "cumprod": lambda x: torch.cumprod(x, -1),
    "logcumsumexp of -inf": lambda x: torch.cat([x * 0 - torch.inf, x]).logcumsumexp(0),
    "logaddexp of infinities": lambda x: torch.logaddexp(
        x.new_tensor([-torch.inf, torch.inf, torch.inf, 1.0, torch.nan]),
        x.new_tensor([-torch.inf, -torch.inf, torch.inf, torch.inf, 1.0]),
    ),
    "scatter_reduce": lambda x: x.scatter_reduce(0, INDEX, x, "prod"),
    "scatter_reduce, alone": lambda x: x.scatter_reduce(
        1, INDEX[:, :2], x, "prod", include_self=False
    ),
    "scatter_reduce, mean": lambda x: x.scatter_reduce(0, INDEX, x, "mean"),
    "index_reduce": lambda x: x.index_reduce(
        1, INDEX[0], x, "prod", include_self=False
    ),
    "index_reduce, amax": lambda x: x.index_reduce(0, INDEX[0], x, "amax"),
    "norm, p": lambda x: torch.norm(x, 3, dim=0, keepdim=True),
    "norm, nuclear": lambda x: torch.norm(x, "nuc"),
    "norm, infinite": lambda x: torch.linalg.norm(x, torch.inf),
    "norm, dims": lambda x: torch.linalg.norm(x, dim=1),
    "norm, 0": lambda x: torch.linalg.vector_norm(x.relu(), 0),
    "norm, -2": lambda x: torch.linalg.vector_norm(x, -2, dim=(0, 1)),
    "norm, -1 with a zero": lambda x: torch.linalg.vector_norm(x * MASK, -1, dim=1),
    "norm, half": lambda x: torch.linalg.vector_norm(x, 0.5),
    "norm, dtype": lambda x: torch.linalg.vector_norm(x, dtype=torch.float64).to(
        x.dtype
    ),
    "norm, complex": lambda x: torch.linalg.vector_norm(torch.complex(x, x.mT), 2),
    "std, biased": lambda x: x.std(0, unbiased=False, keepdim=True),
    "std, corrected": lambda x: torch.std(x, (0, 1), correction=2),
    "even power": lambda x: x.norm(dim=0) ** 4,
    "odd power": lambda x: x.norm(dim=0) ** 3,
    "normalize": lambda x: F.normalize(x * MASK, 1.5, dim=1),
    "cosine similarity of zero": lambda x: F.cosine_similarity(x * MASK, x),
    "cdist": lambda x: torch.cdist(x, x.mT, p=1.0),
    "pdist": lambda x: F.pdist(x, 3.0),
    "pairwise distance": lambda x: F.pairwise_distance(x, x.mT, 2, keepdim=True),
    "renorm": lambda x: torch.renorm(x, 1, 1, 2.0),
    "triplet, swapped": lambda x: F.triplet_margin_loss(
        x, x.mT, -x, swap=True, reduction="none"
    ),
    "mse, weighted": lambda x: F.mse_loss(x, x.mT * 2, weight=x * x),
    "huber": lambda x: F.huber_loss(x, x.mT, reduction="sum", delta=0.3),
    "huber, weighted": lambda x: F.huber_loss(x, x.mT, weight=x * x),
    "soft margin": lambda x: F.soft_margin_loss(x, x.mT.sign(), reduction="none"),
    "cross entropy at the ends": lambda x: F.binary_cross_entropy(
        (x > 1).to(x), (x.mT > 1).to(x), weight=x * x
    ),
    "cross entropy of logits": lambda x: F.binary_cross_entropy_with_logits(
        30 * x, x.mT.sigmoid(), x * x, pos_weight=V.to(x) ** 2, reduction="none"
    ),
    "multi margin": lambda x: F.multi_margin_loss(
        x, INDEX[0], p=2, weight=V.to(x) ** 2, reduction="none"
    ),
    "multilabel margin": lambda x: F.multilabel_margin_loss(
        x, LABELS, reduction="none"
    ),
    "hinge embedding": lambda x: F.hinge_embedding_loss(
        x, LABELS.to(x), 0.3, reduction="none"
    ),
    "hinge embedding, kernel": lambda x: torch.hinge_embedding_loss(x, -x.sign()),
    "gaussian likelihood": lambda x: F.gaussian_nll_loss(x, x.mT * 2, x * x, full=True),
    "gaussian likelihood, lifted": lambda x: F.gaussian_nll_loss(
        x, x.mT * 2, V.to(x) ** 2, eps=0.5, reduction="none"
    ),
    "gaussian likelihood, of rows": lambda x: F.gaussian_nll_loss(
        x[:2], x[1:], x[:2, :1] ** 2, reduction="sum"
    ),
    "gaussian likelihood, a number": lambda x: F.gaussian_nll_loss(x, x.mT, 0.5),
    "mvlgamma": lambda x: torch.mvlgamma(x.exp() + 2, 4),
    "mvlgamma of integers": lambda x: (x.long() ** 2 + 1).mvlgamma(2).to(x),
    "multigammaln": lambda x: torch.special.multigammaln(x, 1),
    "column_stack": lambda x: torch.column_stack((x[0], x[:, :2], x, V.to(x))),
    "column_stack of numbers": lambda x: torch.column_stack([x[0, 0], x[1, 1]]),
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "prelu": lambda x: F.prelu(x.unsqueeze(-1), V.to(x)),
    "prelu, one slope": lambda x: torch.prelu(x, V[:1].to(x)),
    "prelu of numbers": lambda x: torch.stack([v.prelu(V[0].to(x)) for v in x[0]]),
    "masked select": lambda x: torch.masked_select(x[0], MASK),
    "glu": lambda x: F.glu(x[:2], dim=0),
    "copysign of zero": lambda x: torch.copysign(x, -0.0),
    "polar": lambda x: torch.view_as_real(torch.polar(x, x.mT)),
    "attention": lambda x: SDPA(Q.to(x), Q.to(x), Q.to(x), scale=0.3),
    "attention, masked": lambda x: SDPA(Q.to(x), Q.to(x), Q.to(x), MASK),
    "attention, biased": lambda x: SDPA(Q.to(x), Q.to(x), Q.to(x), MASK.to(x).log()),
    "attention, causal": lambda x: SDPA(Q.to(x), Q.to(x), Q.to(x), is_causal=True),
    "attention, both": lambda x: SDPA(Q.to(x), Q.to(x), Q.to(x), x, is_causal=True),
    "attention, groups": lambda x: SDPA(
        Q.to(x), Q[:, :2].to(x), Q[:, 2:].to(x), enable_gqa=True
    ),
    "unflatten": lambda x: x.unflatten(0, (3, 1)),
}
