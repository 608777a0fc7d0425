"""Matrices whose singular values are close to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import HyperparameterError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._bounded_singular_values import BoundedSingularValues
from pureopt.constraints._domains import MATRIX, VECTOR, Domain
from pureopt.constraints._orthogonal import OrthogonalStatic

ALMOST_ORTHOGONAL = Domain(
    "a matrix with singular values close to one",
    "(..., n, k)",
    2,
    made_by="AlmostOrthogonal(lam)",
    inside=(MATRIX,),
)


@final
@dataclass(frozen=True)
class AlmostOrthogonal(Constraint):
    r"""Matrices whose singular values lie in ``[1 - lam, 1 + lam]``.

    .. math:: Y = Q \, (I + \lambda \tanh A), \qquad
        Q = \text{Orthogonal}(x_1), \quad A = \text{Symmetric}(x_2)

    (``(I + lam tanh A) Q`` for wide matrices.) It is :class:`BoundedSingularValues` with
    these bounds: as many numbers as entries, one-to-one onto the open set inside the
    chart of ``Q``, an isometry of the symmetric part up to ``lam`` at orthogonal
    matrices, where all singular values meet. A square ``Y`` keeps the sign of its
    determinant. The bounds themselves belong to the set: there the right inverse stops
    where ``tanh`` is one to rounding error, and the gradient is all but zero.

    Args:
        lam: The largest distance :math:`\lambda` of a singular value from one, between
            zero and one.

    Raises:
        HyperparameterError: If ``lam`` is not a number in (0, 1).

    References:
        Higham (2008), chapter 8 (the polar decomposition).

    Example:
        >>> import torch
        >>> c, y = AlmostOrthogonal(0.25), torch.diag(torch.tensor([1.25, -1.0, 0.75]))
        >>> static = c.bind(y)
        >>> x = c.right_inverse(y, static)
        >>> torch.allclose(c.forward(x, static), y, atol=1e-6)
        True
        >>> moved = torch.linalg.svdvals(c.forward(x + 10, static))
        >>> bool(((moved - 1).abs() <= 0.25 + 1e-6).all())
        True
        >>> c.check(1.01 * y)
        tensor(False)
    """

    lam: float

    def __post_init__(self) -> None:
        if isinstance(self.lam, bool) or not isinstance(self.lam, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                "AlmostOrthogonal(lam=...)", "be a number", told(self.lam)
            )
        if not 0 < self.lam < 1:
            raise HyperparameterError(
                "AlmostOrthogonal(lam=...)",
                "be in (0, 1)",
                repr(self.lam),
                "For zero there is `Orthogonal()`.",
            )

    @property
    def _bounded(self) -> BoundedSingularValues:
        return BoundedSingularValues(1 - self.lam, 1 + self.lam)

    @property
    def domain(self) -> Domain:
        """Vectors with as many entries as the matrix."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices with singular values close to one."""
        return ALMOST_ORTHOGONAL

    @property
    def rule(self) -> str:
        """How far a singular value is outside the interval."""
        return f"max|sigma_i(Y) - 1| - {self.lam}"

    def dim(self, shape: Sequence[int]) -> int:
        """The number of entries."""
        self._require_shape("dim", shape)
        return self._bounded.dim(shape)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """That of :class:`BoundedSingularValues`."""
        return self._bounded.radius(n, dtype)

    def bind(self, y: Float[Tensor, "*batch n k"]) -> OrthogonalStatic:
        """The chart of the orthogonal factor."""
        ALMOST_ORTHOGONAL.require("AlmostOrthogonal.bind(y)", y)
        return self._bounded.bind(y)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """The matrix; see the class."""
        VECTOR.require("AlmostOrthogonal.forward(x)", x)
        return self._bounded.forward(x, static)

    def right_inverse(
        self, y: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not in the set or not in the chart."""
        ALMOST_ORTHOGONAL.require("AlmostOrthogonal.right_inverse(y)", y)
        return self._bounded.right_inverse(y, static)

    def violation(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """How far a singular value is outside the interval; negative inside."""
        ALMOST_ORTHOGONAL.require("AlmostOrthogonal(y)", y)
        return self._bounded.violation(y)

    def tolerance(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """That of :class:`BoundedSingularValues`: some ``n eps``."""
        return self._bounded.tolerance(y)

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n k"]
    ) -> Float[Tensor, "*batch"]:
        """That of :class:`BoundedSingularValues`."""
        return self._bounded.rounding(x, y)

    def project(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
        """The singular values clamped."""
        ALMOST_ORTHOGONAL.require("AlmostOrthogonal.project(y)", y)
        return self._bounded.project(y)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """That of :class:`BoundedSingularValues`."""
        VECTOR.require("AlmostOrthogonal.log_abs_det(x)", x)
        return self._bounded.log_abs_det(x, static)
