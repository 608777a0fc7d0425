"""Numbers on one side of a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from pureopt.constraints._bounds import (
    Bound,
    Bounded,
    bound_like,
    check_bound,
    finite_bound,
    gap,
)
from pureopt.constraints._positive import softplus, softplus_inverse


@final
@dataclass(frozen=True, eq=False)
class GreaterThan(Bounded):
    r"""Numbers greater than a bound, by softplus, entry by entry.

    .. math:: y = b + \log(1 + e^x)

    The set is open, ``y > bound``; ``x`` has the shape of ``y``. Far above the bound
    the map is ``b + x``. See :class:`Positive` for its digits.

    Args:
        bound: The bound :math:`b`, a number or a tensor that broadcasts to the values.

    Raises:
        HyperparameterError: If ``bound`` is neither a finite number nor a floating
            tensor; infinities and NaN in a tensor give NaN.

    Example:
        >>> import torch
        >>> c = GreaterThan(torch.tensor([-1.0, 100.0]))
        >>> x = c.right_inverse(torch.tensor([0.0, 100.5]))
        >>> x
        tensor([ 0.5413, -0.4328])
        >>> c.forward(x)
        tensor([  0.0000, 100.5000])
        >>> GreaterThan(3.0).check(torch.tensor([2.0, 3.0, 4.0]))
        tensor([False, False,  True])
    """

    bound: Bound

    def __post_init__(self) -> None:
        check_bound("GreaterThan(bound=...)", self.bound)

    @property
    def rule(self) -> str:
        """How far below the bound."""
        return "distance to {Y > bound}"

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low = finite_bound("GreaterThan(bound=...)", self.bound, like)
        return low, bound_like("", math.inf, like)

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
@dataclass(frozen=True, eq=False)
class LessThan(Bounded):
    r"""Numbers less than a bound, by softplus, entry by entry.

    .. math:: y = b - \log(1 + e^{-x})

    Increasing, and ``b + x`` far below the bound. The set is open, ``y < bound``; ``x``
    has the shape of ``y``. See :class:`Positive` for its digits.

    Args:
        bound: The bound :math:`b`, a number or a tensor that broadcasts to the values.

    Raises:
        HyperparameterError: If ``bound`` is neither a finite number nor a floating
            tensor; infinities and NaN in a tensor give NaN.

    Example:
        >>> import torch
        >>> x = LessThan(1.0).right_inverse(torch.tensor([-99.0, 0.0, 1.0]))
        >>> x
        tensor([-100.0000,   -0.5413,       nan])
        >>> LessThan(1.0).forward(x)
        tensor([-99.,   0.,  nan])
    """

    bound: Bound

    def __post_init__(self) -> None:
        check_bound("LessThan(bound=...)", self.bound)

    @property
    def rule(self) -> str:
        """How far above the bound."""
        return "distance to {Y < bound}"

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        high = finite_bound("LessThan(bound=...)", self.bound, like)
        return bound_like("", -math.inf, like), high

    def _curve(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del low
        return high - softplus(-x)

    def _inverse(self, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del low
        return -softplus_inverse(gap(high, y))

    def _log_slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        del low, high
        return -softplus(x)
