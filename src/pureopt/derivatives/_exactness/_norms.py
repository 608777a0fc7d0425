"""Normalizations as compositions: layer, batch and instance norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import (
    Table,
    spellings,
    squares,
    widened,
)

_PRIVATE = vars(torch)


def layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    r"""``torch.layer_norm``: :math:`(x - \bar x) / \sqrt{\mathrm{var}(x) + \epsilon}`."""
    del cudnn_enable
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def native_layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.native_layer_norm``: also what its kernel saves, which are constants."""
    shape = tuple(normalized_shape)
    dims = tuple(range(-len(shape), 0))
    fit = (
        input.shape[-len(shape) :],
        *(p.shape for p in (weight, bias) if p is not None),
    )
    if any(s != shape for s in fit):
        return torch.native_layer_norm(input, shape, weight, bias, eps)  # which says so
    y, mean, scale = _standardized(widened(input), dims, eps)
    y = _affine(y, weight, bias).to(input.dtype)
    return y, mean.detach(), scale.detach()


def batch_norm(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``torch.batch_norm``, in train mode with the statistics of the batch."""
    del cudnn_enabled
    return native_batch_norm(
        input, weight, bias, running_mean, running_var, training, momentum, eps
    )[0]


def native_batch_norm(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.native_batch_norm``: also what its kernel saves, which are constants."""
    x, shape = widened(input), _channels(input)
    if training or running_mean is None or running_var is None:
        _move(
            torch.batch_norm, input, running_mean, running_var, training, momentum, eps
        )
        dims = (0, *range(2, input.dim()))
        y, mean, scale = _standardized(x, dims, eps)
        mean, scale = mean.detach().reshape(-1), scale.detach().reshape(-1)
    else:
        y = _by_statistics(x, running_mean, running_var, eps, shape)
        mean = scale = x.new_empty(0)
    y = _affine(y, _reshaped(weight, shape), _reshaped(bias, shape))
    return y.to(input.dtype), mean, scale


def native_batch_norm_legit(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    *rest: Any,
    **named: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch._native_batch_norm_legit``: there may be no places for statistics."""
    if not rest:
        named = {"running_mean": None, "running_var": None, **named}
    elif isinstance(rest[0], bool):
        rest = (None, None, *rest)
    return native_batch_norm(input, weight, bias, *rest, **named)


def native_batch_norm_legit_no_training(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch._native_batch_norm_legit_no_training``."""
    statistics = running_mean, running_var
    return native_batch_norm(input, weight, bias, *statistics, False, momentum, eps)


def batch_norm_with_update(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``torch.ops.aten._batch_norm_with_update``: and no reserve for its backward."""
    statistics = running_mean, running_var
    found = native_batch_norm(input, weight, bias, *statistics, True, momentum, eps)
    return *found, torch.empty(0, dtype=torch.uint8, device=input.device)


def instance_norm(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``torch.instance_norm``: each channel of each sample by its own statistics."""
    del cudnn_enabled
    x, shape = widened(input), _channels(input)
    if use_input_stats or running_mean is None or running_var is None:
        move = torch.instance_norm
        _move(move, input, running_mean, running_var, use_input_stats, momentum, eps)
        y = _standardized(x, tuple(range(2, input.dim())), eps)[0]
    else:
        y = _by_statistics(x, running_mean, running_var, eps, shape)
    y = _affine(y, _reshaped(weight, shape), _reshaped(bias, shape))
    return y.to(input.dtype)


def _standardized(
    x: Tensor, dims: tuple[int, ...], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(dims, keepdim=True)
    centered = x - mean
    scale = torch.rsqrt(squares(centered).mean(dims, keepdim=True) + eps)
    return centered * scale, mean, scale


def _by_statistics(
    x: Tensor, mean: Tensor, variance: Tensor, eps: float, shape: tuple[int, ...]
) -> Tensor:
    scale = torch.rsqrt(widened(variance) + eps)
    return (x - mean.reshape(shape)) * scale.reshape(shape)


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def _channels(x: Tensor) -> tuple[int, ...]:
    """The shape in which a number per channel meets ``x``."""
    return (1, -1, *(1,) * (x.dim() - 2))


def _reshaped(x: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    return None if x is None else x.reshape(shape)


def _move(
    kernel: Any, x: Tensor, mean: Tensor | None, variance: Tensor | None, *rest: Any
) -> None:
    """Move the running statistics, which are data, as torch's own kernel does."""
    if mean is not None and variance is not None:
        training, momentum, eps = rest
        kernel(x.detach(), None, None, mean, variance, training, momentum, eps, False)


NORMS: Table = {
    torch.layer_norm: layer_norm,
    torch.native_layer_norm: native_layer_norm,
    torch.batch_norm: batch_norm,
    torch.native_batch_norm: native_batch_norm,
    torch.instance_norm: instance_norm,
    _PRIVATE["_native_batch_norm_legit"]: native_batch_norm_legit,
    _PRIVATE["_native_batch_norm_legit_no_training"]: (
        native_batch_norm_legit_no_training
    ),
    **spellings("_batch_norm_with_update", batch_norm_with_update),
}
