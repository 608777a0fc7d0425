"""The contract of the maps onto orthonormal columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pureopt._errors import ConstraintError, told


class OrthogonalMap(ABC):
    r"""How :class:`Orthogonal` makes orthonormal columns of a tangent vector.

    The tangent vector is the free half of an ``n`` by ``n`` skew-symmetric matrix,

    .. math:: \begin{bmatrix} A & -B^T \\ B & 0 \end{bmatrix}, \qquad A^T = -A,

    given by its blocks ``A`` (``k`` by ``k``) and ``B`` (``n - k`` by ``k``). A map is
    smooth in the blocks, and an isometry at zero. It may assume that ``I + Q_1`` is far
    from singular, ``Q_1`` the upper block of the columns: :class:`Orthogonal` flips
    their signs so. Unless it is bound to another point, zero goes to the first columns
    of the identity.

    Example:
        >>> from pureopt.constraints import Exponential, Householder, SignedCayley
        >>> maps = SignedCayley(), Exponential(), Householder()
        >>> [isinstance(map, OrthogonalMap) for map in maps]
        [True, True, True]
    """

    @property
    def bijective(self) -> bool:
        """Whether it is one-to-one onto a dense open part of the set."""
        return True

    @abstractmethod
    def radius(self, n: int, dtype: torch.dtype) -> float:
        """As :meth:`Constraint.radius`, over the entries of the blocks."""

    def amplification(self, reach: Tensor, shape: torch.Size) -> Tensor:
        """How often the rounding error of a map without growth a round trip makes.

        Args:
            reach: ``max|x|``, at least 1.
            shape: The shape of the tall matrix.
        """
        del shape
        return reach

    def bind(self, q: Float[Tensor, "*batch n k"]) -> Any:
        """The point that zero goes to, as a tree of tensors; ``()`` if it is fixed."""
        del q
        return ()

    def require(self, where: str, base: Any, shape: torch.Size) -> None:
        """Raise unless ``base`` is ``()`` or fits matrices of shape ``(*batch, n, k)``.

        Raises:
            ConstraintError: Says what it must be.
        """
        del shape
        if not isinstance(base, tuple) or base:
            raise ConstraintError(where, "have no base point", told(base))

    @abstractmethod
    def columns(
        self,
        a: Float[Tensor, "*batch k k"],
        b: Float[Tensor, "*batch n-k k"],
        base: Any,
    ) -> Float[Tensor, "*batch n k"]:
        """Orthonormal columns; ``base`` is from :meth:`bind`, or ``()``."""

    @abstractmethod
    def blocks(
        self, q: Float[Tensor, "*batch n k"], base: Any
    ) -> tuple[Tensor, Tensor, Bool[Tensor, "*batch"]]:
        """The blocks that :meth:`columns` takes to ``q``, and if ``q`` is in the chart."""

    @abstractmethod
    def log_abs_det(
        self, a: Float[Tensor, "*batch k k"], b: Float[Tensor, "*batch n-k k"]
    ) -> Float[Tensor, "*batch"]:
        """Log volume ratio of :meth:`columns` over the blocks; the same for each base."""
