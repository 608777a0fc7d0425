"""Rules of complex numbers: made of parts, their phases, and Fourier transforms."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false

from __future__ import annotations

from typing import Any

import torch

from pureopt.derivatives._jets._algebra import aligned, constant, lift, linear
from pureopt.derivatives._jets._arithmetic import abs_, belongs, div
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._register import linear_in_first, rule, spellings

linear_in_first(
    spellings(
        *(
            f"fft.{inverse}{kind}"
            for inverse in ("", "i")
            for kind in (
                "fft", "fft2", "fftn", "rfft", "rfft2", "rfftn", "hfft", "hfft2",
                "hfftn", "fftshift",
            )
        )
    )
)  # fmt: skip


@rule("complex")
def complex_(real: Any, imag: Any) -> Jet:
    first = belongs(real, imag)
    a, b = aligned(lift(first, real), lift(first, imag))
    return linear(torch.complex, a, b)


@rule("view_as_complex")
def view_as_complex(input: Jet) -> Jet:  # noqa: A002
    """Computed, since coefficients have strides of their own; to a program it is a view."""
    y = complex_(input[..., 0], input[..., 1])
    y.locked = True  # as its argument is by now
    return y


@rule("sgn")
def sgn(x: Jet) -> Jet:
    """Piecewise constant for real numbers only."""
    value = torch.sgn(x.value)
    if not x.dtype.is_complex:
        return constant(x, value)
    zero = x.value == 0
    size = torch.where(zero, 1.0, abs_(x))
    return torch.where(zero, 0.0, div(x, size))


@rule("angle")
def angle(x: Jet) -> Jet:
    if not x.dtype.is_complex:
        return constant(x, torch.angle(x.value))
    return torch.atan2(x.imag, x.real)
