"""Losses as compositions, with the signatures of torch's kernels.

``reduction`` is the number that ``F`` makes of the word: 0, 1 or 2. Without one the kernels
reduce nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import (
    KERNELS,
    Table,
    is_inexact,
    reduced,
    softplus,
)

# What torch takes for the logarithm of a probability that is smaller than its exponential.
_LEAST_LOG = -100.0


def mse_loss(input: Tensor, target: Tensor, reduction: int = 0) -> Tensor:  # noqa: A002
    """``F.mse_loss``."""
    gap = input - target
    return reduced(gap * gap, reduction)


def huber_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    reduction: int = 0,
    delta: float = 1.0,
) -> Tensor:
    """``F.huber_loss``."""
    if delta <= 0:
        return KERNELS.huber_loss(input, target, reduction, delta)  # which refuses it
    gap = input - target
    size = gap.abs()
    loss = torch.where(size <= delta, 0.5 * gap * gap, delta * (size - 0.5 * delta))
    return reduced(loss, reduction)


def soft_margin_loss(input: Tensor, target: Tensor, reduction: int = 0) -> Tensor:  # noqa: A002
    """``F.soft_margin_loss``."""
    return reduced(softplus(-target * input), reduction)


def binary_cross_entropy(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 0,
) -> Tensor:
    """``F.binary_cross_entropy``: constant where torch bounds the logarithm."""
    loss = (target - 1) * _log(1 - input) - target * _log(input)
    return reduced(loss if weight is None else loss * weight, reduction)


def _log(x: Tensor) -> Tensor:
    """NaN of what is no probability, for which torch's kernel raises."""
    least = (x >= 0) & (x <= math.exp(_LEAST_LOG))
    return torch.where(least, _LEAST_LOG, torch.where(least, 1.0, x).log())


def binary_cross_entropy_with_logits(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 0,
) -> Tensor:
    """``F.binary_cross_entropy_with_logits``."""
    yes = target if pos_weight is None else target * pos_weight
    loss = yes * softplus(-input) + (1 - target) * softplus(input)
    return reduced(loss if weight is None else loss * weight, reduction)


def multi_margin_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    p: float = 1,
    margin: float = 1,
    weight: Tensor | None = None,
    reduction: int = 0,
) -> Tensor:
    """``F.multi_margin_loss``."""
    if not input.numel() or target.dim() > 1 or target.dtype != torch.int64:
        return KERNELS.multi_margin_loss(input, target)  # which refuses it
    x = input.reshape(*target.shape, -1)
    classes = torch.arange(x.shape[-1], device=x.device)
    right = classes == target.unsqueeze(-1)
    score = torch.where(right, x, 0.0).sum(-1, keepdim=True)
    excess = torch.where(right, 0.0, (margin - score + x).clamp_min(0))
    loss = excess if p == 1 else excess * excess
    if weight is not None:
        loss = loss * torch.where(right, weight, 0.0).sum(-1, keepdim=True)
    return reduced(loss.sum(-1) / x.shape[-1], reduction)


def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: int = 0) -> Tensor:  # noqa: A002
    """``F.multilabel_margin_loss``: labels count up to the first ``-1``."""
    if not input.numel() or target.shape != input.shape:
        return KERNELS.multilabel_margin_loss(input, target, reduction)
    if not input.dim():
        return multilabel_margin_loss(
            input.unsqueeze(0), target.unsqueeze(0), reduction
        )
    classes = torch.arange(input.shape[-1], device=input.device)
    listed = (target >= 0).long().cumprod(-1).bool()
    is_label = (target.unsqueeze(-1) == classes) & listed.unsqueeze(-1)
    score = torch.where(is_label, input.unsqueeze(-2), 0.0).sum(-1, keepdim=True)
    counts = listed.unsqueeze(-1) & ~is_label.any(-2, keepdim=True)
    excess = (1 - score + input.unsqueeze(-2)).clamp_min(0)
    loss = torch.where(counts, excess, 0.0).sum((-2, -1)) / input.shape[-1]
    return reduced(loss, reduction)


def hinge_embedding_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    margin: float = 1.0,
    reduction: int = 0,
) -> Tensor:
    """``F.hinge_embedding_loss``: torch writes lanes to what has none."""
    if not is_inexact(input):
        return torch.hinge_embedding_loss(input, target, margin, reduction)
    apart = torch.where(target != 1, (margin - input).clamp_min(0), 0.0)
    return reduced(apart + torch.where(target != -1, input, 0.0), reduction)


def gaussian_nll_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """``F.gaussian_nll_loss``: NaN where a variance is negative, for which torch raises.

    Where a variance is raised to ``eps``, it has the derivatives of what it was.
    """
    number = {"none": 0, "mean": 1, "sum": 2}.get(reduction)
    variance = _variance(var, input)
    if number is None or variance is None:  # which it refuses
        return F.gaussian_nll_loss(input, target, var, full, eps, reduction)
    constant = variance.detach()
    lifted = torch.where(constant < eps, variance - constant + eps, variance)
    lifted = torch.where(constant < 0, torch.nan, lifted)
    gap = input - target
    loss = 0.5 * (lifted.log() + gap * gap / lifted)
    return reduced(loss + 0.5 * math.log(math.tau) if full else loss, number)


def _variance(var: Tensor | float, x: Tensor) -> Tensor | None:
    """The variances that are broadcast to ``x``, if torch takes them for such."""
    if not isinstance(var, Tensor):
        fits = isinstance(var, float) and var >= 0
        return var * torch.ones_like(x) if fits else None
    if not var.dtype.is_floating_point:
        return None
    if var.shape == x.shape[:-1] and x.dim():
        return var.unsqueeze(-1)
    unlike = [m for m, n in zip(var.shape, x.shape, strict=False) if m != n]
    fits = var.dim() == x.dim() and unlike in ([], [1])
    return var if fits else None


LOSSES: Table = {
    KERNELS.mse_loss: mse_loss,
    KERNELS.huber_loss: huber_loss,
    KERNELS.soft_margin_loss: soft_margin_loss,
    KERNELS.binary_cross_entropy: binary_cross_entropy,
    torch.binary_cross_entropy_with_logits: binary_cross_entropy_with_logits,
    KERNELS.multi_margin_loss: multi_margin_loss,
    KERNELS.multilabel_margin_loss: multilabel_margin_loss,
    torch.hinge_embedding_loss: hinge_embedding_loss,
    F.gaussian_nll_loss: gaussian_nll_loss,
}
