"""Sums over recorded uses, without the gradients per sample in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pureopt.derivatives._per_sample._record import Recorded
from pureopt.derivatives._per_sample._uses import Blocks, Factored, Lookup

# How many numbers a portion may hold: 16 MiB in float32.
BUDGET = 2**22
# The same on a CPU, where new memory is slow and the cache is fast, if nothing is to be
# put together of the portions.
CACHED = 2**19


class Leaf(NamedTuple):
    """The uses of a leaf in so many samples; there is at least one use."""

    like: Tensor
    uses: list[Recorded]
    samples: int

    @property
    def blocks(self) -> Blocks:
        """``(groups, m, n)``: the leaf as blocks of matrices."""
        asked = [use.blocks() for use, _, _ in self.factored]
        return asked[0] if asked else (1, 1, self.like.numel())

    @property
    def factored(self) -> list[tuple[Factored, Tensor, Tensor]]:
        """The uses that are sums of outer products."""
        return [(u, s, d) for u, s, d in self.uses if isinstance(u, Factored)]

    @property
    def positions(self) -> int:
        """How many outer products make up the gradient of a sample."""
        return sum(use.positions(saved, delta) for use, saved, delta in self.factored)

    @property
    def pairs(self) -> bool:
        """All uses are sums of outer products, so that inner products are too."""
        return len(self.factored) == len(self.uses)

    @property
    def direct(self) -> bool:
        """All uses form the gradients without their factors."""
        return all(use.direct(saved, delta) for use, saved, delta in self.factored)

    @property
    def lookups(self) -> bool:
        """All uses read rows of a table."""
        return all(isinstance(recorded.use, Lookup) for recorded in self.uses)

    def part(self, lo: int, hi: int) -> Leaf:
        """Some of the samples."""
        if (lo, hi) == (0, self.samples):
            return self
        uses = [
            Recorded(use, saved[lo:hi], delta[lo:hi]) for use, saved, delta in self.uses
        ]
        return Leaf(self.like, uses, hi - lo)

    def portions(self, numbers: int, budget: int | None = None) -> Iterator[Leaf]:
        """The samples in portions, where each sample needs so many numbers."""
        for lo, hi in portions(self.samples, numbers, budget):
            yield self.part(lo, hi)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The outer products: ``(samples, groups, t, m)`` and ``(samples, groups, t, n)``."""
        both = [use.factors(saved, delta) for use, saved, delta in self.factored]
        left, right = (_joined(factors, 2) for factors in zip(*both, strict=True))
        return left.to(self.like.dtype), right.to(self.like.dtype)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Of lookups the rows, ``(samples, 1, t)``, and the gradients there."""
        both = [u.rows(s, d) for u, s, d in self.uses if isinstance(u, Lookup)]
        ids, right = zip(*both, strict=True)
        return _joined(ids, 2), _joined(right, 2).to(self.like.dtype)

    def dense(self, rows: slice = slice(None)) -> Tensor:
        """The gradients, ``(samples, groups, rows, n)``, portion by portion."""
        g, m, n = self.blocks
        height = len(range(*rows.indices(m)))
        numbers = g * (height * n + self.positions * (m + n))
        return _joined([part.at_once(rows) for part in self.portions(numbers)])

    def at_once(self, rows: slice = slice(None)) -> Tensor:
        """The gradients, ``(samples, groups, rows, n)``."""
        first, *rest = (
            use.dense(saved, delta, self.blocks, rows).to(self.like.dtype)
            for use, saved, delta in self.uses
        )
        return sum(rest, first)

    def bands(self) -> Iterator[slice]:
        """The rows in portions, each for all samples."""
        g, m, n = self.blocks
        for lo, hi in portions(m, self.samples * g * n):
            yield slice(lo, hi)


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """One after the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def portions(
    total: int, numbers: int, budget: int | None = None
) -> Iterator[tuple[int, int]]:
    """``range(total)`` in pieces within the budget, where one needs so many numbers."""
    most = max(1, (BUDGET if budget is None else budget) // max(1, numbers))
    step = max(1, -(-total // max(1, -(-total // most))))  # alike, rounded up
    for lo in range(0, total, step):
        yield lo, min(lo + step, total)


def squared_norms(leaf: Leaf) -> Tensor:
    r""":math:`|g_i|^2`, by whichever is cheaper: the gradients, or their factors.

    .. math:: |g_i|^2 = \sum_{ts} (L_{it} \cdot L_{is}) (R_{it} \cdot R_{is})
    """
    g, m, n = leaf.blocks
    t = leaf.positions
    formed = (m * n) // 2 if leaf.direct else m * n + m + n
    budget = min(BUDGET, CACHED) if leaf.like.device.type == "cpu" else BUDGET
    if leaf.pairs and (leaf.lookups or t * (m + n) <= formed):
        parts = leaf.portions(g * t * (2 * t + m + n), budget)
        return _joined([_paired_norms(part) for part in parts])
    factors = 0 if leaf.direct else t * (m + n)
    parts = leaf.portions(g * (m * n + factors), budget)
    return _joined([part.at_once().square().sum((1, 2, 3)) for part in parts])


def _paired_norms(leaf: Leaf) -> Tensor:
    if leaf.lookups:
        ids, right = leaf.rows()
        same = ids[..., :, None] == ids[..., None, :]
        return torch.where(same, right @ right.mT, 0.0).sum((1, 2, 3))
    left, right = leaf.factors()
    if leaf.positions == 1:
        return (left.square().sum(3) * right.square().sum(3)).sum((1, 2))
    # Rounded products that cancel may be below zero.
    return ((left @ left.mT) * (right @ right.mT)).sum((1, 2, 3)).clamp(min=0)


def gram(leaf: Leaf) -> Tensor:
    r""":math:`g_i \cdot g_j`, by whichever is cheaper, as :func:`squared_norms`."""
    g, m, n = leaf.blocks
    t, b = leaf.positions, leaf.samples
    if leaf.pairs and t * t * (m + n) <= m * n:
        parts = leaf.portions(2 * g * t * b * t)
        return _joined([_paired_gram(part, leaf) for part in parts])
    total = leaf.like.new_zeros(b, b)
    for rows in leaf.bands():
        x = leaf.dense(rows).reshape(b, -1)
        total = total + x @ x.mT
    return total


def _paired_gram(part: Leaf, leaf: Leaf) -> Tensor:
    t, sizes = leaf.positions, (part.samples, leaf.samples)
    if leaf.lookups:
        (i, x), (j, y) = part.rows(), leaf.rows()
        same = i.reshape(-1, 1) == j.reshape(1, -1)
        products = torch.where(same, x.flatten(0, 2) @ y.flatten(0, 2).mT, 0.0)
        return products.reshape(sizes[0], t, sizes[1], t).sum((1, 3))
    (a, x), (b, y) = _stacked(part), _stacked(leaf)
    products = ((a @ b.mT) * (x @ y.mT)).sum(0)
    return products.reshape(sizes[0], t, sizes[1], t).sum((1, 3))


def _stacked(leaf: Leaf) -> tuple[Tensor, Tensor]:
    left, right = (x.movedim(1, 0).flatten(1, 2) for x in leaf.factors())
    return left, right


def mean(leaf: Leaf) -> Tensor:
    """The mean over the samples, ``(numel,)``."""
    g, m, n = leaf.blocks
    total = leaf.like.new_zeros(leaf.like.numel())
    for part in leaf.portions(g * leaf.positions * (n if leaf.lookups else m + n)):
        for use, saved, delta in part.uses:
            total = total + use.total(saved, delta).to(total.dtype)
    return total / leaf.samples


def variance(leaf: Leaf) -> Tensor:
    """The unbiased variance over the samples, ``(numel,)``."""
    b = leaf.samples
    if leaf.pairs and leaf.positions == 1 and not leaf.lookups:
        left, right = _stacked(leaf)
        squares = left.square().mT @ right.square()
        centered = squares - (left.mT @ right).square() / b
        # A difference of rounded sums, which may be below zero.
        return centered.clamp(min=0).reshape(-1) / (b - 1)
    bands: list[Tensor] = []
    for rows in leaf.bands():
        x = leaf.dense(rows)
        bands.append((x - x.mean(0)).square().sum(0) / (b - 1))
    return _joined(bands, 1).reshape(-1)
