"""What the operations of `exact_cases` are by definition, in mpmath's numbers."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import torch

TARGET = torch.tensor([0.3, -1.2, 0.8, 2.5])


def walk(f, *trees):
    """``f`` number by number over nested lists."""
    if isinstance(trees[0], list):
        return [walk(f, *parts) for parts in zip(*trees, strict=True)]
    return f(*trees)


def flat(tree) -> list[Any]:
    return (
        [x for part in tree for x in flat(part)] if isinstance(tree, list) else [tree]
    )


def targets() -> list[float]:
    return TARGET.double().tolist()


def standardized(x):
    eps = mp.mpf("1e-5")
    mean = mp.fsum(x) / len(x)
    variance = mp.fsum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / mp.sqrt(variance + eps) for v in x]


def transposed(m):
    return [list(row) for row in zip(*m, strict=True)]


def inverse(m) -> mp.matrix:
    return mp.inverse(mp.matrix(m))


def rows(m: mp.matrix):
    return m.tolist()


def solved(x):
    return flat(rows(inverse(x) * mp.matrix([1, 2, 3])))


def p_norm(x, p=2):
    return mp.fsum(abs(v) ** p for v in x) ** (mp.mpf(1) / p)


def minus(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


def lower(x):
    return [[v if j <= i else 0 for j, v in enumerate(row)] for i, row in enumerate(x)]


def gram_inverse(x) -> mp.matrix:
    """The inverse of ``L L^T``."""
    triangle = mp.matrix(lower(x))
    return mp.inverse(triangle * triangle.T)


def reflections(x, tau):
    """The product of ``I - tau v v^T``, whose vectors stand below a diagonal of ones."""
    n = len(x)
    q = mp.eye(n)
    for i, scale in enumerate(tau):
        v = mp.matrix([0] * i + [1] + [x[j][i] for j in range(i + 1, n)])
        q = q * (mp.eye(n) - scale * v * v.T)
    return q


def products(x):
    return [mp.fprod(x[: i + 1]) for i in range(len(x))]


def log_sum_exp(x):
    return mp.log(mp.fsum(mp.exp(v) for v in x))


def cosine(x, y):
    return mp.fdot(x, y) / p_norm(x) / p_norm(y)


def damped_cosine(x, y):
    """As a loss has it, without a pole at zero."""
    eps = mp.mpf("1e-12")
    return mp.fdot(x, y) / mp.sqrt((mp.fdot(x, x) + eps) * (mp.fdot(y, y) + eps))


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def huber(x):
    return x * x / 2 if abs(x) <= 1 else abs(x) - mp.mpf(1) / 2


def attention(x, *, causal=False):
    scale = 1 / mp.sqrt(len(x[0]))
    out = []
    for i, query in enumerate(x):
        keys = x[: i + 1] if causal else x
        e = [mp.exp(scale * mp.fdot(query, key)) for key in keys]
        total = mp.fsum(e)
        columns = transposed(keys)
        out += [mp.fdot(e, column) / total for column in columns]
    return out


def margins(x, labels):
    """One sample against each of its labels."""
    others = [k for k in range(len(x)) if k not in labels]
    return mp.fsum(max(0, 1 - x[j] + x[k]) for j in labels for k in others) / len(x)


def minor(x, j):
    """Of the first row of a 3 x 3 matrix."""
    (a, b), (c, d) = ([v for k, v in enumerate(row) if k != j] for row in x[1:])
    return a * d - b * c


def cross_entropy(x):
    pairs = zip(x, targets(), strict=True)
    return mp.fsum(mp.log1p(mp.exp(v)) - sigmoid(mp.mpf(y)) * v for v, y in pairs) / 4
