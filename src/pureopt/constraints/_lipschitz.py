"""Matrices of at most a given spectral norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._typing import Scalar
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import MATRIX, Domain
from pureopt.constraints._numeric import (
    all_finite,
    max_abs,
    or_nan,
    over_event,
    times,
    working,
)
from pureopt.constraints._spectral_norm import (
    check_positive,
    constant,
    largest_singular_value,
    singular_value_tolerance,
    singular_vectors,
    uniform_contraction,
    unit_entries,
    with_norm,
)

SPECTRAL_BALL = Domain(
    "a matrix of bounded spectral norm", "(..., n, k)", 2, inside=(MATRIX,)
)


@final
@dataclass(frozen=True, eq=False)
class Lipschitz(Constraint):
    r"""Matrices whose singular values are at most ``bound``: Lipschitz linear maps.

    .. math:: Y = X / \max(1, \sigma_1(X) / c)

    ``x`` is a matrix; inside the ball the map is the identity, and so is the right
    inverse. Outside the scale of ``x`` does not matter, so the map is redundant there.
    On the sphere itself its derivative is that of the identity. Outside, where the
    largest singular value is repeated, there is no second derivative (NaN).

    Args:
        bound: The largest spectral norm :math:`c`, a positive number or a 0-d tensor.

    References:
        Gouk, Frank, Pfahringer and Cree (2021), equation 11.

    Raises:
        HyperparameterError: If ``bound`` is not positive and finite, or a tensor that
            is not 0-d and floating.

    Example:
        >>> import torch
        >>> w = torch.tensor([[0.0, 4.0], [0.5, 0.0]])
        >>> Lipschitz().forward(w)
        tensor([[0.0000, 1.0000],
                [0.1250, 0.0000]])
        >>> Lipschitz().project(w)
        tensor([[0.0000, 1.0000],
                [0.5000, 0.0000]])
        >>> bool((Lipschitz(bound=4.0).forward(w) == w).all())
        True
    """

    bound: Scalar = 1.0

    def __post_init__(self) -> None:
        check_positive("Lipschitz(bound=...)", self.bound)

    @property
    def domain(self) -> Domain:
        """Matrices."""
        return MATRIX

    @property
    def codomain(self) -> Domain:
        """Matrices of bounded spectral norm."""
        return SPECTRAL_BALL

    @property
    def bijective(self) -> bool:
        """False: outside the ball the scale of ``x`` does not matter."""
        return False

    @property
    def rule(self) -> str:
        """The excess of the largest singular value."""
        return "max(0, sigma_1(Y) - bound)"

    def dim(self, shape: Sequence[int]) -> int:
        """``n k``."""
        self._require_shape("dim", shape)
        return shape[-2] * shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow."""
        del n
        return torch.finfo(dtype).max

    def forward(
        self, x: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """``x``, scaled down to the bound where it is outside; see the class."""
        del static
        MATRIX.require("Lipschitz.forward(x)", x)
        a = working(x)
        w = unit_entries(a)
        sigma = largest_singular_value(w)
        # sigma(a) could overflow; bound / sigma(w) is the largest entry at the bound.
        outside = max_abs(a) > constant(self.bound, sigma) / sigma
        # Inside, singular values may coincide, as those of zero do: their second
        # derivatives are NaN, which would not vanish with a factor of zero.
        w = torch.where(over_event(outside, 2), w, _distinct(w))
        on_sphere = with_norm(w, largest_singular_value(w), self.bound)
        y = torch.where(over_event(outside, 2), on_sphere, a)
        return or_nan(all_finite(a), y, 2).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """``y`` itself; NaN outside the ball."""
        del static
        return or_nan(self.check(y), y, 2)

    def violation(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """The excess of the largest singular value."""
        SPECTRAL_BALL.require("Lipschitz(y)", y)
        sigma = largest_singular_value(working(y))
        return (sigma - constant(self.bound, sigma)).clamp(min=0)

    def tolerance(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """``10 max(n, k) eps`` times the bound, at most half of it."""
        return singular_value_tolerance(y, self.bound)

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n k"]
    ) -> Float[Tensor, "*batch"]:
        """That of any constraint, and what :meth:`check` tolerates and forward mends."""
        return super().rounding(x, y) + self.violation(y).to(y.dtype)

    def project(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
        """Singular values cut at the bound."""
        SPECTRAL_BALL.require("Lipschitz.project(y)", y)
        u, s, vh = singular_vectors(working(y))
        s = torch.minimum(s, constant(self.bound, s))
        cut = ((u * s.unsqueeze(-2)) @ vh).to(y.dtype)
        inside = over_event(self.violation(y) == 0, 2)
        return or_nan(all_finite(y), torch.where(inside, y, cut), 2)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n k"]:
        """Uniform in the spectral-norm ball."""
        self._require_shape("sample", shape, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        y = uniform_contraction(key, shape, dtype=wide)
        return times(y, constant(self.bound, y)).to(dtype)


def _distinct(like: Float[Tensor, "*batch n k"]) -> Float[Tensor, "n k"]:
    """The matrix with 1, 2, ... on its diagonal: no two singular values are equal."""
    n, k = like.shape[-2:]
    i = torch.arange(1, max(n, k) + 1, device=like.device, dtype=like.dtype)
    return torch.where(i[:n, None] == i[:k], i[:k], torch.zeros_like(i[:k]))
