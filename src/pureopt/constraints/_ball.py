"""Vectors of at most one norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt import _random
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._numeric import max_abs, or_nan, scaled, working
from pureopt.constraints._sphere import check_norm, direction, length, sum_tolerance

BALL = Domain("a vector of at most a given norm", "(..., n)", 1, inside=(VECTOR,))


@final
@dataclass(frozen=True)
class Ball(Constraint):
    r"""Vectors of at most a given norm, from all vectors of the same length.

    .. math::
        y = \frac{x}{\sqrt{1 + \|x\|^2 / r^2}}, \qquad
        x = \frac{y}{\sqrt{1 - \|y\|^2 / r^2}}

    with :math:`r` the norm; an isometry at ``x = 0``. The map reaches the open ball. The
    set is the closed one, because large ``x`` round to its boundary: there
    :math:`1 - \|y\|^2 / r^2` counts as at least ``eps``, hence a point of the boundary
    comes back to rounding error, from an ``x`` of norm :math:`r / \sqrt{\epsilon}`.

    Args:
        norm: The largest norm :math:`r`, a positive number.

    Raises:
        HyperparameterError: If ``norm`` is not positive and finite.

    Example:
        >>> import torch
        >>> Ball(norm=5.0).forward(torch.tensor([3e30, 4e30])).round(decimals=3)
        tensor([3., 4.])
        >>> x = Ball().right_inverse(torch.tensor([0.0, 0.8], dtype=torch.float64))
        >>> bool((x[1] - 4 / 3).abs() < 1e-15)
        True
    """

    norm: float = 1.0

    def __post_init__(self) -> None:
        check_norm("Ball(norm=...)", self.norm)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Vectors of at most a given norm."""
        return BALL

    @property
    def rule(self) -> str:
        """The relative excess of the norm."""
        return f"max(0, |Y| / {self.norm:g} - 1)"

    def dim(self, shape: Sequence[int]) -> int:
        """``n``."""
        self._require_shape("dim", shape)
        return shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``norm / sqrt(eps)``; beyond, ``y`` is on the boundary to rounding error."""
        del n
        return self.norm * torch.finfo(dtype).eps ** -0.5

    def forward(
        self, x: Float[Tensor, "*batch n"], static: Any = ()
    ) -> Float[Tensor, "*batch n"]:
        """The vector; see the class."""
        del static
        VECTOR.require("Ball.forward(x)", x)
        u, largest, rest = _factors(x, self.norm)
        return scaled(u / largest / (1 + rest).sqrt(), self.norm).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n"], static: Any = ()
    ) -> Float[Tensor, "*batch n"]:
        """The free vector; NaN outside the ball."""
        del static
        BALL.require("Ball.right_inverse(y)", y)
        u = scaled(working(y), 1 / self.norm)
        gap = (1 - (u * u).sum(-1, keepdim=True)).clamp(min=torch.finfo(y.dtype).eps)
        return or_nan(self.check(y), scaled(u / gap.sqrt(), self.norm), 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """The relative excess of the norm."""
        BALL.require("Ball(y)", y)
        return (length(scaled(working(y), 1 / self.norm)) - 1).clamp(min=0)

    def tolerance(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """``4 eps + 10 sqrt(n) eps'``, see :func:`sum_tolerance`."""
        return sum_tolerance(y)

    def rounding(self, x: Any, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Twice the tolerance, times the norm."""
        del x
        return scaled(sum_tolerance(y), 2 * self.norm)

    def project(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """``y`` in the ball, and scaled to the boundary outside."""
        inside = (self.violation(y) == 0).unsqueeze(-1)
        boundary = scaled(direction(y), self.norm).to(y.dtype)
        return torch.where(inside, y, boundary)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n"]:
        """Uniform in the ball."""
        like = torch.empty(tuple(shape), dtype=dtype, device="meta")
        BALL.require("Ball.sample(shape=...)", like)
        wide = torch.promote_types(dtype, torch.float32)
        for_direction, for_length = _random.split(key)
        u = direction(_random.normal(for_direction, shape, dtype=wide))
        share = _random.uniform(for_length, shape[:-1], dtype=wide)
        share = share ** (1 / max(shape[-1], 1))  # a volume goes as the n-th power
        return scaled(share.unsqueeze(-1) * u, self.norm).to(dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch n"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`-\tfrac12 (n + 2) \log(1 + \|x\|^2 / r^2)`."""
        del static
        VECTOR.require("Ball.log_abs_det(x)", x)
        _, largest, rest = _factors(x, self.norm)
        half_log = largest.log() + scaled(rest.log1p(), 0.5)
        power = x.shape[-1] + 2 if x.shape[-1] else 0
        return scaled(half_log.squeeze(-1), -power).to(x.dtype)


def _factors(x: Tensor, norm: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""``x / r``, ``m`` and ``c`` with :math:`1 + \|x\|^2 / r^2 = m^2 (1 + c)`.

    ``m`` is the largest entry, so that squares do not overflow, and 1 for small ``x``,
    where ``c`` is the square of the norm.
    """
    u = scaled(working(x), 1 / norm)
    largest = max_abs(u, 1).clamp(min=1).unsqueeze(-1)
    v = u / largest
    inverse = torch.ones_like(largest) / largest
    rest = (v * v).sum(-1, keepdim=True) - (1 - inverse) * (1 + inverse)
    return u, largest, rest
