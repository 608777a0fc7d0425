"""From the public call to the sums: the door of the per-sample quantities."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt._errors import DerivativeError, told
from pureopt._tree import check_params, tree_flatten, tree_leaves, tree_unflatten
from pureopt._typing import P
from pureopt.derivatives._exactness._numeric import widened
from pureopt.derivatives._per_sample import _sums
from pureopt.derivatives._per_sample._opaque import Opaque
from pureopt.derivatives._per_sample._record import record


class Seen(NamedTuple):
    """A recorded batch: what there is to know of each leaf.

    Sums are taken in float32 or wider.

    Attributes:
        leaves: The leaves of the parameters, in the dtype of the sums.
        uses: The recorded uses of each leaf; ``None`` where it has none.
        leaks: Of each leaf, whether it was used unseen; ``None`` if it cannot have been.
        opaque: The leaves that were not recorded.
        samples: How many samples there are.
        dtype: The widest of the parameters, for results.
    """

    leaves: list[Tensor]
    uses: list[_sums.Leaf | None]
    leaks: list[Tensor | None]
    opaque: Opaque
    samples: int
    dtype: torch.dtype

    @property
    def guards(self) -> list[Tensor]:
        """What to add to the results of each leaf: 0, or NaN if it was used unseen."""
        return [
            leaf.new_zeros(()) if leak is None else _guard(leak, leaf)
            for leaf, leak in zip(self.leaves, self.leaks, strict=True)
        ]

    def guard(self) -> Tensor:
        """What to add to a sum over the leaves."""
        leaks = [leak for leak in self.leaks if leak is not None]
        like = self.leaves[0]
        return _guard(torch.stack(leaks).any(), like) if leaks else like.new_zeros(())

    def squared_norms(self) -> list[Tensor]:
        """For each leaf ``(samples,)``."""
        pairs = zip(self._squares(), self.guards, strict=True)
        return [squares + guard for squares, guard in pairs]

    def squared_norm(self) -> Tensor:
        """``(samples,)``, the sum over the leaves."""
        return torch.stack(self._squares()).sum(0) + self.guard()

    def _squares(self) -> list[Tensor]:
        squares = [
            leaf.new_zeros(self.samples) if uses is None else _sums.squared_norms(uses)
            for leaf, uses in zip(self.leaves, self.uses, strict=True)
        ]
        if self.opaque.chosen:
            pairs = zip(self.opaque.chosen, self.opaque.squared_norms(), strict=True)
            for i, square in pairs:
                squares[i] = square
        return squares

    def gram(self) -> Tensor:
        """``(samples, samples)``, the sum over the leaves."""
        parts = [_sums.gram(uses) for uses in self.uses if uses is not None]
        if self.opaque.chosen:
            parts.append(self.opaque.gram())
        parts.append(self.leaves[0].new_zeros(self.samples, self.samples))
        return sum(parts[1:], parts[0]) + self.guard()

    def moments(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and unbiased variance of each leaf."""
        moments = [
            (torch.zeros_like(leaf), torch.zeros_like(leaf))
            if uses is None
            else (_sums.mean(uses), _sums.variance(uses))
            for leaf, uses in zip(self.leaves, self.uses, strict=True)
        ]
        if self.opaque.chosen:
            for i, (m, v) in zip(
                self.opaque.chosen, self.opaque.moments(), strict=True
            ):
                moments[i] = m, v / (self.samples - 1)
        return [
            ((m + guard).reshape(leaf.shape), (v + guard).reshape(leaf.shape))
            for leaf, guard, (m, v) in zip(
                self.leaves, self.guards, moments, strict=True
            )
        ]

    def sums(self) -> tuple[Tensor, Tensor]:
        """The sum of the squared norms, and the squared norm of the mean."""
        b = self.samples
        pairs = [
            (_sums.squared_norms(uses).sum(), _sums.mean(uses).square().sum())
            for uses in self.uses
            if uses is not None
        ]
        if self.opaque.chosen:
            for mean, deviations in self.opaque.moments():
                signal = mean.square().sum()
                pairs.append((deviations.sum() + b * signal, signal))
        nothing = self.guard()
        pairs.append((nothing, nothing))
        squares, signals = zip(*pairs, strict=True)
        return torch.stack(squares).sum(), torch.stack(signals).sum()


def see(
    where: str,
    loss: Callable[..., Any],
    params: Any,
    batch: tuple[Any, ...],
    at_least: int = 1,
) -> Seen:
    """Record a batch.

    Args:
        where: The public call, for messages.
        loss: The loss of one sample.
        params: The parameters.
        batch: Trees of tensors with the samples in dimension 0.
        at_least: How many samples are needed.

    Raises:
        TreeError: If ``params`` holds something else than floating tensors.
        DerivativeError: If the batch is not made of tensors with as many samples each,
            or the loss is not a differentiable scalar.
    """
    check_params(f"{where}(params=...)", params)
    samples = count(where, batch, at_least)
    leaves = [widened(leaf) for leaf in tree_leaves(params)]
    dtype = reduce(torch.promote_types, [leaf.dtype for leaf in tree_leaves(params)])
    recording = record(f"{where}(loss=...)", loss, params, batch)
    uses = [
        _sums.Leaf(leaf, recorded, samples) if recorded else None
        for leaf, recorded in zip(leaves, recording.leaves, strict=True)
    ]
    hidden = [i for i, opaque in enumerate(recording.opaque) if opaque]
    opaque = Opaque(f"{where}(loss=...)", loss, params, batch, samples, hidden)
    return Seen(leaves, uses, recording.leaks, opaque, samples, dtype)


def _guard(leak: Tensor, like: Tensor) -> Tensor:
    return torch.where(leak, torch.nan, 0.0).to(like.dtype)


def like_leaves(params: P, values: list[Tensor]) -> P:
    """The tree of these values, in the dtypes of the parameters."""
    leaves, structure = tree_flatten(params)
    pairs = zip(values, leaves, strict=True)
    return tree_unflatten(structure, [value.to(leaf.dtype) for value, leaf in pairs])


def count(where: str, batch: tuple[Any, ...], at_least: int = 1) -> int:
    """How many samples the batch has.

    Raises:
        DerivativeError: If a leaf is no tensor or has another number of samples, or
            there are too few.
    """
    where = f"{where}(*batch)"
    rule = "hold tensors whose first dimension is the sample"
    leaves = tree_leaves(batch)
    hint = "Close over what all samples share: `lambda p, x: loss(p, x, shared)`."
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            raise DerivativeError(where, rule, told(leaf), hint)
    sizes = sorted({leaf.shape[0] for leaf in leaves})
    if len(sizes) != 1:
        got = f"{' and '.join(map(str, sizes))} samples" if sizes else "nothing"
        raise DerivativeError(where, rule, got, hint)
    if sizes[0] < at_least:
        samples = "sample" if at_least == 1 else "samples"
        raise DerivativeError(
            where, f"hold {at_least} {samples} or more", str(sizes[0])
        )
    return sizes[0]
