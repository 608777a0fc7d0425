"""The contract of every constraint, and how they compose."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt._tree import tree_map
from pureopt.constraints._domains import Domain
from pureopt.constraints._numeric import max_abs, scaled


class Constraint(ABC):
    """A map from free numbers onto a set, with a right inverse.

    Acts on the trailing dimensions and batches over the leading ones. What depends on
    the point and is discrete (signs, shapes, permutations) is a tree of tensors that
    :meth:`bind` returns and that travels as ``static``: for ``s = c.bind(y)``,
    ``c.forward(c.right_inverse(y, s), s) == y`` for every ``y`` in the set. Without
    ``static`` the map is its standard chart. Elements off the set or off the chart are
    NaN, and nothing is projected unless :meth:`project` is called.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Orthogonal
        >>> c, y = Orthogonal(), -torch.eye(3)
        >>> s = c.bind(y)
        >>> bool((c.forward(c.right_inverse(y, s), s) == y).all())
        True
    """

    @property
    @abstractmethod
    def domain(self) -> Domain:
        """The set of free values."""

    @property
    @abstractmethod
    def codomain(self) -> Domain:
        """The set of constrained values."""

    @property
    def bijective(self) -> bool:
        """Whether each chart is one-to-one onto a dense open part of the set.

        Then a free value has exactly :meth:`dim` numbers.
        """
        return True

    @abstractmethod
    def dim(self, shape: Sequence[int]) -> int:
        """The dimension of the set of values of the event shape ``shape``.

        Raises:
            ConstraintError: If there is no value of that shape.
        """

    def free_shape(self, shape: Sequence[int]) -> Any:
        """The shape of the free value of a value of shape ``shape``.

        Raises:
            ConstraintError: If there is no value of that shape.
        """
        y = torch.empty(tuple(shape), device="meta")
        return tree_map(lambda x: x.shape, self.right_inverse(y, self.bind(y)))

    @abstractmethod
    def radius(self, n: int, dtype: torch.dtype) -> float:
        """The largest ``max|x|`` for which feasibility and round trip hold to tolerance.

        Args:
            n: The larger event dimension.
            dtype: The dtype of the leaf.
        """

    def bind(self, y: Tensor) -> Any:
        """The static data of the chart around ``y``: a tree of tensors, ``()`` if none.

        Raises:
            ConstraintError: If the shape does not fit; numbers never raise.
        """
        self.codomain.require(f"{type(self).__name__}.bind(y)", y)
        return ()

    @abstractmethod
    def forward(self, x: Any, static: Any = ()) -> Tensor:
        """The constrained value of the free value ``x``.

        Args:
            x: An element of :attr:`domain`, any leading dimensions; a tensor, or a tree
                of tensors where the constraint says so.
            static: From :meth:`bind`; ``()`` is the standard chart.

        Raises:
            ConstraintError: If the shape does not fit; numbers never raise.
        """

    @abstractmethod
    def right_inverse(self, y: Tensor, static: Any = ()) -> Any:
        """The free value whose :meth:`forward` is ``y``; NaN off the set or the chart.

        Args:
            y: An element of :attr:`codomain`, any leading dimensions.
            static: From :meth:`bind`; ``()`` is the standard chart.

        Raises:
            ConstraintError: If the shape does not fit; numbers never raise.
        """

    @abstractmethod
    def violation(self, y: Tensor) -> Float[Tensor, "*batch"]:
        """How far ``y`` is from the set, in the units of :attr:`rule`; NaN for NaN."""

    @abstractmethod
    def tolerance(self, y: Tensor) -> Float[Tensor, "*batch"]:
        """The largest :meth:`violation` that :meth:`check` takes for rounding error."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """What :meth:`violation` measures, as a formula in ``Y``."""

    def check(self, y: Tensor) -> Bool[Tensor, "*batch"]:
        """Whether ``y`` is in the set up to rounding error; False for NaN."""
        return self.violation(y) <= self.tolerance(y)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """The largest ``|forward(x) - y|`` that rounding explains, ``x`` made from ``y``.

        By default ``20 eps sqrt(n) max(1, max|x|)``, the backward error of a solve of
        size ``n`` with some roundings per entry that add up at random.
        """
        dims = self.codomain.event_dims
        n = max(y.shape[y.dim() - dims :], default=1)
        reach = max_abs(x, self.domain.event_dims).to(y.dtype).clamp(min=1)
        return scaled(reach, 20 * math.sqrt(n) * torch.finfo(y.dtype).eps)

    def project(self, y: Tensor) -> Tensor:
        """The point of the set nearest to ``y`` in the Frobenius norm.

        Raises:
            ConstraintError: If this constraint has no projection.
        """
        del y
        self._lacks("project")

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Values drawn uniformly from the set.

        Args:
            key: A key, see :mod:`pureopt.random`.
            shape: Leading dimensions, then the event shape.
            dtype: A real floating dtype.

        Raises:
            ConstraintError: If the set has no uniform distribution.
        """
        del key, shape, dtype
        self._lacks("sample")

    def rebind(self, x: Any, static: Any = ()) -> tuple[Any, Any]:
        """The same value in the chart around it: ``(x, static)``."""
        y = self.forward(x, static)
        static = self.bind(y)
        return self.right_inverse(y, static), static

    def log_abs_det(self, x: Any, static: Any = ()) -> Float[Tensor, "*batch"]:
        r"""Log volume ratio :math:`\tfrac12 \log\det(J^T J)`, a natural logarithm.

        ``J`` is the Jacobian of :meth:`forward` in isometric coordinates of the
        domain, so that the logarithms of a chain add up.

        Raises:
            ConstraintError: If this constraint has no closed form.
        """
        del x, static
        self._lacks("log_abs_det")

    def offers(self, method: str) -> bool:
        """Whether this constraint has the optional method of that name.

        Args:
            method: ``"project"``, ``"sample"`` or ``"log_abs_det"``.
        """
        return getattr(type(self), method) is not getattr(Constraint, method)

    def _require_shape(
        self, method: str, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> None:
        """Raise unless there can be values of this shape and dtype."""
        like = torch.empty(tuple(shape), dtype=dtype, device="meta")
        self.codomain.require(f"{type(self).__name__}.{method}(shape=...)", like)

    def _lacks(self, method: str) -> NoReturn:
        raise ConstraintError(
            f"{self!r}.{method}(...)",
            f"be called on a constraint that implements `{method}`",
            f"`{type(self).__name__}`",
            "The guide 'Which constraint' lists those that do.",
        )

    def __rshift__(self, other: Constraint) -> Constraint:
        """``a >> b``: what ``a`` returns goes into ``b``."""
        # Not at the top: a chain is itself a constraint.
        from pureopt.constraints._chain import Chain, links  # noqa: PLC0415

        return Chain((*links(self), *links(other)))
