"""Positive numbers by softplus, and by the exponential function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt.constraints._bounds import Bounded, bound_like, gap
from pureopt.constraints._domains import REAL, Domain

POSITIVE = Domain("a positive number", "(...)", 0, made_by="Positive()", inside=(REAL,))


@final
@dataclass(frozen=True)
class Positive(Bounded):
    r"""Positive numbers by softplus, entry by entry.

    .. math::
        y = \epsilon + \log(1 + e^x), \qquad
        x = d + \log(1 - e^{-d}), \quad d = y - \epsilon

    For large numbers the map is the identity, for small ones the exponential function:
    a step in ``x`` is an absolute step of a large ``y`` and a relative one of a small
    ``y``. It is the default for scales of any size; see :class:`PositiveExp` for the
    other choice. The set is open, ``y > eps``. ``x`` has the shape of ``y``.

    The relative error of a round trip is at most ``|x|`` roundings for small numbers,
    where ``x`` is their logarithm (4e-6 for 1e-30 in float32), and some roundings for
    large ones. Derivatives of all orders are exact, also beyond 20, where
    ``torch.nn.functional.softplus`` has a second derivative of zero. Where the sum
    rounds to ``eps`` (``x`` below -103 in float32 with ``eps = 0``), the value is a
    rounding above it.

    Args:
        eps: The number that all values are larger than, at least zero.

    Raises:
        HyperparameterError: If ``eps`` is negative or not finite.

    References:
        Dugas, Bengio, Bélisle, Nadeau and Garcia (2001) (softplus).

    Example:
        >>> import torch
        >>> y = torch.tensor([1e-30, 1.0, 1e30])
        >>> x = Positive().right_inverse(y)
        >>> x
        tensor([-6.9078e+01,  5.4132e-01,  1.0000e+30])
        >>> torch.allclose(Positive().forward(x), y, rtol=5e-6, atol=0)
        True
        >>> Positive().check(torch.tensor([-1.0, 0.0, 1e-45]))
        tensor([False, False,  True])
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        check_margin("Positive(eps=...)", self.eps)

    @property
    def codomain(self) -> Domain:
        """Positive numbers."""
        return POSITIVE

    @property
    def rule(self) -> str:
        """How far below the margin."""
        return f"distance to {{Y > {self.eps:g}}}"

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return bound_like("", self.eps, like), bound_like("", math.inf, like)

    def _curve(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del high
        return low + softplus(x)

    def _inverse(self, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del high
        return softplus_inverse(gap(y, low))

    def _log_slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del low, high
        return -softplus(-x)


@final
@dataclass(frozen=True)
class PositiveExp(Bounded):
    r"""Positive numbers by the exponential function, entry by entry.

    .. math:: y = \epsilon + e^x, \qquad x = \log(y - \epsilon)

    A step in ``x`` is a relative step of ``y`` for numbers of every size: the choice
    for quantities that are compared by ratios, such as rates and length scales. For
    large numbers gradients grow with ``y`` and steps may explode, where
    :class:`Positive` is the identity. The set is open, ``y > eps``; ``x`` has the shape
    of ``y``, and the result is NaN where it overflows, for ``x`` above 88.7 in float32.

    Args:
        eps: The number that all values are larger than, at least zero.

    Raises:
        HyperparameterError: If ``eps`` is negative or not finite.

    Example:
        >>> import torch
        >>> y = torch.tensor([1e-30, 1.0, 1e30])
        >>> PositiveExp().right_inverse(y)
        tensor([-69.0776,   0.0000,  69.0776])
        >>> PositiveExp(eps=2.0).forward(torch.zeros(1))
        tensor([3.])
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        check_margin("PositiveExp(eps=...)", self.eps)

    @property
    def codomain(self) -> Domain:
        """Positive numbers."""
        return POSITIVE

    @property
    def rule(self) -> str:
        """How far below the margin."""
        return f"distance to {{Y > {self.eps:g}}}"

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``log(max / 2)``, with the largest number of the dtype: 88 in float32."""
        del n
        return math.log(torch.finfo(dtype).max / 2)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return bound_like("", self.eps, like), bound_like("", math.inf, like)

    def _curve(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del high
        return low + x.exp()

    def _inverse(self, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del high
        return gap(y, low).log()

    def _log_slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del low, high
        return x.clone()


def softplus(x: Tensor) -> Tensor:
    r""":math:`\log(1 + e^x)`, with exact derivatives of all orders.

    ``torch.nn.functional.softplus`` is linear beyond 20; the second derivative of
    ``logaddexp`` is NaN below -88 in float32. Here each half has its own formula, in
    which nothing overflows.
    """
    positive = x > 0
    small = torch.exp(torch.where(positive, -x, x)).log1p()
    return torch.where(positive, x + small, small)


def softplus_inverse(y: Tensor) -> Tensor:
    """``y + log(1 - exp(-y))``, which neither overflows nor cancels; ``y`` positive."""
    return y + torch.log(-torch.expm1(-y))


def check_margin(where: str, margin: float) -> None:
    """Raise unless it is a finite number, at least zero.

    Raises:
        HyperparameterError: Says what it must be.
    """
    if isinstance(margin, bool) or not isinstance(margin, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise HyperparameterError(where, "be a number", f"`{type(margin).__name__}`")
    if not 0 <= margin < math.inf:
        raise HyperparameterError(where, "be finite and >= 0", repr(margin))
