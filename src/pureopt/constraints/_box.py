"""Numbers between bounds of which any may be infinite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt.constraints._bounds import (
    Bound,
    Bounded,
    bound_like,
    check_bound,
    check_order,
    gap,
)
from pureopt.constraints._interval import log_ratio, logistic, logistic_log_slope
from pureopt.constraints._positive import softplus, softplus_inverse


@final
@dataclass(frozen=True, eq=False)
class Box(Bounded):
    r"""Numbers between bounds of which any may be infinite, entry by entry.

    The map is that of :class:`Interval` where both bounds are finite, of
    :class:`GreaterThan` or :class:`LessThan` where one is, and the identity where none
    is:

    .. math::
        y = a + \frac{b - a}{1 + e^{-x}}, \quad a + \log(1 + e^x), \quad
        b - \log(1 + e^{-x}), \quad x

    The set is open; ``x`` has the shape of ``y``. There are no fixed entries: bounds
    with ``low >= high`` give NaN, and a number that must not move is no parameter. Where
    all bounds are finite, :class:`Interval` does less work, and samples.

    Args:
        low: The lower bound :math:`a`, a number or a tensor that broadcasts to the
            values; ``-inf`` for none.
        high: The upper bound :math:`b`, likewise; ``inf`` for none.

    Raises:
        HyperparameterError: If a bound is neither a number nor a floating tensor, if
            ``low >= high``, or if ``low`` is ``inf`` or ``high`` is ``-inf``. Such
            numbers in tensors give NaN.

    Example:
        >>> import torch
        >>> inf = torch.inf
        >>> c = Box(
        ...     torch.tensor([0.0, 0.0, -inf, -inf]), torch.tensor([1, inf, 1, inf])
        ... )
        >>> c.forward(torch.tensor([100.0, 100.0, 100.0, 100.0]))
        tensor([  1.0000, 100.0000,   1.0000, 100.0000])
        >>> c.check(torch.ones(4))
        tensor([False,  True, False,  True])
    """

    low: Bound = -math.inf
    high: Bound = math.inf

    def __post_init__(self) -> None:
        for name, bound, wrong in (
            ("low", self.low, math.inf),
            ("high", self.high, -math.inf),
        ):
            where = f"Box({name}=...)"
            check_bound(where, bound, infinite=True)
            if not isinstance(bound, Tensor) and bound == wrong:
                raise HyperparameterError(where, f"not be {wrong}", repr(bound))
        check_order("Box", self.low, self.high)

    @property
    def rule(self) -> str:
        """How far outside."""
        return "distance to {low < Y < high}"

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low = bound_like("Box(low=...)", self.low, like)
        return low, bound_like("Box(high=...)", self.high, like)

    def _curve(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        zero, one = torch.zeros_like(low), torch.ones_like(high)
        a = torch.where(low.isfinite(), low, zero)
        b = torch.where(high.isfinite(), high, one)
        between = logistic(x, *_both_or_unit(low, high))
        up, down = a + softplus(x), b - softplus(-x)
        return _by_kind(low, high, between, up, down, x)

    def _inverse(self, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
        d, e = gap(y, low), gap(high, y)
        up, down = softplus_inverse(d), -softplus_inverse(e)
        return _by_kind(low, high, log_ratio(d, e), up, down, y)

    def _log_slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        between = logistic_log_slope(x, *_both_or_unit(low, high))
        up, down = -softplus(-x), -softplus(x)
        return _by_kind(low, high, between, up, down, torch.zeros_like(x))


def _both_or_unit(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds where both are finite, else 0 and 1: nothing there is NaN."""
    both = low.isfinite() & high.isfinite()
    zero, one = torch.zeros_like(low), torch.ones_like(high)
    return torch.where(both, low, zero), torch.where(both, high, one)


def _by_kind(
    low: Tensor, high: Tensor, between: Tensor, up: Tensor, down: Tensor, free: Tensor
) -> Tensor:
    """One of four maps, by which bounds are finite; free where one is no bound at all."""
    below, above = low.isfinite(), high.isfinite()
    one_sided = torch.where(below, up, torch.where(above, down, free))
    return torch.where(below & above, between, one_sided)
