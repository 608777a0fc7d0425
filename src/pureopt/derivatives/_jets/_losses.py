"""Rules of losses; those of them that are compositions already are not here.

Those of ``F`` whose kernels the compiler does not let a jet stand in for stand for the
functions of ``F``, the others for the kernels in ``torch``, to which ``F`` gives the
reduction as a number.
"""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness import _losses
from pureopt.derivatives._exactness._numeric import reduced
from pureopt.derivatives._jets._jet import RULES
from pureopt.derivatives._jets._register import rule
from pureopt.derivatives._jets._shapes import value_of

_ENUM = {"none": 0, "mean": 1, "sum": 2}


def _number(reduction: str, *legacy: bool | None) -> int:
    """The number of a reduction; the two flags that preceded it are refused."""
    if any(flag is not None for flag in legacy):
        raise DerivativeError(
            "jet(f=...)",
            "name the reduction of a loss",
            "`size_average` or `reduce`",
            "Use `reduction='mean'`, `'sum'` or `'none'`.",
        )
    if reduction not in _ENUM:
        where, got = "jet(f=...)", f"`reduction={reduction!r}`"
        raise DerivativeError(where, "reduce by 'mean', 'sum' or 'none'", got)
    return _ENUM[reduction]


@rule("mse_loss")
def mse_loss(
    input: Any,  # noqa: A002
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Any:
    how = _number(reduction, size_average, reduce)
    gap = torch.square(input - target)
    return _weighted(gap, weight, how)


def _weighted(loss: Any, weight: Any, how: int) -> Any:
    """With weights the mean is weighted."""
    if weight is None:
        return reduced(loss, how)
    loss = loss * weight
    return loss.sum() / weight.sum() if how == 1 else reduced(loss, how)


@rule("l1_loss")
def l1_loss(
    input: Any,  # noqa: A002
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Any:
    how = _number(reduction, size_average, reduce)
    return _weighted(torch.abs(input - target), weight, how)


@rule("smooth_l1_loss")
def smooth_l1_loss(
    input: Any,  # noqa: A002
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Any:
    how = _number(reduction, size_average, reduce)
    gap = input - target
    size = torch.abs(gap)
    if not beta:
        return reduced(size, how)
    near = value_of(size) < beta
    quadratic = torch.square(gap) * (0.5 / beta)
    return reduced(torch.where(near, quadratic, size - 0.5 * beta), how)


@rule("huber_loss")
def huber_loss(
    input: Any,  # noqa: A002
    target: Any,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Any = None,
) -> Any:
    loss = _losses.huber_loss(input, target, 0, delta)
    return reduced(loss if weight is None else loss * weight, _number(reduction))


@rule("soft_margin_loss")
def soft_margin_loss(
    input: Any,  # noqa: A002
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    how = _number(reduction, size_average, reduce)
    return _losses.soft_margin_loss(input, target, how)


@rule("binary_cross_entropy")
def binary_cross_entropy(
    input: Any,  # noqa: A002
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    how = _number(reduction, size_average, reduce)
    return _losses.binary_cross_entropy(input, target, weight, how)


@rule("nll_loss")
def nll_loss(
    input: Any,  # noqa: A002
    target: Tensor,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    how = _number(reduction, size_average, reduce)
    return _chosen(input, target, _shares(input, target, weight, ignore_index), how)


def _classes(x: Any) -> int:
    """The dimension of the classes."""
    return 0 if len(x.shape) == 1 else 1


def _shares(x: Any, target: Tensor, weight: Any, ignored: int) -> Any:
    """How much each label counts."""
    used = target != ignored
    share = used.to(x.dtype)
    if weight is None:
        return share
    safe = torch.where(used, target, 0)
    return weight.index_select(0, safe.reshape(-1)).reshape(safe.shape) * share


def _chosen(log_p: Any, target: Tensor, share: Any, how: int) -> Any:
    dim, used = _classes(log_p), value_of(share) != 0
    safe = torch.where(used, target, 0).unsqueeze(dim)
    chosen = torch.gather(log_p, dim, safe).squeeze(dim)
    # Where a label does not count its probability may be zero.
    return _mean_over(torch.where(used, -chosen, 0.0) * share, share, how)


def _mean_over(loss: Any, share: Any, how: int) -> Any:
    return loss.sum() / share.sum() if how == 1 else reduced(loss, how)


@rule("cross_entropy")
def cross_entropy(
    input: Any,  # noqa: A002
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    how, dim = _number(reduction, size_average, reduce), _classes(input)
    log_p = torch.log_softmax(input, dim)
    scale = weight
    if weight is not None:
        scale = weight.reshape(-1, *[1] * (len(input.shape) - dim - 1))
    n = input.shape[dim]
    if target.dtype.is_floating_point:
        soft = target * (1 - label_smoothing) + label_smoothing / n
        each = -(log_p * soft if scale is None else log_p * soft * scale).sum(dim)
        return each.sum() / math.prod(each.shape) if how == 1 else reduced(each, how)
    share = _shares(input, target, weight, ignore_index)
    hard = _chosen(log_p, target, share, how)
    if not label_smoothing:
        return hard
    every = -(log_p if scale is None else log_p * scale).sum(dim)
    smooth = _mean_over(torch.where(target != ignore_index, every, 0.0), share, how)
    return hard * (1 - label_smoothing) + smooth * (label_smoothing / n)


def kl_div(
    input: Any,  # noqa: A002
    target: Any,
    reduction: int = 0,
    *,
    log_target: bool = False,
) -> Any:
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
        stirling = (
            target * torch.log(target) - target + torch.log(target * math.tau) / 2
        )
        loss = loss + torch.where(value_of(target) > 1, stirling, 0.0)
    return reduced(loss, reduction)


def cosine_embedding_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: int = 0
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
    reduction: int = 0,
) -> Any:
    apart = torch.where(target != 1, torch.clamp(margin - input, min=0), 0.0)
    return reduced(apart + torch.where(target != -1, input, 0.0), reduction)


def margin_ranking_loss(
    input1: Any, input2: Any, target: Any, margin: float = 0.0, reduction: int = 0
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
    return reduced(loss, _number(reduction))
