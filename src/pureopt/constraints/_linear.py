"""Linear subspaces: one mechanism for symmetric, banded, tied and other patterns."""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pureopt._errors import ConstraintError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import MATRIX, REAL, SQUARE, VECTOR, Domain
from pureopt.constraints._numeric import (
    max_abs,
    or_nan,
    scaled,
    shape_of,
    times,
    working,
)

_LARGEST = 2**31  # where the search for a size gives up


class LinearSubspace(Constraint):
    r"""A linear subspace, from a vector of coordinates in an orthonormal basis.

    .. math:: Y = E x, \qquad E^T E = I, \qquad P = E E^T

    A subclass states ``E``, its transpose and the number of coordinates; the rest
    follows. :meth:`forward` is an isometry, :math:`\|Y\|_F = \|x\|_2`: a gradient step
    in ``x`` is the projected gradient step in ``Y``, and :meth:`log_abs_det` is zero.
    :meth:`project` is ``P``, and ``Y`` is in the set where ``Y = P Y`` up to eight
    roundings of its largest entry.

    A square shape follows from the length of ``x``. The static data of other shapes is
    an empty tensor that carries the shape: ``bind(torch.empty(rows, columns))``.

    Example:
        Matrices with one row, repeated:

        >>> import torch
        >>> from pureopt.constraints import Domain
        >>> class Rows(LinearSubspace):
        ...     codomain = Domain("a matrix of equal rows", "(..., n, k)", 2)
        ...
        ...     def degrees(self, shape):
        ...         return shape[1]
        ...
        ...     def embed(self, x, shape):
        ...         return torch.stack([x / shape[0] ** 0.5] * shape[0], -2)
        ...
        ...     def adjoint(self, y):
        ...         return y.sum(-2) / y.shape[-2] ** 0.5
        >>> y = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
        >>> Rows().forward(Rows().right_inverse(y)).round(decimals=6)
        tensor([[1., 2.],
                [1., 2.]])
        >>> Rows().check(y.mT), Rows().project(y.mT)
        (tensor(False), tensor([[1.5000, 1.5000],
                [1.5000, 1.5000]]))
    """

    @abstractmethod
    def degrees(self, shape: Sequence[int]) -> int:
        """How many coordinates a value of the event shape ``shape`` has."""

    @abstractmethod
    def embed(self, x: Float[Tensor, "*batch d"], shape: Sequence[int]) -> Tensor:
        """``E x``: a new tensor of event shape ``shape``, never a view of ``x``."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Float[Tensor, "*batch d"]:
        """``E^T y``, whatever ``y``: a new tensor."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The one event shape that fits; ``None`` if more than one does."""
        return None

    def event_shape(self, length: int) -> tuple[int, ...]:
        """The event shape of the standard chart of ``length`` coordinates.

        Raises:
            ConstraintError: If there is none.
        """
        n = 0 if self.shape else _square_size(self, length)
        found = self.shape or (n, n)
        if self.degrees(found) == length:
            return found
        few = (str(self.degrees((k, k))) for k in (1, 2, 3, 4))
        raise ConstraintError(
            f"{type(self).__name__}.forward(x)",
            f"have a last dimension {self.degrees(self.shape)}"
            if self.shape
            else f"have a last dimension {', '.join(few)}, ... (square matrices)",
            str(length),
            "`right_inverse` of a value gives the right one."
            if self.shape or self.codomain.square
            else "For a rectangle pass `static=bind(y)` of a `y` of its shape.",
        )

    @property
    def domain(self) -> Domain:
        """Vectors of coordinates."""
        return VECTOR

    @property
    def rule(self) -> str:
        """The largest distance of an entry from that of the projection."""
        return "max|Y - P Y|, P the projection on the subspace"

    @final
    def dim(self, shape: Sequence[int]) -> int:
        """The number of coordinates, :meth:`degrees`."""
        y = torch.empty(tuple(shape), device="meta")
        self._require("dim(shape)", y)
        return self.degrees(self._event(y))

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow."""
        del n
        return torch.finfo(dtype).max / 2

    @final
    def bind(self, y: Tensor) -> Any:
        """``()`` where the shape follows from the length of ``x``, else the shape."""
        self._require("bind(y)", y)
        return () if self._known_shape else shape_of(y)

    @final
    def forward(self, x: Float[Tensor, "*batch d"], static: Any = ()) -> Tensor:
        """``E x``; see the class."""
        shape = self._chart("forward", x, static)
        return self.embed(working(x), shape).to(x.dtype)

    @final
    def right_inverse(self, y: Tensor, static: Any = ()) -> Float[Tensor, "*batch d"]:
        """``E^T y``; NaN where ``y`` is not in the subspace."""
        self._require("right_inverse(y)", y)
        where = f"{type(self).__name__}.right_inverse"
        given = not (isinstance(static, tuple) and not static)
        if given and self._shape_in(where, static) != y.shape:
            raise ConstraintError(
                f"{where}(static=...)",
                f"be the static of a value of shape {tuple(y.shape)}",
                told(static),
                "Take it from `bind`; under vmap, map over both alike.",
            )
        x, gap = self._split(y)
        return or_nan(gap <= self.tolerance(y), x.to(y.dtype), 1)

    @final
    def violation(self, y: Tensor) -> Float[Tensor, "*batch"]:
        """The largest entry of ``Y - P Y``."""
        self._require("violation(y)", y)
        return self._split(y)[1]

    @final
    def tolerance(self, y: Tensor) -> Float[Tensor, "*batch"]:
        """Eight roundings of the largest entry, or four of the smallest number."""
        largest, info = (
            max_abs(working(y), self.codomain.event_dims),
            torch.finfo(y.dtype),
        )
        return scaled(largest, 8 * info.eps) + 4 * info.eps * info.tiny

    @final
    def rounding(
        self, x: Float[Tensor, "*batch d"], y: Tensor
    ) -> Float[Tensor, "*batch"]:
        """``8 eps sqrt(n) max|x|``: relative, so that units do not matter."""
        n, info = max(self._event(y)), torch.finfo(y.dtype)
        return scaled(max_abs(x, 1), 8 * math.sqrt(n) * info.eps) + info.tiny

    @final
    def project(self, y: Tensor) -> Tensor:
        """``P y``."""
        self._require("project(y)", y)
        return self.embed(self.adjoint(working(y)), self._event(y)).to(y.dtype)

    @final
    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """Zero: an isometry."""
        self._chart("log_abs_det", x, static)
        return torch.zeros_like(x.sum(-1))

    @property
    def _known_shape(self) -> bool:
        """Whether the shape follows from the length of ``x``."""
        known = self.shape is not None or self.codomain.square
        return known or self.codomain.event_dims == 1

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``E^T y``, and the largest entry of ``y - E E^T y``."""
        wide = working(y)
        x = self.adjoint(wide)
        gap = wide - self.embed(x, self._event(y))
        return x, max_abs(gap, self.codomain.event_dims)

    def _event(self, y: Tensor) -> tuple[int, ...]:
        return tuple(y.shape[y.dim() - self.codomain.event_dims :])

    def _require(self, method: str, y: Tensor) -> None:
        """Raise unless ``y`` is a floating tensor of a shape that fits."""
        where = f"{type(self).__name__}.{method}"
        self.codomain.require(where, y)
        event = self._event(y)
        if self.shape is not None and event != self.shape:
            raise ConstraintError(where, f"have event shape {self.shape}", str(event))
        if 0 in event:
            got = str(tuple(y.shape))
            raise ConstraintError(where, "have every size at least 1", got)

    def _chart(self, method: str, x: Tensor, static: Any) -> tuple[int, ...]:
        """The event shape, from the static data or the length of ``x``."""
        where = f"{type(self).__name__}.{method}"
        VECTOR.require(f"{where}(x)", x)
        if isinstance(static, tuple) and not static:
            return self.event_shape(x.shape[-1])
        whole = self._shape_in(where, static)
        split = len(whole) - self.codomain.event_dims
        event = whole[split:]
        wanted = (*whole[:split], self.degrees(event))
        if x.shape != wanted:
            raise ConstraintError(
                f"{where}(x)",
                f"have shape {wanted} for the static of a value of shape {whole}",
                str(tuple(x.shape)),
                "Under vmap, map over the free value and the static alike.",
            )
        return event

    def _shape_in(self, where: str, static: Any) -> tuple[int, ...]:
        """The shape that the static data carry."""
        dims, shape = self.codomain.event_dims, self.codomain.shape
        given = isinstance(static, Tensor) and static.dim() > dims
        if given and not self._known_shape and not static.shape[-1]:
            return tuple(static.shape[:-1])
        rule = "be `()`"
        raise ConstraintError(
            f"{where}(static=...)",
            rule if self._known_shape else f"{rule} or the static of a {shape} value",
            told(static),
            "Take it from `bind`.",
        )


class SparseSubspace(LinearSubspace):
    """Some entries are the free numbers, the others are zero."""

    @abstractmethod
    def positions(self, shape: Sequence[int], device: torch.device) -> Int[Tensor, "d"]:
        """Where the free numbers are in the flattened value, in their order."""

    @final
    def embed(self, x: Float[Tensor, "*batch d"], shape: Sequence[int]) -> Tensor:
        """Scatter: unlike a gather, it has a gather for a gradient, four times faster."""
        batch = x.shape[:-1]
        index = self.positions(shape, x.device).expand(x.shape)
        zeros = x.new_zeros((*batch, math.prod(shape)))
        return zeros.scatter(-1, index, x).reshape(*batch, *shape)

    @final
    def adjoint(self, y: Tensor) -> Float[Tensor, "*batch d"]:
        """Gather."""
        dims = self.codomain.event_dims
        index = self.positions(y.shape[y.dim() - dims :], y.device)
        return y.flatten(-dims)[..., index]


class Groups(NamedTuple):
    """Which entries are equal.

    Attributes:
        group: For each entry of the value, flattened, the number of its group counted
            from one; zero where the entry is zero.
        first: For each group, the flat position of one of its entries.
        sizes: For each group, how many entries it has.
    """

    group: Int[Tensor, "entries"]
    first: Int[Tensor, "d"]
    sizes: Int[Tensor, "d"]


class TiedSubspace(LinearSubspace):
    r"""Groups of equal entries: each entry is :math:`x_k / \sqrt{m_k}`, or zero.

    ``k`` is the group of the entry and :math:`m_k` the number of its entries.
    """

    @abstractmethod
    def groups_of(self, shape: Sequence[int], device: torch.device) -> Groups:
        """The groups of the entries."""

    @final
    def embed(self, x: Float[Tensor, "*batch d"], shape: Sequence[int]) -> Tensor:
        """Gather; a zero in front of ``x`` serves the entries that are zero."""
        groups = self.groups_of(shape, x.device)
        x = times(x, groups.sizes.to(x.dtype).rsqrt())
        return F.pad(x, (1, 0))[..., groups.group].reshape(*x.shape[:-1], *shape)

    @final
    def adjoint(self, y: Tensor) -> Float[Tensor, "*batch d"]:
        """The mean of each group, as one of its entries plus the mean deviation from it.

        So that a million equal numbers have an exact mean.
        """
        dims = self.codomain.event_dims
        groups = self.groups_of(y.shape[y.dim() - dims :], y.device)
        y = y.flatten(-dims)
        some, sizes = y[..., groups.first], groups.sizes.to(y.dtype)
        gaps = y - F.pad(some, (1, 0))[..., groups.group]
        zeros = y.new_zeros((*y.shape[:-1], len(sizes) + 1))
        sums = zeros.scatter_add(-1, groups.group.expand(gaps.shape), gaps)[..., 1:]
        return times(some + times(sums, sizes.reciprocal()), sizes.sqrt())


def structured(words: str, shape: tuple[int, ...]) -> Domain:
    """The domain of values of one shape with a structure."""
    names = f"(..., {', '.join(map(str, shape))})"
    larger = {1: VECTOR, 2: MATRIX}.get(len(shape), REAL)
    if len(shape) == 2 and shape[0] == shape[1]:  # noqa: PLR2004
        larger = SQUARE
    return Domain(words, names, len(shape), larger is SQUARE, inside=(larger,))


def _square_size(subspace: LinearSubspace, length: int) -> int:
    """The smallest ``n`` with at least ``length`` coordinates, by bisection."""
    # A number even if the compiler takes sizes as symbols: it cannot trace a search.
    length = operator.index(length)
    low, high = 1, 2
    while subspace.degrees((high, high)) < length and high < _LARGEST:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if subspace.degrees((middle, middle)) < length:
            low = middle + 1
        else:
            high = middle
    return low
