"""Symmetric matrices whose eigenvalues lie between two bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._errors import HyperparameterError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import haar
from pureopt.constraints._cholesky_factor import triangle_size
from pureopt.constraints._domains import SYMMETRIC, VECTOR, Domain
from pureopt.constraints._log_euclidean import log_sinhc_of_gaps
from pureopt.constraints._numeric import (
    all_finite,
    identity,
    or_nan,
    scaled,
    solve,
    working,
    working_eps,
)
from pureopt.constraints._positive import softplus
from pureopt.constraints._positive_semidefinite import (
    asymmetry,
    eigenvalues,
    eigenvectors,
    spectral_tolerance,
    symmetric_part,
)
from pureopt.constraints._symmetric import Symmetric

BOUNDED_SPECTRUM = Domain(
    "a symmetric matrix with bounded eigenvalues",
    "(..., n, n)",
    2,
    square=True,
    made_by="BoundedSpectrum(low, high)",
    inside=(SYMMETRIC,),
)

_DOUBLINGS = 5


@final
@dataclass(frozen=True)
class BoundedSpectrum(Constraint):
    r"""Symmetric matrices whose eigenvalues lie between two bounds.

    .. math:: Y = \tfrac{l + h}{2} I + \tfrac{h - l}{2} \tanh A, \qquad
        A = \text{Symmetric}(x)

    ``n (n + 1) / 2`` numbers, one-to-one onto the matrices with eigenvalues inside the
    bounds, smooth also where eigenvalues meet, and without an order of the coordinates.
    The hyperbolic tangent is rational near zero and then doubled five times,
    ``tanh 2B = 2T (I + T^2)^{-1}``: well conditioned solves, no eigenvectors.
    :meth:`check` takes the bounds themselves; their right inverse is an eigenvalue of
    ``A`` of 9 in float32 and 19 in float64, where ``tanh`` is one to rounding error and
    the gradient all but zero.

    Args:
        low: The lower bound ``l``.
        high: The upper bound ``h``, above ``low``.

    Raises:
        HyperparameterError: If the bounds are no finite numbers in this order.

    References:
        Higham (2008), section 4.3 (rational approximation with doubling) and theorem
        3.9 (the derivative, by divided differences).

    Example:
        >>> import torch
        >>> c = BoundedSpectrum(-1, 1)
        >>> y = c.forward(torch.tensor([1.0, 30.0, -2.0]))
        >>> torch.linalg.eigvalsh(y).abs() <= 1
        tensor([True, True])
        >>> reflection = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> x = c.right_inverse(reflection)
        >>> torch.allclose(c.forward(x), reflection, atol=1e-6)
        True
        >>> c.right_inverse(2 * reflection)
        tensor([nan, nan, nan])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        check_bounds("BoundedSpectrum", self.low, self.high)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n + 1) / 2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Symmetric matrices with bounded eigenvalues."""
        return BOUNDED_SPECTRUM

    @property
    def rule(self) -> str:
        """Asymmetry, and the eigenvalues beyond the bounds."""
        low, high = self.low, self.high
        return f"max(n |Y - Y^T|, {low} - lambda_min(Y), lambda_max(Y) - {high})"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        self._require_shape("dim", shape)
        return shape[-1] * (shape[-1] + 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``512 / n``: the rational function is accurate to eigenvalues of 512."""
        del dtype
        return 512.0 / n

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The matrix; see the class."""
        del static
        triangle_size("BoundedSpectrum.forward(x)", x)
        return self.of_symmetric(Symmetric().forward(working(x))).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The packed inverse hyperbolic tangent; NaN where ``y`` is not in the set."""
        del static
        keep = self.check(y)
        values, vectors = eigenvectors(working(y))
        free = self.free_values(values).unsqueeze(-2)
        x = Symmetric().right_inverse(symmetric_part((vectors * free) @ vectors.mT))
        return or_nan(keep, x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """Asymmetry, and the eigenvalues beyond the bounds."""
        BOUNDED_SPECTRUM.require("BoundedSpectrum(y)", y)
        a = working(y)
        values = eigenvalues(a)
        parts = [asymmetry(a), self.low - values[..., 0], values[..., -1] - self.high]
        return torch.stack(parts).amax(0)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``eps |Y|`` for storage, ``4 n eps'`` of ``|Y|`` and of the larger bound."""
        size = max(abs(self.low), abs(self.high))
        return spectral_tolerance(y) + 4 * y.shape[-1] * working_eps(y.dtype) * size

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """Five times the tolerance."""
        del x
        return scaled(self.tolerance(y), 5)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The symmetric part, its eigenvalues clamped."""
        BOUNDED_SPECTRUM.require("BoundedSpectrum.project(y)", y)
        a = working(y)
        values, vectors = eigenvectors(a)
        clamped = values.clamp(self.low, self.high).unsqueeze(-2)
        nearest = symmetric_part((vectors * clamped) @ vectors.mT)
        return or_nan(all_finite(a), nearest, 2).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Drawn uniformly: a matrix-variate Beta((n + 1) / 2, (n + 1) / 2), stretched.

        References:
            Muirhead (1982), theorem 3.3.1.
        """
        self._require_shape("sample", shape, dtype)
        n = shape[-1]
        wide = torch.promote_types(dtype, torch.float32)
        top = haar(key, (*shape[:-2], 2 * n + 2, n), wide)[..., : n + 1, :]
        unit = symmetric_part(top.mT @ top)
        return (unit * (self.high - self.low) + self.low * identity(unit)).to(dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""From the eigenvalues of ``A``, by divided differences of ``tanh``.

        .. math:: \tfrac n2 (n + 1) \log \tfrac{h - l}{2} - (n + 1) \sum_i \log \cosh
            \lambda_i + \sum_{i < j} \log \frac{\sinh(\lambda_i - \lambda_j)}
            {\lambda_i - \lambda_j}

        Its second derivatives lose ``eps`` over the relative gap of two eigenvalues, and
        are NaN where two are equal; the first ones are right there too.
        """
        del static
        triangle_size("BoundedSpectrum.log_abs_det(x)", x)
        values = eigenvalues(Symmetric().forward(working(x)))
        return self.log_volume(values).to(x.dtype)

    def of_symmetric(self, a: Float[Tensor, "*batch n n"]) -> Tensor:
        """The value of a symmetric ``A``."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return scaled(_tanh(a), half) + middle * identity(a)

    def free_values(self, values: Tensor) -> Tensor:
        """The eigenvalues of ``A`` from those of ``Y``; finite at and past the bounds."""
        # From both ends, and never closer to an end than rounding error.
        gap = (self.high - self.low) * working_eps(values.dtype) / 4
        up, down = values - self.low, self.high - values
        return scaled(up.clamp(min=gap).log() - down.clamp(min=gap).log(), 0.5)

    def log_volume(self, values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """The log volume ratio at eigenvalues of ``A``."""
        n = values.shape[-1]
        log_cosh = softplus(values + values) - values - math.log(2)
        constant = n * (n + 1) / 2 * math.log((self.high - self.low) / 2)
        cosh = scaled(log_cosh.sum(-1), n + 1.0)
        return log_sinhc_of_gaps(values) - cosh + constant


def check_bounds(name: str, low: Any, high: Any) -> None:
    """Raise unless the bounds are finite numbers, the lower one first.

    Raises:
        HyperparameterError: Says what they are.
    """
    for field, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise HyperparameterError(
                f"{name}({field}=...)", "be a number", told(value)
            )
        if not math.isfinite(value):
            raise HyperparameterError(f"{name}({field}=...)", "be finite", repr(value))
    if low >= high:
        raise HyperparameterError(
            f"{name}(high=...)", f"be above low = {low!r}", repr(high)
        )


def _tanh(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The hyperbolic tangent of a symmetric matrix.

    A Padé approximant of ``A / 32``, the continued fraction of ``tanh`` cut after four
    quotients above the diagonal, exact to float64 where ``|A| <= 16``; beyond 19
    ``tanh`` is one to rounding error, and doubling pulls any value towards one.
    """
    eye = identity(a)
    b = scaled(a, 0.5**_DOUBLINGS)
    s1 = b @ b
    s2 = s1 @ s1
    s3 = s2 @ s1
    # The coefficients over 135135, so that nothing overflows early.
    over = b @ (eye + scaled(s1, 5 / 39) + scaled(s2, 2 / 715) + scaled(s3, 1 / 135135))
    under = eye + scaled(s1, 6 / 13) + scaled(s2, 10 / 429) + scaled(s3, 4 / 19305)
    t = symmetric_part(solve(under, over))
    for _ in range(_DOUBLINGS):
        t = symmetric_part(solve(eye + t @ t, t + t))
    return t
