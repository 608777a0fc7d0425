"""Elementwise functions as compositions."""

from __future__ import annotations

import math

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


def mvlgamma(input: Tensor, p: int) -> Tensor:  # noqa: A002
    r"""``torch.mvlgamma``, whose gradient torch writes to numbers without lanes.

    .. math::
        \tfrac{p (p - 1)}{4} \log \pi
        + \sum_{j=0}^{p-1} \log \Gamma \left( x - \tfrac{j}{2} \right)
    """
    if p < 1 or not input.dtype.is_floating_point:
        return torch.mvlgamma(input, p)  # which refuses some
    shifts = torch.arange(1 - p, 1, dtype=input.dtype, device=input.device) / 2
    logs = (input.unsqueeze(-1) + shifts).lgamma().sum(-1)
    return logs + p * (p - 1) / 4 * math.log(math.pi)


ELEMENTWISE: Table = {
    **dict.fromkeys((torch.prelu, torch.Tensor.prelu), prelu),
    **dict.fromkeys((torch.masked_select, torch.Tensor.masked_select), masked_select),
    **dict.fromkeys((torch.sgn, torch.Tensor.sgn), sgn),
    KERNELS.hardsigmoid: hardsigmoid,
    KERNELS.glu: glu,
    **dict.fromkeys((torch.copysign, torch.Tensor.copysign), copysign),
    torch.polar: polar,
    **dict.fromkeys((torch.mvlgamma, torch.Tensor.mvlgamma), mvlgamma),
    torch.special.multigammaln: mvlgamma,
    **spellings("native_dropout_backward", native_dropout_backward),
}
