"""Numbers strictly between two bounds: what the elementwise constraints share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pureopt._errors import ConstraintError, HyperparameterError
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import REAL, Domain
from pureopt.constraints._numeric import or_nan, scaled, working

Bound: TypeAlias = float | Tensor
"""A number, or a tensor that broadcasts to the values."""

BOUNDED = Domain("a number between bounds", "(...)", 0, inside=(REAL,))


class Bounded(Constraint):
    """Numbers strictly between two bounds, entry by entry.

    A final class says where its bounds are and which increasing map leads between them.
    The bounds are rounded to the dtype of the values. They are not in the set: where
    the map rounds to one, :meth:`forward` returns a number a rounding away from it, with
    the derivative of the map. So the result is in the set for all finite ``x`` that do
    not overflow, and bounds with no number between them give NaN.
    """

    @abstractmethod
    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds in the dtype of ``like``; NaN where they are none."""

    @abstractmethod
    def _curve(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The increasing map."""

    @abstractmethod
    def _inverse(self, y: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The inverse for finite ``y``; anything outside the bounds."""

    @abstractmethod
    def _log_slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The logarithm of the derivative of the map."""

    @property
    def domain(self) -> Domain:
        """Real numbers."""
        return REAL

    @property
    def codomain(self) -> Domain:
        """Numbers between bounds."""
        return BOUNDED

    def dim(self, shape: Sequence[int]) -> int:
        """The number of entries."""
        self._require_shape("dim", shape)
        return math.prod(shape)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow."""
        del n
        return torch.finfo(dtype).max / 2

    def forward(self, x: Float[Tensor, "*batch"], static: Any = ()) -> Tensor:
        """The value; see the class."""
        del static
        low, high = self._checked("forward(x)", x)
        y = self._curve(working(x), working(low), working(high)).to(x.dtype)
        return _strictly(y, low, high)

    def right_inverse(self, y: Float[Tensor, "*batch"], static: Any = ()) -> Tensor:
        """The free number; NaN outside the bounds."""
        del static
        low, high = self._checked("right_inverse(y)", y)
        keep = _inside(y, low, high)
        safe = working(torch.where(keep, y, torch.zeros_like(y)))
        x = self._inverse(safe, working(low), working(high)).to(y.dtype)
        # A distance that overflows has no free number.
        return or_nan(keep & x.isfinite(), x, 0)

    def violation(self, y: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The distance to the nearest number between the bounds."""
        low, high = self._checked("check(y)", y)
        out = torch.maximum(low - y + _step(low), y - high + _step(high))
        out = torch.where(y.isinf(), torch.full_like(y, torch.inf), out)
        return torch.where(_inside(y, low, high), torch.zeros_like(y), out)

    def tolerance(self, y: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Zero: bounds hold exactly."""
        return torch.zeros_like(y)

    def rounding(self, x: Any, y: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """``4 eps |y|``, and ``(|x| + 8) eps`` times the derivative of the map.

        The first is a rounding next to a bound, the second that of ``x`` and of the
        functions; both end at the smallest number of the dtype.
        """
        low, high = self._checked("rounding(x, y)", y)
        slope = self._log_slope(working(x), working(low), working(high)).exp()
        eps = torch.finfo(y.dtype).eps
        error = scaled(working(y).abs(), 4 * eps) + scaled(x.abs() + 8, eps) * slope
        return (error + 2 * smallest(y.dtype)).to(y.dtype)

    def project(self, y: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """``y`` clamped to the bounds, and a rounding away from them."""
        low, high = self._checked("project(y)", y)
        return _strictly(y.clamp(low, high), low, high)

    def log_abs_det(
        self, x: Float[Tensor, "*batch"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """The logarithm of the derivative, entry by entry."""
        del static
        low, high = self._checked("log_abs_det(x)", x)
        wide = working(x)
        return self._log_slope(wide, working(low), working(high)).to(x.dtype)

    def _checked(self, method: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds for a value whose dtype and shape are right."""
        REAL.require(f"{type(self).__name__}.{method}", value)
        low, high = self._bounds(value)
        # Finite bounds whose distance overflows: nothing between them has a free number.
        wide = low.isfinite() & high.isfinite() & (high - low).isinf()
        return or_nan(~wide, low, 0), high


def smallest(dtype: torch.dtype) -> float:
    """The smallest positive number of a dtype, a subnormal one."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def check_bound(where: str, bound: Bound, *, infinite: bool = False) -> None:
    """Raise unless it is a floating tensor or a number, finite unless said otherwise.

    Numbers in tensors are not read.

    Raises:
        HyperparameterError: Says what it must be.
    """
    if isinstance(bound, Tensor):
        if not bound.is_floating_point():
            rule = "be a number or a real floating-point tensor"
            raise HyperparameterError(where, rule, f"dtype {bound.dtype}")
    elif isinstance(bound, bool) or not isinstance(bound, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        rule = "be a number or a tensor"
        hint = "Convert several with `torch.tensor`; `inf` stands for none in `Box`."
        raise HyperparameterError(where, rule, f"`{type(bound).__name__}`", hint)
    elif math.isnan(bound) or (math.isinf(bound) and not infinite):
        rule = "be a number, not NaN" if infinite else "be finite"
        hint = "" if infinite else "`Box` takes infinite bounds."
        raise HyperparameterError(where, rule, repr(bound), hint)


def check_order(name: str, low: Bound, high: Bound) -> None:
    """Raise unless ``low < high``; numbers in tensors are not read.

    Raises:
        HyperparameterError: Says which numbers they were.
    """
    if isinstance(low, Tensor) or isinstance(high, Tensor) or low < high:
        return
    raise HyperparameterError(
        f"{name}(low=..., high=...)",
        "have low < high",
        f"{low!r} and {high!r}",
        "Leave a fixed number out of the parameters." if low == high else "",
    )


def bound_like(where: str, bound: Bound, y: Tensor) -> Tensor:
    """A bound in the dtype and on the device of ``y``.

    Raises:
        ConstraintError: If the shape of a tensor does not broadcast to that of ``y``.
    """
    if not isinstance(bound, Tensor):
        # `full` raises where a number overflows the dtype.
        over = abs(bound) > torch.finfo(y.dtype).max
        number = math.copysign(math.inf, bound) if over else bound
        return torch.full((), number, dtype=y.dtype, device=y.device)
    sizes = zip(reversed(bound.shape), reversed(y.shape), strict=False)
    if bound.dim() > y.dim() or any(size not in (1, n) for size, n in sizes):
        raise ConstraintError(
            # Also right where `constrain` names the value in place of the bound.
            where,
            "agree in shape, the bound broadcasting to the value",
            f"a bound of shape {tuple(bound.shape)}, a value of {tuple(y.shape)}",
        )
    return bound.to(y)


def finite_bound(where: str, bound: Bound, y: Tensor) -> Tensor:
    """:func:`bound_like`, NaN where it is infinite."""
    tensor = bound_like(where, bound, y)
    return or_nan(tensor.isfinite(), tensor, 0)


def gap(a: Tensor, b: Tensor) -> Tensor:
    """``a - b``; 1 where it is not positive or one of them is infinite."""
    d = a - b
    return torch.where((d > 0) & a.isfinite() & b.isfinite(), d, torch.ones_like(d))


def _inside(y: Tensor, low: Tensor, high: Tensor) -> Bool[Tensor, "*batch"]:
    return (y > low) & (y < high) & y.isfinite()


def _step(bound: Tensor) -> Tensor:
    """One or two roundings of a bound, zero for an infinite one."""
    eps = torch.finfo(bound.dtype).eps
    step = scaled(bound.abs(), eps) + smallest(bound.dtype)
    return torch.where(bound.isinf(), torch.zeros_like(bound), step)


def _strictly(y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``y``, a step away from a bound it has rounded to; NaN beyond the bounds.

    The step is a constant, so that derivatives are those of the map.
    """
    zero = torch.zeros_like(y)
    y = y + torch.where(y <= low, _step(low), zero)
    y = y - torch.where(y >= high, _step(high), zero)
    return or_nan(_inside(y, low, high), y, 0)
