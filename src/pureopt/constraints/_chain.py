"""Constraints one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pureopt._errors import CompositionError, ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import Domain
from pureopt.constraints._numeric import max_abs


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
        last = self.links[-1].codomain
        dims = max(link.codomain.event_dims for link in self.links)
        if last.event_dims == dims:
            return last
        # An elementwise map of matrices: one element of the chain is a matrix.
        wide = next(
            link.codomain for link in self.links if link.codomain.event_dims == dims
        )
        return replace(wide, words=last.words, made_by="", whole=False, inside=(last,))

    @property
    def rule(self) -> str:
        """The rule of the last link."""
        return self.links[-1].rule

    @property
    def bijective(self) -> bool:
        """Whether all links are."""
        return all(link.bijective for link in self.links)

    def dim(self, shape: Sequence[int]) -> int:
        """The smallest dimension that a value passes through."""
        dims: list[int] = []
        for link in reversed(self.links):
            dims.append(link.dim(shape))
            shape = link.free_shape(shape)
        return min(dims)

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

    def forward(self, x: Any, static: Any = ()) -> Tensor:
        """The links from first to last."""
        for link, link_static in zip(self.links, self._statics(static), strict=True):
            x = link.forward(x, link_static)
        return x

    def right_inverse(self, y: Tensor, static: Any = ()) -> Any:
        """The right inverses from last to first."""
        pairs = zip(self.links, self._statics(static), strict=True)
        for link, link_static in reversed(tuple(pairs)):
            y = link.right_inverse(y, link_static)
        return y

    def violation(self, y: Tensor) -> Float[Tensor, "*batch"]:
        """The violation of the last link."""
        return _over(max_abs, self.links[-1].violation(y), self._batch_dims(y))

    def tolerance(self, y: Tensor) -> Float[Tensor, "*batch"]:
        """The tolerance of the last link."""
        return _over(max_abs, self.links[-1].tolerance(y), self._batch_dims(y))

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """The sum over the links, as if each map were non-expansive."""
        values = [y]
        for link in self.links[:0:-1]:
            values.append(link.right_inverse(values[-1], link.bind(values[-1])))
        inputs = [*values[1:], x]
        pairs = zip(reversed(self.links), inputs, values, strict=True)
        batch = self._batch_dims(y)
        roundings = [_over(max_abs, c.rounding(a, b), batch) for c, a, b in pairs]
        return torch.stack([r.to(y.dtype) for r in roundings]).sum(0)

    def check(self, y: Tensor) -> Bool[Tensor, "*batch"]:
        """Whether ``y`` is in the last set, and what it came from in the ones before."""
        last, batch = self.links[-1].check(y), self._batch_dims(y)
        inside = _over(_all, last, batch)
        for link, before in zip(self.links[:0:-1], self.links[-2::-1], strict=True):
            y = link.right_inverse(y, link.bind(y))
            inside = inside & _over(_all, before.check(y), batch)
        return inside

    def offers(self, method: str) -> bool:
        """Whether all links have ``log_abs_det``; for the others see :meth:`project`."""
        if method == "log_abs_det":
            return all(link.offers(method) for link in self.links)
        reached = all(
            left.codomain == right.domain
            for left, right in zip(self.links, self.links[1:], strict=False)
        )
        return reached and self.links[-1].offers(method)

    def project(self, y: Tensor) -> Tensor:
        """The projection of the last link, if the links before it reach all it takes.

        Raises:
            ConstraintError: If they do not, or the last link has no projection.
        """
        if not self.offers("project"):
            self._lacks("project")
        return self.links[-1].project(y)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The sample of the last link, if the links before it reach all it takes.

        Raises:
            ConstraintError: If they do not, or the last link has no sample.
        """
        if not self.offers("sample"):
            self._lacks("sample")
        return self.links[-1].sample(key, shape, dtype=dtype)

    def log_abs_det(self, x: Any, static: Any = ()) -> Float[Tensor, "*batch"]:
        """The sum over the links, each at its own input."""
        terms: list[Tensor] = []
        for link, link_static in zip(self.links, self._statics(static), strict=True):
            terms.append(link.log_abs_det(x, link_static))
            x = link.forward(x, link_static)
        batch = min(term.dim() for term in terms)
        for i, term in enumerate(terms):
            if term.dim() > batch:  # an elementwise map of matrices
                terms[i] = term.flatten(batch).sum(-1)
        return torch.stack(terms).sum(0)

    def _batch_dims(self, y: Tensor) -> int:
        """How many leading dimensions a value of the chain has, and all before it."""
        return y.dim() - max(link.codomain.event_dims for link in self.links)

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


def links(constraint: Constraint) -> tuple[Constraint, ...]:
    """The links of a chain; another constraint is its only link.

    Raises:
        CompositionError: If it is no constraint.
    """
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


def _all(mask: Tensor, dims: int) -> Tensor:
    return mask.flatten(-dims).all(-1)


def _over(reduce: Callable[[Tensor, int], Tensor], t: Tensor, batch: int) -> Tensor:
    """A tensor over the batch of one link, reduced to the batch of the chain."""
    return reduce(t, t.dim() - batch) if t.dim() > batch else t
