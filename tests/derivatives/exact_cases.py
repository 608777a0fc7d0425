"""The operations that `exact` mends, each with what it is by definition."""

from __future__ import annotations

import mpmath as mp
import torch
from torch.nn import functional as F

from tests.derivatives.exact_case import WELL, Case
from tests.derivatives.exact_cases_recurrent import RECURRENT
from tests.derivatives.exact_cases_sampling import SAMPLING
from tests.derivatives.exact_cases_sequences import SEQUENCES
from tests.derivatives.exact_cases_sparse import SPARSE
from tests.derivatives.exact_cases_spectra import SPECTRAL
from tests.derivatives.exact_oracles import (
    TARGET,
    attention,
    cosine,
    cross_entropy,
    damped_cosine,
    flat,
    gram_inverse,
    huber,
    inverse,
    log_sum_exp,
    lower,
    margins,
    minor,
    minus,
    p_norm,
    products,
    reflections,
    rows,
    sigmoid,
    solved,
    standardized,
    targets,
    transposed,
)

LONG = (-30.0, 0.5, 40.0)  # a wide range: the first prefixes are tiny beside the last
RANK_ONE = (1.0, 2.0, 3.0, 2.0, 4.0, 6.0, -1.0, -2.0, -3.0)


def double(x: torch.Tensor) -> torch.Tensor:
    return x.double()


def attend(x, **options):
    x = x.reshape(1, 1, *x.shape)
    return F.scaled_dot_product_attention(x, x, x, **options)


CASES = [
    Case(
        "layer_norm",
        (2, 3),
        lambda x: F.layer_norm(x, (3,)),
        lambda x: flat([standardized(row) for row in x]),
    ),
    Case(
        "batch_norm, train",
        (3, 2),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: flat(transposed([standardized(row) for row in transposed(x)])),
    ),
    Case(
        "instance_norm",
        (2, 3),
        lambda x: F.instance_norm(x.unsqueeze(0)),
        lambda x: flat([standardized(row) for row in x]),
    ),
    Case(
        "linalg.det", (3, 3), torch.linalg.det, lambda x: [mp.det(mp.matrix(x))], WELL
    ),
    Case(
        "linalg.det, rank 1",
        (3, 3),
        torch.linalg.det,
        lambda x: [
            x[0][0] * minor(x, 0) - x[0][1] * minor(x, 1) + x[0][2] * minor(x, 2)
        ],
        RANK_ONE,
    ),
    Case(
        "linalg.slogdet",
        (3, 3),
        lambda x: torch.linalg.slogdet(x)[1],
        lambda x: [mp.log(abs(mp.det(mp.matrix(x))))],
        WELL,
    ),
    Case(
        "logdet",
        (3, 3),
        torch.logdet,
        lambda x: [mp.log(mp.det(mp.matrix(x)))],
        WELL,
    ),
    Case(
        "linalg.solve",
        (3, 3),
        lambda x: torch.linalg.solve(x, x.new_tensor([1, 2, 3])),
        solved,
        WELL,
    ),
    Case(
        "linalg.householder_product",
        (3, 3),
        lambda x: torch.linalg.householder_product(x[:, :2], x[:2, 2]),
        lambda x: flat([row[:2] for row in rows(reflections(x, [x[0][2], x[1][2]]))]),
    ),
    Case(
        "ormqr",
        (3, 3),
        lambda x: torch.ormqr(x[:, :2], x[:2, 2], x),
        lambda x: flat(rows(reflections(x, [x[0][2], x[1][2]]) * mp.matrix(x))),
    ),
    Case(
        "cholesky_solve",
        (3, 3),
        lambda x: torch.cholesky_solve(x[:, :1], x),
        lambda x: flat(rows(gram_inverse(x) * mp.matrix([row[0] for row in x]))),
        WELL,
    ),
    Case(
        "cholesky_inverse",
        (3, 3),
        torch.cholesky_inverse,
        lambda x: flat(rows(gram_inverse(x))),
        WELL,
    ),
    Case(
        "triangular_solve",
        (3, 3),
        lambda x: torch.triangular_solve(x[:, 2:], x, upper=False)[0],
        lambda x: flat(rows(inverse(lower(x)) * mp.matrix([row[2] for row in x]))),
        WELL,
    ),
    Case("prod at zeros", (3,), torch.prod, lambda x: [mp.fprod(x)], (0.0, 2.0, 0.0)),
    Case("cumprod at zeros", (3,), lambda x: x.cumprod(0), products, (0.0, 2.0, 0.0)),
    Case(
        "logcumsumexp, wide range",
        (3,),
        lambda x: x.logcumsumexp(0),
        lambda x: [log_sum_exp(x[: i + 1]) for i in range(len(x))],
        LONG,
    ),
    Case(
        "logaddexp beside -inf",
        (2,),
        lambda x: torch.logaddexp(torch.cat([x, x.new_full((1,), -torch.inf)]), x[:1])[
            :2
        ],
        lambda x: [x[0] + mp.log(2), log_sum_exp(x)],
    ),
    Case(
        "scatter_reduce, prod at zeros",
        (4,),
        lambda x: torch.scatter_reduce(
            x[:2], 0, torch.tensor([0, 0, 1, 0]), x, "prod", include_self=False
        ),
        lambda x: [x[0] * x[1] * x[3], x[2]],
        (0.0, 2.0, 1.0, 0.0),
    ),
    Case(
        "index_reduce, prod",
        (4,),
        lambda x: torch.index_reduce(x[:2], 0, torch.tensor([0, 0, 1, 0]), x, "prod"),
        lambda x: [x[0] ** 2 * x[1] * x[3], x[1] * x[2]],
    ),
    Case("vector_norm", (3,), torch.linalg.vector_norm, lambda x: [p_norm(x)]),
    Case(
        "vector_norm, p = 3",
        (3,),
        lambda x: torch.linalg.vector_norm(x, 3),
        lambda x: [p_norm(x, 3)],
    ),
    Case(
        "vector_norm squared at zero",
        (3,),
        lambda x: torch.linalg.vector_norm(x) ** 2,
        lambda x: [mp.fdot(x, x)],
        (0.0, 0.0, 0.0),
    ),
    Case(
        "std",
        (4,),
        torch.std,
        lambda x: [mp.sqrt(mp.fsum((v - mp.fsum(x) / 4) ** 2 for v in x) / 3)],
    ),
    Case(
        "weight_norm",
        (2, 3),
        lambda x: torch._weight_norm(x, x[:, :1].sin()),
        lambda x: flat([[mp.sin(r[0]) * v / p_norm(r) for v in r] for r in x]),
    ),
    Case(
        "normalize",
        (2, 3),
        F.normalize,
        lambda x: flat([[v / p_norm(row) for v in row] for row in x]),
    ),
    Case(
        "cosine_similarity",
        (2, 3),
        lambda x: F.cosine_similarity(x[0], x[1], dim=0),
        lambda x: [cosine(*x)],
    ),
    Case(
        "cosine_embedding_loss",
        (4, 2),
        lambda x: F.cosine_embedding_loss(
            x[:2], x[2:], torch.tensor([1, -1]), margin=-0.99
        ),
        lambda x: [(1.99 - damped_cosine(x[0], x[2]) + damped_cosine(x[1], x[3])) / 2],
    ),
    Case(
        "cdist",
        (3, 2),
        lambda x: torch.cdist(x[:2], x[2:]),
        lambda x: [p_norm(minus(x[0], x[2])), p_norm(minus(x[1], x[2]))],
    ),
    Case(
        "renorm",
        (2, 3),
        lambda x: x.renorm(2, 0, 0.5),
        lambda x: flat(
            [[v / (p_norm(row) + mp.mpf("1e-7")) / 2 for v in row] for row in x]
        ),
    ),
    Case(
        "triplet_margin_loss",
        (3, 2),
        lambda x: F.triplet_margin_loss(x[0], x[1], x[2], margin=9.0, eps=0.0),
        lambda x: [9 + p_norm(minus(x[0], x[1])) - p_norm(minus(x[0], x[2]))],
    ),
    Case(
        "mse_loss",
        (4,),
        lambda x: F.mse_loss(x.sin(), double(TARGET)),
        lambda x: [
            mp.fsum((mp.sin(v) - y) ** 2 for v, y in zip(x, targets(), strict=True)) / 4
        ],
    ),
    Case(
        "huber_loss",
        (4,),
        lambda x: F.huber_loss(x, double(TARGET)),
        lambda x: [mp.fsum(map(huber, minus(x, targets()))) / 4],
    ),
    Case(
        "soft_margin_loss",
        (4,),
        lambda x: F.soft_margin_loss(x, double(TARGET)),
        lambda x: [
            mp.fsum(mp.log1p(mp.exp(-v * y)) for v, y in zip(x, targets(), strict=True))
            / 4
        ],
    ),
    Case(
        "binary_cross_entropy",
        (4,),
        lambda x: F.binary_cross_entropy(x.sigmoid(), double(TARGET).sigmoid()),
        lambda x: [cross_entropy(x)],
    ),
    Case(
        "multi_margin_loss",
        (4,),
        lambda x: F.multi_margin_loss(x, torch.tensor(1), margin=5.0),
        lambda x: [mp.fsum(5 - x[1] + x[k] for k in (0, 2, 3)) / 4],
    ),
    Case(
        "multilabel_margin_loss",
        (4,),
        lambda x: F.multilabel_margin_loss(x * x, torch.tensor([1, 3, -1, 0])),
        lambda x: [margins([v * v for v in x], (1, 3))],
    ),
    Case(
        "hardsigmoid",
        (4,),
        F.hardsigmoid,
        lambda x: [(v + 3) / 6 for v in x],
    ),
    Case(
        "glu",
        (4,),
        F.glu,
        lambda x: [x[0] * sigmoid(x[2]), x[1] * sigmoid(x[3])],
    ),
    Case("sinc at zero", (2,), torch.sinc, lambda x: [*map(mp.sincpi, x)], (0.0, 0.0)),
    Case(
        "log_ndtr, tail",
        (2,),
        torch.special.log_ndtr,
        lambda x: [mp.log(mp.erfc(-v / mp.sqrt(2)) / 2) for v in x],
        (-50.0, -5000.0),
    ),
    Case(
        "copysign",
        (4,),
        lambda x: torch.copysign(x, double(TARGET)),
        lambda x: [abs(v) * mp.sign(y) for v, y in zip(x, targets(), strict=True)],
    ),
    Case(
        "polar",
        (2,),
        lambda x: torch.view_as_real(torch.polar(x[0], x[1])),
        lambda x: [x[0] * mp.cos(x[1]), x[0] * mp.sin(x[1])],
    ),
    Case(
        "abs of complex numbers",
        (2, 2),
        lambda x: torch.complex(x[0], x[1]).abs(),
        lambda x: [p_norm([x[0][k], x[1][k]]) for k in (0, 1)],
    ),
    Case(
        "sgn of complex numbers",
        (2, 2),
        lambda x: torch.view_as_real(torch.complex(x[0], x[1]).sgn()),
        lambda x: flat([[v / p_norm(pair) for v in pair] for pair in transposed(x)]),
    ),
    Case("scaled_dot_product_attention", (3, 2), attend, attention),
    Case(
        "scaled_dot_product_attention, causal",
        (3, 2),
        lambda x: attend(x, is_causal=True),
        lambda x: attention(x, causal=True),
    ),
    *SPECTRAL,
    *SAMPLING,
    *SEQUENCES,
    *RECURRENT,
    *SPARSE,
]
