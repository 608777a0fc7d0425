"""Numbers between two finite bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt import _random
from pureopt.constraints._bounds import (
    Bound,
    Bounded,
    check_bound,
    check_order,
    finite_bound,
    gap,
)
from pureopt.constraints._numeric import times, working
from pureopt.constraints._positive import softplus


@final
@dataclass(frozen=True, eq=False)
class Interval(Bounded):
    r"""Numbers between two finite bounds, by the logistic function, entry by entry.

    .. math::
        y = a + \frac{b - a}{1 + e^{-x}} = b - \frac{b - a}{1 + e^x}, \qquad
        x = \log(y - a) - \log(b - y)

    The first formula is used in the lower half, the second in the upper one, so that
    digits are lost next to neither bound. The set is open, ``low < y < high``: where
    the logistic function saturates, ``y`` stays a rounding away from the bound. ``x``
    has the shape of ``y``. Bounds that are some roundings apart, or farther than the
    largest number, give NaN.

    Args:
        low: The lower bound :math:`a`, a number or a tensor that broadcasts to the
            values.
        high: The upper bound :math:`b`, likewise.

    Raises:
        HyperparameterError: If a bound is neither a finite number nor a floating
            tensor, or if ``low >= high``. Such numbers in tensors give NaN.

    Example:
        >>> import torch
        >>> y = Interval(2, 3).forward(torch.tensor([-20.0, 0.0, 20.0]))
        >>> bool(((y > 2) & (y < 3)).all()), float(3 - y[2])
        (True, 4.76837158203125e-07)
        >>> Interval(0, 1).right_inverse(torch.tensor([1e-30, 0.75, 1.0]))
        tensor([-69.0776,   1.0986,      nan])
    """

    low: Bound
    high: Bound

    def __post_init__(self) -> None:
        check_bound("Interval(low=...)", self.low)
        check_bound("Interval(high=...)", self.high)
        check_order("Interval", self.low, self.high)

    @property
    def rule(self) -> str:
        """How far outside."""
        return "distance to {low < Y < high}"

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch"]:
        """Uniform between the bounds, all entries independent."""
        self._require_shape("sample", shape, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        u = _random.uniform(key, shape, dtype=wide)
        low, high = map(working, self._bounds(u.to(dtype)))
        return self.project((low + (high - low) * u).to(dtype))

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low = finite_bound("Interval(low=...)", self.low, like)
        return low, finite_bound("Interval(high=...)", self.high, like)

    def _curve(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return logistic(x, low, high)

    def _inverse(self, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return log_ratio(gap(y, low), gap(high, y))

    def _log_slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return logistic_log_slope(x, low, high)


def logistic(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The logistic function between two bounds, from the nearer bound."""
    left = x < 0
    e = torch.exp(torch.where(left, x, -x))
    part = times(e / (1 + e), high - low)
    return torch.where(left, low + part, high - part)


def logistic_log_slope(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The logarithm of the derivative of :func:`logistic`."""
    return (high - low).log() - softplus(x) - softplus(-x)


def log_ratio(a: Tensor, b: Tensor) -> Tensor:
    """``log(a / b)`` of positive numbers.

    The difference of the logarithms loses digits where both are large, the quotient
    where it underflows.
    """
    small, large = torch.minimum(a, b), torch.maximum(a, b)
    quotient = small / large
    normal = quotient >= torch.finfo(a.dtype).smallest_normal
    by_quotient = torch.where(normal, quotient, torch.ones_like(a)).log()
    log = torch.where(normal, by_quotient, small.log() - large.log())
    return torch.where(a <= b, log, -log)
