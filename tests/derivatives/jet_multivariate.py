"""The functions of more than one number that have rules of Taylor mode."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from tests.derivatives.jet_case import LABELS, given, positive, row
from tests.derivatives.jet_multivariate_algebra import COMPLEX, LINEAR_ALGEBRA
from tests.derivatives.jet_multivariate_layers import ATTENTION_AND_CELLS, LOSSES, POOLS

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
    *ATTENTION_AND_CELLS,
    *LINEAR_ALGEBRA,
    *POOLS,
    *LOSSES,
    *COMPLEX,
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
