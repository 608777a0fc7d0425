"""Elementwise functions as compositions."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import KERNELS, Table, spellings, squares


def hardsigmoid(input: Tensor) -> Tensor:  # noqa: A002
    """``F.hardsigmoid``."""
    return (input + 3).clamp(0, 6) / 6


def glu(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002
    """``F.glu``."""
    if input.shape[dim] % 2:
        return KERNELS.glu(input, dim)  # which refuses it
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def copysign(input: Tensor, other: Tensor | float) -> Tensor:  # noqa: A002
    """``torch.copysign``: the sign is a constant factor."""
    # Not the `sgn`, which is zero for both zeros.
    sign = other.detach() if isinstance(other, Tensor) else other
    return input.abs() * torch.copysign(torch.ones_like(input.detach()), sign)


def polar(abs: Tensor, angle: Tensor) -> Tensor:  # noqa: A002
    """``torch.polar``."""
    return torch.complex(abs * angle.cos(), abs * angle.sin())


def sgn(input: Tensor) -> Tensor:  # noqa: A002
    """``torch.sgn``: a complex number over its absolute value, and zero at zero."""
    if not input.dtype.is_complex:
        return torch.sgn(input)
    size = input.detach().abs()
    zero = size == 0
    # Of another size it is the same: the squares of this one are near one.
    unit = input / torch.where(zero, 1.0, size)
    return torch.where(zero, 0.0, unit / torch.where(zero, 1.0, squares(unit)).sqrt())


def native_dropout_backward(grad_output: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``torch.ops.aten.native_dropout_backward``."""
    return grad_output * mask * scale


def prelu(input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    """``torch.prelu``, whose lanes are wrong in ``vmap`` of ``jacrev``."""
    channels = input.shape[1] if input.dim() > 1 else 1
    fits = weight.dim() < 2 and weight.numel() in {1, channels}  # noqa: PLR2004
    if not fits or input.dtype != weight.dtype:
        return torch.prelu(input, weight)  # which refuses it
    # Along the second dimension; one slope is that of all.
    behind = max(input.dim() - 2, 0)
    slope = weight.reshape(-1, *[1] * behind) if input.dim() else weight.reshape(())
    return torch.where(input > 0, input, slope * input)


def masked_select(input: Tensor, mask: Tensor) -> Tensor:  # noqa: A002
    """``torch.masked_select``, which forgets in reverse mode that it broadcasts."""
    return torch.masked_select(*torch.broadcast_tensors(input, mask))


ELEMENTWISE: Table = {
    **dict.fromkeys((torch.prelu, torch.Tensor.prelu), prelu),
    **dict.fromkeys((torch.masked_select, torch.Tensor.masked_select), masked_select),
    **dict.fromkeys((torch.sgn, torch.Tensor.sgn), sgn),
    KERNELS.hardsigmoid: hardsigmoid,
    KERNELS.glu: glu,
    **dict.fromkeys((torch.copysign, torch.Tensor.copysign), copysign),
    torch.polar: polar,
    **spellings("native_dropout_backward", native_dropout_backward),
}
