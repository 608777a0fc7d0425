"""Rules of the kernels of losses that are not compositions already.

``F`` checks the arguments and calls them; ``reduction`` is the number that it makes of the
word: 0, 1 or 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import reduced
from pureopt.derivatives._jets._jet import RULES
from pureopt.derivatives._jets._register import rule
from pureopt.derivatives._jets._shapes import value_of

_ENUM = {"none": 0, "mean": 1, "sum": 2}

_kernels: Any = torch._C._nn  # noqa: SLF001  # pyright: ignore[reportPrivateUsage,reportAttributeAccessIssue]


def l1_loss(input: Any, target: Any, reduction: int = 1) -> Any:  # noqa: A002
    return reduced(torch.abs(input - target), reduction)


def smooth_l1_loss(input: Any, target: Any, reduction: int = 1, beta: float = 1) -> Any:  # noqa: A002
    gap = input - target
    size = torch.abs(gap)
    near = value_of(size) < beta
    return reduced(
        torch.where(near, torch.square(gap) * (0.5 / beta), size - 0.5 * beta),
        reduction,
    )


def nll_loss_nd(
    input: Any,  # noqa: A002
    target: Tensor,
    weight: Any = None,
    reduction: int = 1,
    ignore_index: int = -100,
) -> Any:
    dim = 0 if input.dim() == 1 else 1
    used = target != ignore_index
    safe = torch.where(used, target, 0)
    chosen = torch.gather(input, dim, safe.unsqueeze(dim)).squeeze(dim)
    share = used.to(input.dtype)
    if weight is not None:
        share = share * weight.index_select(0, safe.reshape(-1)).reshape(safe.shape)
    loss = torch.where(used, -chosen * share, 0.0)
    return loss.sum() / share.sum() if reduction == 1 else reduced(loss, reduction)


def cross_entropy_loss(
    input: Any,  # noqa: A002
    target: Any,
    weight: Any = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    dim = 0 if input.dim() == 1 else 1
    log_p = torch.log_softmax(input, dim)
    if target.dtype.is_floating_point:
        return _soft(log_p, target, weight, reduction, label_smoothing, dim)
    hard = nll_loss_nd(log_p, target, weight, reduction, ignore_index)
    if not label_smoothing:
        return hard
    scale = _along(weight, dim, log_p)
    all_classes = -(log_p if scale is None else log_p * scale).sum(dim)
    smooth = torch.where(target != ignore_index, all_classes, 0.0)
    if reduction == 1:
        used = target != ignore_index
        share = used.to(log_p.dtype)
        if weight is not None:
            safe = torch.where(used, target, 0)
            share = weight.index_select(0, safe.reshape(-1)).reshape(safe.shape) * share
        smooth = smooth.sum() / share.sum()
    else:
        smooth = reduced(smooth, reduction)
    rest = label_smoothing / input.shape[dim]
    return hard * (1 - label_smoothing) + smooth * rest


def _along(weight: Any, dim: int, like: Any) -> Any:
    """The weights of classes, beside a tensor that has them along ``dim``."""
    return weight if weight is None else weight.reshape(-1, *[1] * (like.dim() - dim - 1))


def _soft(
    log_p: Any, target: Any, weight: Any, reduction: int, smoothing: float, dim: int
) -> Any:
    """The cross entropy with probabilities as targets."""
    n = log_p.shape[dim]
    if smoothing:
        target = target * (1 - smoothing) + smoothing / n
    scale = _along(weight, dim, log_p)
    each = -(log_p * target if scale is None else log_p * scale * target).sum(dim)
    if reduction == 1:
        return each.sum() / max(1, math.prod(each.shape))
    return reduced(each, reduction)


for _name, _rule in (
    ("l1_loss", l1_loss), ("smooth_l1_loss", smooth_l1_loss),
    ("nll_loss_nd", nll_loss_nd), ("cross_entropy_loss", cross_entropy_loss),
):  # fmt: skip
    RULES[getattr(_kernels, _name)] = _rule


def kl_div(input: Any, target: Any, reduction: int = 1, *, log_target: bool = False) -> Any:  # noqa: A002
    if log_target:
        return reduced(torch.exp(target) * (target - input), reduction)
    return reduced(torch.xlogy(target, target) - target * input, reduction)


def poisson_nll_loss(
    input: Any,  # noqa: A002
    target: Any,
    log_input: bool,
    full: bool,
    eps: float,
    reduction: int,
) -> Any:
    if log_input:
        loss = torch.exp(input) - target * input
    else:
        loss = input - target * torch.log(input + eps)
    if full:
        stirling = target * torch.log(target) - target + 0.5 * torch.log(target * math.tau)
        loss = loss + torch.where(value_of(target) > 1, stirling, 0.0)
    return reduced(loss, reduction)


def cosine_embedding_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: int = 1
) -> Any:
    tiny = 1e-12  # torch's own, which is none of the arguments
    dot = (input1 * input2).sum(-1)
    left = torch.square(input1).sum(-1) + tiny
    right = torch.square(input2).sum(-1) + tiny
    cosine = dot / torch.sqrt(left * right)
    other = torch.where(target == -1, torch.clamp(cosine - margin, min=0), 0.0)
    return reduced(torch.where(target == 1, 1 - cosine, other), reduction)


def hinge_embedding_loss(
    input: Any,  # noqa: A002
    target: Tensor,
    margin: float = 1.0,
    reduction: int = 1,
) -> Any:
    apart = torch.where(target != 1, torch.clamp(margin - input, min=0), 0.0)
    return reduced(apart + torch.where(target != -1, input, 0.0), reduction)


def margin_ranking_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: int = 1
) -> Any:
    return reduced(torch.clamp(-target * (input1 - input2) + margin, min=0), reduction)


for _rule in (
    kl_div, poisson_nll_loss, cosine_embedding_loss, hinge_embedding_loss,
    margin_ranking_loss,
):  # fmt: skip
    RULES[getattr(torch, _rule.__name__)] = _rule


@rule("gaussian_nll_loss")
def gaussian_nll_loss(
    input: Any,  # noqa: A002
    target: Any,
    var: Any,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Any:
    """Where the variance is raised to ``eps``, it has the derivatives of what it was."""
    if isinstance(var, float):
        var = torch.full_like(value_of(input), var)
    if input.shape != var.shape and input.shape[:-1] == var.shape:
        var = var.unsqueeze(-1)
    lift = torch.clamp(value_of(var), min=eps) - value_of(var)
    var = var + lift
    loss = (torch.log(var) + torch.square(input - target) / var) * 0.5
    if full:
        loss = loss + 0.5 * math.log(math.tau)
    return reduced(loss, _ENUM[reduction])
