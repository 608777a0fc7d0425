"""Leaves with a use that has no rule: ``vmap(grad)`` with respect to them alone.

The samples go through in portions, so that the gradients never stand in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from pureopt._tree import tree_flatten, tree_map, tree_unflatten
from pureopt.derivatives import _checks
from pureopt.derivatives._exactness._numeric import widened
from pureopt.derivatives._per_sample._composites import for_vmap
from pureopt.derivatives._per_sample._sums import portions


class Opaque(NamedTuple):
    """The loss as a function of some of the leaves."""

    where: str
    loss: Callable[..., Any]
    params: Any
    batch: tuple[Any, ...]
    samples: int
    chosen: list[int]

    def gradients(self, lo: int, hi: int) -> list[Tensor]:
        """Of some of the samples, each ``(samples, numel)``."""
        leaves, structure = tree_flatten(self.params)

        def one(values: list[Tensor], *sample: Any) -> Tensor:
            inner = list(leaves)
            for i, leaf in zip(self.chosen, values, strict=True):
                inner[i] = leaf
            loss = for_vmap(self.loss)(tree_unflatten(structure, inner), *sample)
            return _checks.scalar(self.where, loss)

        part = tree_map(lambda leaf: leaf[lo:hi], self.batch)
        per_sample = vmap(grad(one), (None, *[0] * len(part)))
        values = [leaves[i] for i in self.chosen]
        grads = _checks.call(self.where, per_sample, values, *part)
        return [widened(g.reshape(hi - lo, -1)) for g in grads]

    def portions(self) -> Iterator[tuple[int, int]]:
        """The samples in portions."""
        leaves = tree_flatten(self.params)[0]
        return portions(self.samples, sum(leaves[i].numel() for i in self.chosen))

    def squared_norms(self) -> list[Tensor]:
        """As in ``_sums``, of each chosen leaf."""
        parts = [
            [g.square().sum(1) for g in self.gradients(lo, hi)]
            for lo, hi in self.portions()
        ]
        return [torch.cat(leaf) for leaf in zip(*parts, strict=True)]

    def gram(self) -> Tensor:
        """As in ``_sums``, the sum over the chosen leaves."""
        rows: list[Tensor] = []
        for lo, hi in self.portions():
            left = torch.cat(self.gradients(lo, hi), 1)
            blocks = [
                left @ torch.cat(self.gradients(a, b), 1).mT
                if a != lo
                else left @ left.mT
                for a, b in self.portions()
            ]
            rows.append(torch.cat(blocks, 1))
        return torch.cat(rows)

    def moments(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and sum of squared deviations of each chosen leaf, ``(numel,)``.

        References:
            Chan, Golub and LeVeque (1983).
        """
        merged: list[tuple[Tensor, Tensor]] = []
        for lo, hi in self.portions():
            parts = [_deviations(g) for g in self.gradients(lo, hi)]
            if merged:
                pairs = zip(merged, parts, strict=True)
                parts = [_merge(a, b, lo, hi - lo) for a, b in pairs]
            merged = parts
        return merged


def _deviations(g: Tensor) -> tuple[Tensor, Tensor]:
    mean = g.mean(0)
    return mean, (g - mean).square().sum(0)


def _merge(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], m: int, n: int
) -> tuple[Tensor, Tensor]:
    """Of ``m`` samples and of ``n`` others."""
    shift = b[0] - a[0]
    mean = a[0] + shift * (n / (m + n))
    return mean, a[1] + b[1] + shift.square() * (m * n / (m + n))
