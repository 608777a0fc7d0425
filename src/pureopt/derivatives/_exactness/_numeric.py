"""What the compositions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# From a function of torch to the composition that stands for it.
Table = dict[Callable[..., Any], Callable[..., Any]]

# Where `torch.nn.functional` finds the kernels that have no public name.
KERNELS: Any = vars(torch._C)["_nn"]  # noqa: SLF001
_FUNCTORCH: Any = vars(torch._C)["_functorch"]  # noqa: SLF001
# The named tuples that torch's functions return.
RESULTS: Any = torch.return_types

# Whether a tensor is the lanes of a `vmap`.
is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_batchedtensor  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]


# Whether a tensor is in the wrapper of a transform, what is in it, and where its lanes are.
is_wrapped: Callable[[Any], bool] = _FUNCTORCH.is_functorch_wrapped_tensor
unwrapped: Callable[[Tensor], Tensor] = _FUNCTORCH.get_unwrapped
lane_dimension: Callable[[Tensor], int] = _FUNCTORCH.maybe_get_bdim

# How many transforms of `torch.func` are at work.
transforms: Callable[[], int] = _FUNCTORCH.get_dynamic_layer_stack_depth


def innermost(x: Tensor) -> Tensor:
    """The tensor in the wrappers of transforms: all lanes, and the count of its writes."""
    while is_wrapped(x):
        x = unwrapped(x)
    return x


def is_of_lanes(x: Any) -> bool:
    """Whether this is the lanes of a ``vmap``, whatever is between it and here."""
    while is_wrapped(x):
        if is_batched(x):
            return True
        x = unwrapped(x)
    return False


def is_differentiated(x: Tensor) -> bool:
    """Whether a transform or a tape follows it; compilers see those in reverse alone."""
    if torch.compiler.is_compiling():
        return x.requires_grad
    while True:
        if x.requires_grad or forward_ad.unpack_dual(x).tangent is not None:
            return True
        if not is_wrapped(x):
            return False
        x = unwrapped(x)


def spellings(name: str, composition: Callable[..., Any]) -> Table:
    """The table of an operator that only ``torch.ops.aten`` has."""
    operator: Any = getattr(torch.ops.aten, name)
    return {operator: composition, operator.default: composition}


def widened(x: Tensor) -> Tensor:
    """``x``; half precision in float32, in which torch's kernels compute it too."""
    return x.float() if x.dtype in {torch.float16, torch.bfloat16} else x


def is_inexact(x: Tensor) -> bool:
    """Whether there are numbers between the numbers: floating or complex."""
    return x.dtype.is_floating_point or x.dtype.is_complex


def is_square(A: Tensor) -> bool:
    """Whether these are matrices of which torch takes determinants and inverses."""
    return A.dim() > 1 and A.shape[-2] == A.shape[-1] and is_inexact(A)


def root(square: Tensor) -> Tensor:
    """The square root, all of whose derivatives at zero are zero by convention."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def squares(x: Tensor) -> Tensor:
    """The squared absolute values."""
    if x.dtype.is_complex:
        return x.real * x.real + x.imag * x.imag
    return x * x


def softplus(x: Tensor) -> Tensor:
    r""":math:`\log(1 + e^x)` at any scale.

    On either side of zero ``x`` is reflected, not its absolute value taken: both formulas
    hold on both sides, hence no derivative jumps at zero.
    """
    positive = x > 0
    rest = torch.where(positive, -x, x).exp().log1p()
    return torch.where(positive, x, 0.0) + rest


def reduced(loss: Tensor, reduction: int) -> Tensor:
    """The losses, their mean or their sum: 0, 1 or 2, as torch's kernels count."""
    match reduction:
        case 0:
            return loss
        case 1:
            return loss.mean()
        case _:
            return loss.sum()
