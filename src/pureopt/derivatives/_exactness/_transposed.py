"""Transposed convolutions with an output padding.

Torch's second derivatives pass that padding on to a convolution that is not transposed,
which raises in the third. Zeros behind the input make the output longer too, by whole
strides, and the rest is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import Table

_Sizes = int | Sequence[int]


def _conv_transpose(kernel: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    """The composition for a kernel with so many axes."""

    def conv_transpose(
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Sizes = 1,
        padding: _Sizes = 0,
        output_padding: _Sizes = 0,
        groups: int = 1,
        dilation: _Sizes = 1,
    ) -> Tensor:
        geometry = (stride, padding, output_padding, dilation)
        each = [_each(sizes, axes) for sizes in geometry]
        shape = _output_shape(input, weight, *each)
        steps, edges, extra, gaps = each
        if len(shape) != axes or not any(extra):
            return kernel(
                input, weight, bias, stride, padding, output_padding, groups, dilation
            )
        zeros = [-(-e // s) for e, s in zip(extra, steps, strict=True)]
        # From the last axis to the first, before it and behind it.
        longer = F.pad(input, [n for z in reversed(zeros) for n in (0, z)])
        out = kernel(longer, weight, bias, steps, edges, 0, groups, gaps)
        for axis, n in enumerate(shape):
            out = out.narrow(axis - axes, 0, n)
        return out

    return conv_transpose


def convolution(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """``torch.convolution``: the one of its axes."""
    axes = weight.dim() - 2
    each = [_each(v, axes) for v in (stride, padding, output_padding, dilation)]
    steps, edges, extra, gaps = each
    batched = input.dim() == axes + 2 and axes in {1, 2, 3}
    if batched and not transposed:
        return _CONV[axes - 1](input, weight, bias, steps, edges, gaps, groups)
    if batched and _output_shape(input, weight, *each):
        conv_transpose = TRANSPOSED[_CONV_TRANSPOSE[axes - 1]]
        return conv_transpose(input, weight, bias, steps, edges, extra, groups, gaps)
    return torch.convolution(
        input,
        weight,
        bias,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
    )


def _each(sizes: _Sizes, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return sizes * axes if len(sizes) == 1 else sizes


def _output_shape(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Of the axes; empty where torch refuses such a convolution."""
    axes = weight.dim() - 2
    geometry = (stride, padding, output_padding, dilation)
    if (
        axes < 1
        or input.dim() not in {axes + 1, axes + 2}
        or any(len(sizes) != axes for sizes in geometry)
        or input.shape[-axes - 1] != weight.shape[0]
        or input.numel() == 0
    ):
        return []
    shape = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, k, s, p, e, d in zip(
            input.shape[-axes:], weight.shape[2:], *geometry, strict=True
        )
    ]
    refused = any(
        n < 1 or p < 0 or not 0 <= e < max(s, d) or min(s, d) < 1
        for n, s, p, e, d in zip(shape, *geometry, strict=True)
    )
    return [] if refused else shape


_CONV = (torch.conv1d, torch.conv2d, torch.conv3d)
_CONV_TRANSPOSE = (
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)
TRANSPOSED: Table = {
    **{
        kernel: _conv_transpose(kernel, k)
        for k, kernel in enumerate(_CONV_TRANSPOSE, 1)
    },
    torch.convolution: convolution,
}
