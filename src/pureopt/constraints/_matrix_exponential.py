"""The matrix exponential as a link: skew-symmetric matrices to orthogonal ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import (
    chart_signs,
    check_signs,
    flip,
    haar,
    orthonormality_error,
    orthonormality_tolerance,
    polar_factor,
)
from pureopt.constraints._domains import ORTHOGONAL, SKEW, Domain
from pureopt.constraints._exponential import (
    Exponential,
    check_base,
    rotations_log_abs_det,
)
from pureopt.constraints._numeric import or_nan, working, working_eps


class ExponentialStatic(NamedTuple):
    """What :meth:`MatrixExponential.bind` returns.

    Attributes:
        signs: One sign per column.
        base: Householder vectors of the point that zero goes to.

    Example:
        >>> import torch
        >>> static = MatrixExponential().bind(torch.eye(3))
        >>> static.signs.tolist(), static.base.shape
        ([1, 1, 1], torch.Size([3, 3]))
    """

    signs: Int8[Tensor, "*batch n"]
    base: Float[Tensor, "*batch n n"]


@final
@dataclass(frozen=True)
class MatrixExponential(Constraint):
    r"""Orthogonal matrices from skew-symmetric ones by the matrix exponential.

    .. math:: Q = P \exp(A) \, D, \qquad D = \operatorname{diag}(\pm 1)

    around the bound point ``P D``: both are the static data, ``P`` as Householder
    vectors. Not one-to-one, because angles repeat: :meth:`right_inverse` gives the
    principal logarithm, and NaN at half turns from the bound point.

    References:
        Lezcano-Casado (2019), dynamic trivializations.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Skew
        >>> turn = Skew() >> MatrixExponential()
        >>> y = turn.forward(torch.tensor([2**0.5 * torch.pi / 2]))
        >>> bool(torch.allclose(y, torch.tensor([[0.0, -1.0], [1.0, 0.0]]), atol=1e-6))
        True
    """

    @property
    def domain(self) -> Domain:
        """Skew-symmetric matrices."""
        return SKEW

    @property
    def codomain(self) -> Domain:
        """Orthogonal matrices."""
        return ORTHOGONAL

    @property
    def bijective(self) -> bool:
        """Not: angles are determined up to full turns."""
        return False

    @property
    def rule(self) -> str:
        """The largest deviation from orthonormal columns."""
        return "max|Y^T Y - I|"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        self._require_shape("dim", shape)
        return shape[-1] * (shape[-1] - 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``1 / (2 sqrt(n eps))``, with the eps of at least float32.

        The error before the Newton-Schulz step grows with the largest angle, and the
        step squares it. The round trip holds where no angle is close to an odd multiple
        of pi, and is NaN there.
        """
        return 0.5 * (n * working_eps(dtype)) ** -0.5

    def bind(self, y: Float[Tensor, "*batch n n"]) -> ExponentialStatic:
        """Signs and base of the chart around ``y``."""
        ORTHOGONAL.require("MatrixExponential.bind(y)", y)
        q = working(y)
        signs = chart_signs(q)
        return ExponentialStatic(signs, Exponential().bind(flip(q, signs)))

    def forward(
        self, x: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The orthogonal matrix; see the class."""
        SKEW.require("MatrixExponential.forward(x)", x)
        signs, base = _parts("MatrixExponential.forward", static, x.shape)
        a = working(x)
        q = Exponential().columns(a, a[..., :0, :], base)
        return flip(q, signs).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The skew matrix with angles below pi; NaN off the set or the chart."""
        ORTHOGONAL.require("MatrixExponential.right_inverse(y)", y)
        signs, base = _parts("MatrixExponential.right_inverse", static, y.shape)
        a, _, inside = Exponential().blocks(flip(working(y), signs), base)
        return or_nan(self.check(y) & inside, a, 2).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The largest deviation from orthonormal columns."""
        ORTHOGONAL.require("MatrixExponential(y)", y)
        return orthonormality_error(y)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``10 n eps``, at most one half."""
        return orthonormality_tolerance(y)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The orthogonal polar factor of ``y``."""
        ORTHOGONAL.require("MatrixExponential.project(y)", y)
        return polar_factor(y)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n n"]:
        """Uniform in the Haar measure of the orthogonal group, either determinant."""
        self._require_shape("sample", shape, dtype)
        return haar(key, shape, dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """Over skew matrices with the Frobenius norm; minus infinity at full turns."""
        SKEW.require("MatrixExponential.log_abs_det(x)", x)
        _parts("MatrixExponential.log_abs_det", static, x.shape)
        return rotations_log_abs_det(working(x)).to(x.dtype)


def _parts(where: str, static: Any, shape: torch.Size) -> tuple[Any, Any]:
    """The signs and the base of a static, checked; may be absent."""
    at = f"{where}(static=...)"
    signs, base = static if isinstance(static, ExponentialStatic) else (static, ())
    check_signs(at, signs, shape[:-1])
    check_base(at, base, shape)
    return signs, base
