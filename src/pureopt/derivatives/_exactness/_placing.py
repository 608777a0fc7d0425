"""Functions that write values to places: of those that share one, the last counts.

Torch's formulas give each of them the gradient of that place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import KERNELS, Table


def _unpool(kernel: Callable[..., Tensor], dims: int) -> Callable[..., Tensor]:
    """The composition for a kernel that writes to grids with so many axes."""

    def max_unpool(
        input: Tensor,  # noqa: A002
        indices: Tensor,
        output_size: Sequence[int],
        *options: Sequence[int],
        **named: Sequence[int],
    ) -> Tensor:
        # Strides and paddings are there to be refused.
        checked = [*options, *named.values()]
        if (
            not _fit(input, indices, dims)
            or any(len(sizes) != dims for sizes in (output_size, *checked))
            or min(output_size) <= 0
            or any(n <= 0 for sizes in checked[:1] for n in sizes)
        ):
            return kernel(input, indices, output_size, *options, **named)
        return _unpooled(input, indices, output_size)

    return max_unpool


def _fit(input: Tensor, indices: Tensor, dims: int) -> bool:  # noqa: A002
    """Whether torch writes this input to these indices."""
    return (
        input.dtype.is_floating_point
        and indices.dtype == torch.int64
        and indices.shape == input.shape
        and input.dim() in {dims + 1, dims + 2}
        and input.numel() > 0
    )


def _unpooled(input: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:  # noqa: A002
    """At each place the last value with its index."""
    dims = len(size)
    values, index = input.flatten(-dims), indices.flatten(-dims)
    order = torch.arange(index.shape[-1], device=index.device)
    last = index.new_full((*index.shape[:-1], prod(size)), -1)
    last = last.scatter_reduce(-1, index, order.expand(index.shape), "amax")
    out = torch.where(last >= 0, values.gather(-1, last.clamp_min(0)), 0.0)
    return out.reshape(*input.shape[:-dims], *size)


def as_strided_scatter(
    input: Tensor,  # noqa: A002
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Tensor:
    """``torch.as_strided_scatter``: at each place the last value that is written to it."""
    last = _last_written(input.detach(), src.detach(), size, stride, storage_offset)
    if not src.numel():
        return input.clone()
    values = src.to(input.dtype).flatten()[last.clamp_min(0)]
    return torch.where(last >= 0, values, input)


# The compiler does not trace a `storage_offset`.
@torch.compiler.allow_in_graph
def _last_written(
    input: Tensor,  # noqa: A002
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None,
) -> Tensor:
    """The number of that value: torch writes numbers, to places that hold -1."""
    start: Any = input.storage_offset()
    offset = start if storage_offset is None else storage_offset
    needed = _extent(size, stride, offset)
    length = _extent(input.shape, input.stride(), start)
    if needed > length:
        # It refuses what lies outside of the storage.
        torch.as_strided_scatter(input, src, size, stride, offset)
    memory = torch.full((max(needed, length),), -1, device=input.device)
    numbers = torch.arange(src.numel(), device=src.device).reshape(src.shape)
    here = memory.as_strided(input.shape, input.stride(), start)
    return torch.as_strided_scatter(here, numbers, size, stride, offset)


def _extent(size: Sequence[int], stride: Sequence[int], offset: int) -> int:
    """How many numbers a storage has that reaches to the last of a tensor."""
    if 0 in size:
        return 0
    return offset + 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=False))


def index_fill(
    input: Tensor,  # noqa: A002
    dim: int,
    index: Tensor,
    value: Tensor | float,
) -> Tensor:
    """``torch.index_fill``, which fills all lanes of ``vmap`` with the value of the last."""
    if not isinstance(value, Tensor) or value.dim() or not input.dim():
        return torch.index_fill(input, dim, index, value)
    unreal = value.dtype.is_complex and not input.dtype.is_complex
    if unreal or not -input.dim() <= dim < input.dim():
        return torch.index_fill(input, dim, index, value)  # which refuses it
    along = torch.zeros(input.shape[dim], dtype=torch.bool, device=input.device)
    chosen = along.index_fill(0, index, True)
    shape = [1] * input.dim()
    shape[dim] = -1
    return torch.where(chosen.reshape(shape), value.to(input.dtype), input)


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.column_stack``, which ``vmap`` refuses."""
    return torch.cat([x if x.dim() > 1 else x.reshape(-1, 1) for x in tensors], 1)


UNPOOLING: Table = {
    KERNELS.max_unpool2d: _unpool(KERNELS.max_unpool2d, 2),
    KERNELS.max_unpool3d: _unpool(KERNELS.max_unpool3d, 3),
}

PLACING: Table = {
    **UNPOOLING,
    torch.column_stack: column_stack,
    **dict.fromkeys((torch.index_fill, torch.Tensor.index_fill), index_fill),
    **dict.fromkeys(
        (torch.as_strided_scatter, torch.Tensor.as_strided_scatter), as_strided_scatter
    ),
}
