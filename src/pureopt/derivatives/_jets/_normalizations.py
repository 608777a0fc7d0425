"""Rules of normalizations whose kernels differentiate right; the others are compositions."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pureopt.derivatives._jets._register import rule


def _affine(y: Any, weight: Any, bias: Any, shape: Sequence[int]) -> Any:
    if weight is not None:
        y = y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


@rule("group_norm")
def group_norm(
    input: Any,  # noqa: A002
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001
) -> Any:
    x = input.reshape(input.shape[0], num_groups, -1)
    centered = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(torch.square(centered).mean(-1, keepdim=True) + eps)
    y = (centered * scale).reshape(input.shape)
    return _affine(y, weight, bias, (-1, *[1] * (len(input.shape) - 2)))


@rule("rms_norm")
def rms_norm(
    input: Any,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Any = None,
    eps: float | None = None,
) -> Any:
    dims = tuple(range(-len(normalized_shape), 0))
    least = torch.finfo(input.dtype).eps if eps is None else eps
    mean = torch.square(input).mean(dims, keepdim=True)
    return _affine(input * torch.rsqrt(mean + least), weight, None, normalized_shape)
