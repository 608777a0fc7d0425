"""The contract of every constraint, and how they compose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NoReturn, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pureopt._errors import CompositionError, ConstraintError
from pureopt.constraints._domains import Domain


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
    def forward(self, x: Tensor, static: Any = ()) -> Tensor:
        """The constrained value of the free value ``x``.

        Args:
            x: An element of :attr:`domain`, any leading dimensions.
            static: From :meth:`bind`; ``()`` is the standard chart.

        Raises:
            ConstraintError: If the shape does not fit; numbers never raise.
        """

    @abstractmethod
    def right_inverse(self, y: Tensor, static: Any = ()) -> Tensor:
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

    def project(self, y: Tensor) -> Tensor:
        """The point of the set nearest to ``y`` in the Frobenius norm.

        Raises:
            ConstraintError: If this constraint has no projection.
        """
        self._lacks("project", y)

    def log_abs_det(self, x: Tensor, static: Any = ()) -> Float[Tensor, "*batch"]:
        r"""Log volume ratio :math:`\tfrac12 \log\det(J^T J)`, a natural logarithm.

        ``J`` is the Jacobian of :meth:`forward` in isometric coordinates of the
        domain, so that the logarithms of a chain add up.

        Raises:
            ConstraintError: If this constraint has no closed form.
        """
        del static
        self._lacks("log_abs_det", x)

    def _lacks(self, method: str, value: Tensor) -> NoReturn:
        raise ConstraintError(
            f"{self!r}.{method}(...)",
            f"be called on a constraint that implements `{method}`",
            f"`{type(self).__name__}` with a tensor of shape {tuple(value.shape)}",
        )

    def __rshift__(self, other: Constraint) -> Chain:
        """``a >> b``: what ``a`` returns goes into ``b``."""
        return Chain((*_links(self), *_links(other)))


def _links(constraint: Constraint) -> tuple[Constraint, ...]:
    if not isinstance(constraint, Constraint):  # pyright: ignore[reportUnnecessaryIsInstance]
        is_class = isinstance(constraint, type)
        raise CompositionError(
            "a >> b",
            "compose constraints",
            f"the class {constraint!r}" if is_class else f"`{constraint!r}`",
            "Make an instance: `Skew() >> Cayley()`." if is_class else "",
        )
    return constraint.links if isinstance(constraint, Chain) else (constraint,)


def _check_fit(left: Constraint, right: Constraint) -> None:
    if right.domain.contains(left.codomain):
        return
    maker = right.domain.made_by
    raise CompositionError(
        f"{left!r} >> {right!r}",
        f"hand {right.domain.words} to `{right!r}`",
        f"{left.codomain.words} from `{left!r}`",
        f"Write `{maker} >> {right!r}`."
        if maker
        else f"`{right!r}` can only be the first link.",
    )


@final
@dataclass(frozen=True, repr=False)
class Chain(Constraint):
    """``a >> b``: constraints one after the other; its static is the tuple of theirs.

    Raises:
        CompositionError: If a link does not take what the one before it returns.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Cayley, Skew
        >>> c = Skew() >> Cayley()
        >>> c
        Skew() >> Cayley()
        >>> c.forward(torch.zeros(1))
        tensor([[1., 0.],
                [0., 1.]])
    """

    links: tuple[Constraint, ...]

    def __post_init__(self) -> None:
        for left, right in zip(self.links, self.links[1:], strict=False):
            _check_fit(left, right)

    def __repr__(self) -> str:
        """The expression that makes it."""
        return " >> ".join(map(repr, self.links))

    @property
    def domain(self) -> Domain:
        """The domain of the first link."""
        return self.links[0].domain

    @property
    def codomain(self) -> Domain:
        """The codomain of the last link."""
        return self.links[-1].codomain

    @property
    def rule(self) -> str:
        """The rule of the last link."""
        return self.links[-1].rule

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """The smallest radius of the links."""
        return min(link.radius(n, dtype) for link in self.links)

    def bind(self, y: Tensor) -> tuple[Any, ...]:
        """The statics of the links, found from the last link to the first."""
        statics: list[Any] = []
        for link in reversed(self.links):
            statics.append(link.bind(y))
            y = link.right_inverse(y, statics[-1])
        return tuple(reversed(statics))

    def forward(self, x: Tensor, static: Any = ()) -> Tensor:
        """The links from first to last."""
        for link, link_static in zip(self.links, self._statics(static), strict=True):
            x = link.forward(x, link_static)
        return x

    def right_inverse(self, y: Tensor, static: Any = ()) -> Tensor:
        """The right inverses from last to first."""
        pairs = zip(self.links, self._statics(static), strict=True)
        for link, link_static in reversed(tuple(pairs)):
            y = link.right_inverse(y, link_static)
        return y

    def violation(self, y: Tensor) -> Float[Tensor, "*batch"]:
        """The violation of the last link."""
        return self.links[-1].violation(y)

    def tolerance(self, y: Tensor) -> Float[Tensor, "*batch"]:
        """The tolerance of the last link."""
        return self.links[-1].tolerance(y)

    def check(self, y: Tensor) -> Bool[Tensor, "*batch"]:
        """Whether ``y`` is in the last set, and what it came from in the ones before."""
        inside = self.links[-1].check(y)
        for link, before in zip(self.links[:0:-1], self.links[-2::-1], strict=True):
            y = link.right_inverse(y, link.bind(y))
            inside = inside & before.check(y)
        return inside

    def project(self, y: Tensor) -> Tensor:
        """The projection of the last link, if the links before it reach all it takes.

        Raises:
            ConstraintError: If they do not, or the last link has no projection.
        """
        for left, right in zip(self.links, self.links[1:], strict=False):
            if left.codomain != right.domain:
                self._lacks("project", y)
        return self.links[-1].project(y)

    def log_abs_det(self, x: Tensor, static: Any = ()) -> Float[Tensor, "*batch"]:
        """The sum over the links, each at its own input."""
        statics = self._statics(static)
        total = self.links[0].log_abs_det(x, statics[0])
        for i in range(1, len(self.links)):
            x = self.links[i - 1].forward(x, statics[i - 1])
            total = total + self.links[i].log_abs_det(x, statics[i])
        return total

    def _statics(self, static: Any) -> tuple[Any, ...]:
        statics = tuple(static) or ((),) * len(self.links)
        if len(statics) != len(self.links):
            raise ConstraintError(
                f"({self!r}).forward(static=...)",
                f"be a tuple of {len(self.links)} statics, one per link",
                f"{len(statics)}",
                "Take it from `bind`.",
            )
        return statics


def scaled(x: Tensor, factor: float) -> Tensor:
    """``factor * x`` in the spelling that survives the compiler.

    A compiled ``vmap(jacfwd)`` refuses a product with a number, and inductor drops the
    ``alpha`` of ``torch.add`` where ``x`` is a matrix product (pytorch#167313 is alike).
    """
    return torch.sub(torch.zeros_like(x), x, alpha=-factor)


def working(x: Tensor) -> Tensor:
    """``x`` in the dtype of the linear algebra: at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def or_nan(keep: Bool[Tensor, "*batch"], x: Tensor, event_dims: int) -> Tensor:
    """``x`` where ``keep``, else NaN over the whole element."""
    mask = keep.reshape(keep.shape + (1,) * event_dims)
    return torch.where(mask, x, torch.full_like(x, torch.nan))


def max_abs(y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
    """The largest modulus of each matrix."""
    return y.abs().amax((-2, -1))
