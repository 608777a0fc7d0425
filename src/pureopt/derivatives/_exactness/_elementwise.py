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


ELEMENTWISE: Table = {
    **dict.fromkeys((torch.sgn, torch.Tensor.sgn), sgn),
    KERNELS.hardsigmoid: hardsigmoid,
    KERNELS.glu: glu,
    **dict.fromkeys((torch.copysign, torch.Tensor.copysign), copysign),
    torch.polar: polar,
    **spellings("native_dropout_backward", native_dropout_backward),
}
