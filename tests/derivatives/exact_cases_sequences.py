"""Sequences, runs of rows and what else torch differentiates in one mode only."""

from __future__ import annotations

import itertools
import warnings

import mpmath as mp
import torch
from torch.nn import functional as F

from tests.derivatives.exact_case import Case
from tests.derivatives.exact_oracles import flat, rows, standardized, transposed

RUNS = torch.tensor([2, 0, 3])
BAGS = torch.tensor([0, 2, 2])
PLACES = torch.tensor([3, 0, 1, 3, 2])
CLASSES = torch.tensor([2, 0, 1])
CHUNKED = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2, chunking_method=None)
KEPT = torch.tensor([[True, False, True], [True, True, False]])
SPELLED = torch.tensor([[1, 1], [2, 1]])
FRAMES = (4, 3)


def ctc(x: torch.Tensor) -> torch.Tensor:
    return F.ctc_loss(x, SPELLED, FRAMES, (2, 2))


def all_paths(x):
    """The mean over the samples of the loss of a label, by enumeration of the paths."""
    losses = []
    for n, (frames, label) in enumerate(zip(FRAMES, SPELLED.tolist(), strict=True)):
        paths = itertools.product(range(len(x[0][n])), repeat=frames)
        right = (
            mp.fsum(x[t][n][c] for t, c in enumerate(path))
            for path in paths
            if [c for c, _ in itertools.groupby(path) if c] == label
        )
        losses.append(-mp.log(mp.fsum(mp.exp(v) for v in right)) / len(label))
    return [mp.fsum(losses) / len(losses)]


def cholesky(x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cholesky(x @ x.mT + torch.eye(2).to(x))


def bags(x, reduce, places=None):
    """The columns of the rows of each bag, reduced; no row gives zeros."""
    rows_of = [x[i] for i in places or PLACES.tolist()]
    first, last = (
        [reduce(column) for column in transposed(bag)]
        for bag in (rows_of[:2], rows_of[2:])
    )
    return [*first, *(0 for _ in first), *last]


def mean(x):
    return mp.fsum(x) / len(x)


def segments(x, reduce, nothing):
    first, last = x[:2], x[2:]
    return [reduce(first), nothing, reduce(last)]


def chunked(x: torch.Tensor) -> torch.Tensor:
    return F.linear_cross_entropy(x[:3], x[3:], CLASSES, options=CHUNKED)


def classified(x):
    samples, classes = x[:3], x[3:]
    losses = []
    for sample, right in zip(samples, CLASSES.tolist(), strict=True):
        logits = [mp.fdot(sample, row) for row in classes]
        losses.append(mp.log(mp.fsum(mp.exp(v) for v in logits)) - logits[right])
    return [mean(losses)]


def updating(x: torch.Tensor) -> torch.Tensor:
    statistics = torch.zeros(2).to(x), torch.ones(2).to(x)
    update = torch.ops.aten._batch_norm_with_update
    return update(x, None, None, *statistics, 0.1, 1e-5)[0]


SEQUENCES = [
    Case("ctc_loss", (4, 2, 3), ctc, all_paths),
    Case(
        "embedding_bag, sum",
        (5, 2),
        lambda x: F.embedding_bag(
            PLACES, x[:4], BAGS, mode="sum", per_sample_weights=x.reshape(-1)[5:]
        ),
        lambda x: bags(
            [
                [v * w for v in x[i]]
                for i, w in zip(PLACES.tolist(), flat(x)[5:], strict=True)
            ],
            mp.fsum,
            range(5),
        ),
    ),
    Case(
        "embedding_bag, mean",
        (4, 2),
        lambda x: F.embedding_bag(PLACES, x, BAGS),
        lambda x: bags(x, mean),
    ),
    Case(
        "embedding_bag, max",
        (4, 2),
        lambda x: F.embedding_bag(PLACES, x, BAGS, mode="max"),
        lambda x: bags(x, max),
    ),
    Case(
        "segment_reduce, mean",
        (5,),
        lambda x: torch.segment_reduce(x, "mean", lengths=RUNS, initial=2.0),
        lambda x: segments(x, lambda v: (mp.fsum(v) + 2) / len(v), 2),
    ),
    Case(
        "segment_reduce, max",
        (5,),
        lambda x: torch.segment_reduce(x, "max", lengths=RUNS, initial=-4.0),
        lambda x: segments(x, max, -4),
    ),
    Case(
        "segment_reduce, prod at zeros",
        (5,),
        lambda x: torch.segment_reduce(x, "prod", lengths=RUNS),
        lambda x: segments(x, mp.fprod, 1),
        (0.0, 2.0, 0.0, -0.5, 0.0),
    ),
    Case("linear_cross_entropy, chunked", (6, 2), chunked, classified),
    Case(
        "cholesky",
        (2, 2),
        cholesky,
        lambda x: flat(rows(mp.cholesky(mp.matrix(x) * mp.matrix(x).T + mp.eye(2)))),
    ),
    Case(
        "native_dropout_backward",
        (2, 3),
        lambda x: torch.ops.aten.native_dropout_backward(x, KEPT, 1.5),
        lambda x: [
            v * 1.5 * kept
            for v, kept in zip(flat(x), KEPT.flatten().tolist(), strict=True)
        ],
    ),
    Case(
        "_native_batch_norm_legit",
        (3, 2),
        lambda x: torch._native_batch_norm_legit(x, None, None, True, 0.1, 1e-5)[0],
        lambda x: flat(transposed([standardized(row) for row in transposed(x)])),
    ),
    Case(
        "_batch_norm_with_update",
        (3, 2),
        updating,
        lambda x: flat(transposed([standardized(row) for row in transposed(x)])),
    ),
    Case(
        "tensor_split",
        (5,),
        lambda x: torch.cat(torch.tensor_split(x, torch.tensor([1, 4]))[::-1]),
        lambda x: [x[4], *x[1:4], x[0]],
    ),
]
