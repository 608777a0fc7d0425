"""The connectionist temporal classification loss as a composition."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt.derivatives._exactness._numeric import Table, is_inexact, reduced

Lengths = Tensor | Sequence[Any]
_TORCH: Any = torch.ctc_loss


class _Samples(NamedTuple):
    """What the recursion needs of a batch; shorter labels are filled up by blanks."""

    frames: Int[Tensor, " n"]
    counts: Int[Tensor, " n"]
    labels: Int[Tensor, "n s"]


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: int = 0,
    zero_infinity: bool = False,
) -> Tensor:
    """``torch.ctc_loss``, with the derivatives of its value.

    Torch's gradient differs by the exponential of ``log_probs``: through the
    ``log_softmax`` they are expected to come from, both are the same. Where a label is the
    blank, torch's is wrong. What no path spells has an infinite loss and, as in torch, the
    derivative NaN.

    The memory is that of the frames times the labels: labels that are more than the frames
    are not looked at. Lengths in tensors are not read: where torch would refuse them the
    loss is NaN.
    """
    single = log_probs.dim() == 2  # noqa: PLR2004
    x = log_probs.unsqueeze(1) if single else log_probs
    if not _fits(x, targets, blank) or not _count(
        input_lengths, target_lengths, x, targets
    ):
        lengths = input_lengths, target_lengths
        return _TORCH(log_probs, targets, *lengths, blank, reduction, zero_infinity)
    frames, counts = _tensor(input_lengths, x), _tensor(target_lengths, x)
    labels = _labels(targets.to(x.device), target_lengths, x, blank)
    samples = _Samples(frames, counts, labels)
    loss = _loss(x, samples, blank, zero_infinity)
    loss = torch.where(_valid(targets, samples, x.shape[0]), loss, torch.nan)
    if reduction == 1:
        loss = loss / counts.clamp_min(1)
    return reduced(loss.squeeze(0) if single else loss, reduction)


def _fits(x: Tensor, targets: Tensor, blank: int) -> bool:
    """Whether torch takes these tensors."""
    return (
        x.dim() == 3  # noqa: PLR2004
        and x.dtype in {torch.float32, torch.float64}
        and bool(x.numel())
        and 0 <= blank < x.shape[-1]
        and (
            targets.dim() == 1
            or (targets.dim() == 2 and targets.shape[0] == x.shape[1])  # noqa: PLR2004
        )
    )


def _count(frames: Lengths, counts: Lengths, x: Tensor, targets: Tensor) -> bool:
    """Whether torch takes these lengths, as far as no tensor must be read for it."""
    if isinstance(frames, Tensor) and isinstance(counts, Tensor):
        both = (frames, counts)
        return all(v.numel() == x.shape[1] and not is_inexact(v) for v in both)
    if isinstance(frames, Tensor) or isinstance(counts, Tensor):
        return False
    both = (frames, counts)
    return (
        all(isinstance(v, (list, tuple)) and len(v) == x.shape[1] for v in both)
        and all(isinstance(k, (Integral, torch.SymInt)) for v in both for k in v)
        and min(*frames, *counts) >= 0
        and max(frames) <= x.shape[0]
        and (
            sum(counts) == targets.shape[0]
            if targets.dim() == 1
            else max(counts) <= targets.shape[1]
        )
    )


def _tensor(lengths: Lengths, like: Tensor) -> Int[Tensor, " n"]:
    if isinstance(lengths, Tensor):
        return lengths.reshape(-1).to(device=like.device, dtype=torch.int64)
    return torch.tensor(list(lengths), device=like.device)


def _labels(
    targets: Tensor, lengths: Lengths, x: Float[Tensor, "t n c"], blank: int
) -> Int[Tensor, "n s"]:
    """A row for each sample, of no more labels than there are frames to spell them."""
    most = targets.shape[-1] if isinstance(lengths, Tensor) else max(lengths)
    places = torch.arange(min(most, x.shape[0]), device=x.device)
    counts = _tensor(lengths, x)
    if targets.dim() == 1:
        first = counts.cumsum(0) - counts
        index = (first.unsqueeze(-1) + places).clamp(0, max(targets.shape[0] - 1, 0))
        rows = targets.expand(counts.shape[0], -1).gather(1, index)
    else:
        rows = targets[:, : places.shape[0]]
    return torch.where(places < counts.unsqueeze(-1), rows.long(), blank)


def _valid(targets: Tensor, samples: _Samples, frames: int) -> Tensor:
    """What torch checks of the lengths, for each sample."""
    counts = samples.counts
    fits = (samples.frames >= 0) & (samples.frames <= frames) & (counts >= 0)
    if targets.dim() == 1:
        return fits & (counts.sum() == targets.shape[0])
    return fits & (counts <= targets.shape[1])


def _loss(
    x: Float[Tensor, "t n c"], samples: _Samples, blank: int, zero_infinity: bool
) -> Float[Tensor, " n"]:
    """Minus the logarithm of the probability of all paths that spell the labels."""
    live = torch.arange(x.shape[0], device=x.device).unsqueeze(-1) < samples.frames
    ends = _ends(x, samples, live, blank)
    top, total = _exponentials(ends)
    # A label count beyond the frames was cut: no path spells it.
    dead = (total == 0) | (samples.counts > samples.labels.shape[1])
    if zero_infinity:
        return torch.where(dead, 0.0, -(torch.where(dead, 1.0, total).log() + top))
    # The logarithm of nothing: infinite, and none of its derivatives exists.
    seen = live.unsqueeze(-1) & x.isfinite()
    nothing = 0 * torch.where(seen, x, 0.0).sum((0, 2))
    return -(torch.where(dead, nothing, total).log() + torch.where(dead, 0.0, top))


def _ends(
    x: Float[Tensor, "t n c"], samples: _Samples, live: Tensor, blank: int
) -> Float[Tensor, "2 n"]:
    """The logarithms of the probabilities of the two states in which a path may end.

    The states are the labels with blanks around them. Before the first frame all paths are
    in the first, a blank. A frame keeps a path where it is, or moves it to the next state,
    or past a blank to another label. At minus infinity nothing is differentiated.

    References:
        Graves et al. (2006), equations 5 to 8.
    """
    labels = samples.labels
    between = torch.stack([torch.full_like(labels, blank), labels], -1).flatten(-2)
    states = torch.constant_pad_nd(between, (0, 1), blank)
    emitted = x.gather(-1, states.expand(x.shape[0], -1, -1))
    emitted = torch.where(live.unsqueeze(-1), emitted, 0.0)
    passes = states != torch.constant_pad_nd(states, (2, 0), blank)[:, :-2]
    start = torch.arange(states.shape[1], device=x.device) == 0
    alpha = torch.where(start, 0.0, -torch.inf).to(x.dtype).expand(states.shape)
    # Apart at once: the gradient of one frame alone is as large as all of them.
    for runs, given in zip(live.unsqueeze(-1).unbind(), emitted.unbind(), strict=True):
        before = torch.constant_pad_nd(alpha, (2, 0), -torch.inf)
        passed = torch.where(passes, before[:, :-2], -torch.inf)
        moved = _log_sum_exp(torch.stack([alpha, before[:, 1:-1], passed]))
        alpha = torch.where(runs, moved + given, alpha)
    last = (2 * samples.counts).clamp(0, states.shape[1] - 1)
    in_blank, in_label = (
        alpha.gather(1, place.unsqueeze(-1)).squeeze(-1)
        for place in (last, (last - 1).clamp_min(0))
    )
    return torch.stack(
        [in_blank, torch.where(samples.counts > 0, in_label, -torch.inf)]
    )


def _log_sum_exp(x: Tensor) -> Tensor:
    """Over the first dimension; a constant where all elements are minus infinity."""
    top, total = _exponentials(x)
    dead = total == 0
    return torch.where(dead, -torch.inf, torch.where(dead, 1.0, total).log() + top)


def _exponentials(x: Tensor) -> tuple[Tensor, Tensor]:
    """``a, b`` with ``exp(a) b`` the sum of the exponentials; ``a`` is a constant."""
    top = x.detach().amax(0)
    top = torch.where(top == -torch.inf, 0.0, top)
    return top, (x - top).exp().sum(0)


CTC: Table = {torch.ctc_loss: ctc_loss}
