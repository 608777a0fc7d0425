"""Products of many rows with one matrix, by the faster of torch's two kernels.

On the CPU torch multiplies matrices with MKL, which leaves the wide (AVX-512) instructions
of AMD's processors unused. oneDNN, which torch has as well, takes them, and was twice as
fast on a Zen 5, and a tenth faster on a Zen 4 (EPYC). It has no kernels for float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import (
    innermost,
    is_batched,
    is_of_lanes,
    lane_dimension,
    transforms,
    unwrapped,
)

_watchers: Callable[[], int] = vars(torch._C)["_len_torch_function_stack"]  # noqa: SLF001
_recorders: Callable[[], int] = vars(torch._C)["_len_torch_dispatch_stack"]  # noqa: SLF001
_FUNCTORCH: Any = vars(torch._C)["_functorch"]  # noqa: SLF001

# The level of the transform whose lanes or gradients are around a tensor, below zero for
# none; and a tensor with lanes of that level put around it.
_level: Callable[[Tensor], int] = _FUNCTORCH.maybe_get_level
_add_lanes: Callable[[Tensor, int, int], Tensor] = _FUNCTORCH._add_batch_dim  # noqa: SLF001

# How many multiplications each thread must have for the call to be worth it: it takes up
# to 0.3 ms longer under transforms, which half the time of so many saves.
_WORTH = 1 << 25
# With fewer rows or columns MKL is as fast.
_FEW = 8
_MATRIX = 2  # dimensions


def times_rows(x: Tensor, weight: Tensor) -> Tensor:
    """``F.linear(x, weight)``: each row of ``x``, (..., m), times a matrix, (n, m)."""
    if not _takes_onednn(x, weight):
        return affine(x, weight)
    if _is_differentiated(x, weight):
        return _Product.apply(x, weight)
    return _of_lanes(_multiplied, x, weight)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear(x, weight, bias)``, in one call for all lanes of ``vmap``.

    Torch makes seven of it, and each takes its time where a large product before it has
    emptied the caches.
    """
    if (
        not is_batched(x)
        or torch.compiler.is_compiling()
        or x.shape[-1:] != weight.shape[1:]
        or (
            bias is not None
            and (bias.dtype != x.dtype or bias.shape != weight.shape[:1])
        )
    ):
        return F.linear(x, weight, bias)
    return _of_lanes(F.linear, x, weight, bias)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether the product is for the other kernel: where that is faster and no less right.

    What torch refuses is left to torch, whose error names it.
    """
    return (
        x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and _is_worth_it(x, weight)
        and _is_plain(x)
        and _is_plain(weight)
        and not torch.is_autocast_enabled("cpu")
        and not _is_observed()
        and torch.backends.mkldnn.enabled
        and _leaves_instructions_unused()
    )


def _is_plain(x: Tensor) -> bool:
    """Whether it is an array of float32, and not a subclass with products of its own."""
    bare = innermost(x)
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and type(bare) in (Tensor, nn.Parameter)
        # The lanes of a batched backward, in which torch takes no `autograd.Function`.
        and not _FUNCTORCH.is_legacy_batchedtensor(bare)
    )


def _is_worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether it is the same matrix for many rows, and large."""
    if (
        weight.dim() != _MATRIX
        or x.shape[-1:] != weight.shape[1:]
        or is_of_lanes(weight)
    ):
        return False
    numbers = innermost(x).numel()  # of all lanes
    columns, length = weight.shape
    enough = numbers * columns >= _WORTH * torch.get_num_threads()
    return enough and min(numbers // length, columns) >= _FEW


def _is_observed() -> bool:
    """Whether something is to see torch's product, or differentiates it forward.

    In torch 2.13 forward over forward of an ``autograd.Function`` is zero.
    """
    return (
        forward_ad._current_level >= 0  # noqa: SLF001
        or _watchers() > 0
        or _recorders() > 0
        or _FUNCTORCH.TransformType.Functionalize in _transforms()
    )


def _transforms(above: int = 0) -> set[Any]:
    """The kinds of those that are under way, or that began after one of them."""
    stack = _FUNCTORCH.get_interpreter_stack() or ()
    return {each.key() for each in stack if each.level() > above}


def _is_differentiated(x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient may be asked for."""
    return (
        innermost(x).requires_grad
        or innermost(weight).requires_grad
        or _FUNCTORCH.TransformType.Grad in _transforms()
    )


def _of_lanes(
    product: Callable[..., Tensor], x: Tensor, *constants: Tensor | None
) -> Tensor:
    """``product(x, *constants)``, for which the lanes of ``x`` are rows like others.

    Not beneath a transform that differentiates: its wrapper would be in theirs.
    """
    if not is_batched(x):
        return product(x, *constants)
    level = _level(x)
    for c in constants:
        if c is not None and _level(c) >= level:
            return product(x, *constants)
    last = level == transforms()
    if not (last or _transforms(above=level) <= {_FUNCTORCH.TransformType.Vmap}):
        return product(x, *constants)
    rows, lane = unwrapped(x), lane_dimension(x)
    rows = rows.movedim(lane, 0) if lane else rows
    if rows.dim() > _MATRIX:  # of those with gaps torch makes a product for each lane
        rows = rows.contiguous()
    y = _of_lanes(product, rows, *constants)
    return _add_lanes(y, 0, level)


def _multiplied(x: Tensor, weight: Tensor) -> Tensor:
    # A matrix with gaps or overlaps takes it a thousand times longer, or is refused.
    if not (weight.is_contiguous() or weight.mT.is_contiguous()):
        weight = weight.contiguous()
    kernel = cast(Any, torch.ops.mkldnn._linear_pointwise)  # noqa: SLF001
    return kernel(x, weight, None, "none", [], "")


@cache
def _leaves_instructions_unused() -> bool:
    """Whether MKL leaves the wide instructions of this processor unused."""
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and _has_kernel()
        and "AuthenticAMD" in _processor()
    )


def _has_kernel() -> bool:
    available = torch.backends.mkldnn.is_available()
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _processor() -> str:
    """What Linux tells about it; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


class _Product(torch.autograd.Function):
    """``x @ weight.mT`` by oneDNN, with the gradient and the lanes that its kernel lacks."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return _multiplied(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004 (torch's)
        x, weight = inputs
        of_x, of_weight = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        return (
            None if weight is None else times_rows(grad, weight.mT),
            None if x is None else times_rows(_as_columns(grad), _as_columns(x)),
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:  # noqa: ARG004 (torch's)
        (lane, _), (x, weight) = in_dims, args  # the matrix has no lanes
        return times_rows(x.movedim(lane, 0), weight), 0


def _as_columns(x: Tensor) -> Tensor:
    """All rows, as the columns of one matrix."""
    return x.reshape(-1, x.shape[-1]).mT
