"""Constraints on the leaves of a tree, as one constraint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pureopt._errors import CompositionError, ConstraintError, told
from pureopt._random import split
from pureopt._tree import (
    tree_flatten,
    tree_items,
    tree_leaves,
    tree_map,
    tree_match,
    tree_paths,
    tree_unflatten,
)
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import Domain
from pureopt.constraints._numeric import max_abs, or_nan


@final
@dataclass(frozen=True)
class Product(Constraint):
    """Constraints on the leaves of a tree of tensors, as one constraint.

    Values, free values, static data and shapes are trees like ``parts``, with what each
    part has at its leaf. All parts have the same leading dimensions; an elementwise part
    may have more, which belong to the element. If a part is off its set, all are NaN.

    ``constrain(params, Product(parts))`` puts each part on the leaf of its path; leaves
    that have none are free.

    Args:
        parts: A dict, list, tuple or NamedTuple of constraints, possibly nested.

    Raises:
        CompositionError: If a leaf of ``parts`` is no constraint, or there is none.

    Example:
        A frame with a tensor in it, and its nine numbers:

        >>> import torch
        >>> from pureopt.constraints import Orthogonal, Symmetric
        >>> c = Product({"frame": Orthogonal(), "stress": Symmetric()})
        >>> c.dim({"frame": (3, 3), "stress": (3, 3)})
        9
        >>> y = {"frame": -torch.eye(3), "stress": torch.ones(3, 3)}
        >>> static = c.bind(y)
        >>> x = c.right_inverse(y, static)
        >>> {name: tuple(part.shape) for name, part in x.items()}
        {'frame': (3,), 'stress': (6,)}
        >>> c.check(c.forward(x, static)), c.check({**y, "frame": torch.ones(3, 3)})
        (tensor(True), tensor(False))
    """

    parts: Any

    def __post_init__(self) -> None:
        """Refuse what is no constraint; a product of products is one product."""
        if isinstance(self.parts, Constraint) or not tree_leaves(self.parts):
            raise CompositionError(
                "Product(parts)",
                "be a dict or a tuple of constraints",
                told(self.parts),
                "Write for example `Product({'weight': Orthogonal()})`.",
            )
        for path, part in tree_items(self.parts):
            if not isinstance(part, Constraint):
                got = told(part) + (f" at '{path}'" if path else "")
                raise CompositionError("Product(parts)", "hold only constraints", got)
        # A copy too: the dict that was passed can change.
        parts = tree_map(lambda c: c.parts if isinstance(c, Product) else c, self.parts)
        object.__setattr__(self, "parts", parts)

    def __hash__(self) -> int:
        """Of the parts by path: a dict has no hash, and its order no meaning."""
        return hash(frozenset(tree_items(self.parts)))

    @property
    def domain(self) -> Domain:
        """Trees of the free values of the parts."""
        return self._domain("free value", [c.domain for c in self._constraints])

    @property
    def codomain(self) -> Domain:
        """Trees of the values of the parts."""
        return self._domain("value", [c.codomain for c in self._constraints])

    @property
    def bijective(self) -> bool:
        """Whether all parts are."""
        return all(c.bijective for c in self._constraints)

    @property
    def rule(self) -> str:
        """The worst part, whatever the parts measure."""
        return "violation / tolerance of each part"

    def dim(self, shape: Any) -> int:
        """The sum over the parts; ``shape`` is a tree of event shapes."""
        shapes = self._match("dim(shape)", shape)
        return sum(c.dim(s) for c, s in zip(self._constraints, shapes, strict=True))

    def free_shape(self, shape: Any) -> Any:
        """The shapes of the free values of the parts."""
        shapes = self._match("free_shape(shape)", shape)
        return self._tree(lambda c, s: c.free_shape(s), shapes)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """The smallest radius of the parts."""
        return min(c.radius(n, dtype) for c in self._constraints)

    def bind(self, y: Any) -> Any:
        """The statics of the parts."""
        return self._tree(lambda c, y: c.bind(y), self._values("bind(y)", y))

    def forward(self, x: Any, static: Any = ()) -> Any:
        """The values of the parts."""
        xs, statics = self._match("forward(x)", x), self._statics("forward", static)
        y = self._tree(lambda c, x, s: c.forward(x, s), xs, statics)
        self._values("forward(x)", y)
        return y

    def right_inverse(self, y: Any, static: Any = ()) -> Any:
        """The free values of the parts; NaN in all where one is off its set."""
        ys = self._values("right_inverse(y)", y)
        statics = self._statics("right_inverse", static)
        keep = self.check(y)
        x = self._tree(lambda c, y, s: c.right_inverse(y, s), ys, statics)
        return tree_map(lambda t: or_nan(keep, t, t.dim() - keep.dim()), x)

    def violation(self, y: Any) -> Float[Tensor, "*batch"]:
        """The largest violation of a part over its tolerance; NaN if one is NaN."""
        ys = self._values("violation(y)", y)
        terms = [_excess(c, y) for c, y in zip(self._constraints, ys, strict=True)]
        return self._fold("violation(y)", terms, max_abs).amax(0)

    def tolerance(self, y: Any) -> Float[Tensor, "*batch"]:
        """One: the violation is in units of the tolerances of the parts."""
        return torch.ones_like(self.violation(y))

    def check(self, y: Any) -> Bool[Tensor, "*batch"]:
        """Whether every part is in its set."""
        ys = self._values("check(y)", y)
        terms = [c.check(y) for c, y in zip(self._constraints, ys, strict=True)]
        return self._fold("check(y)", terms, lambda t, k: t.flatten(-k).all(-1)).all(0)

    def rounding(self, x: Any, y: Any) -> Float[Tensor, "*batch"]:
        """The largest of the parts."""
        xs, ys = self._match("rounding(x)", x), self._values("rounding(y)", y)
        terms = [
            c.rounding(x, y) for c, x, y in zip(self._constraints, xs, ys, strict=True)
        ]
        return self._fold("rounding(y)", terms, max_abs).amax(0)

    def offers(self, method: str) -> bool:
        """Whether every part does."""
        return all(c.offers(method) for c in self._constraints)

    def project(self, y: Any) -> Any:
        """The nearest points of the parts."""
        return self._tree(lambda c, y: c.project(y), self._values("project(y)", y))

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Any,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Any:
        """Independent samples of the parts; ``shape`` is a tree of shapes."""
        shapes = self._match("sample(shape)", shape)
        keys = split(key, len(shapes)).unbind(-1)
        return self._tree(lambda c, k, s: c.sample(k, s, dtype=dtype), keys, shapes)

    def log_abs_det(self, x: Any, static: Any = ()) -> Float[Tensor, "*batch"]:
        """The sum over the parts."""
        xs = self._match("log_abs_det(x)", x)
        statics = self._statics("log_abs_det", static)
        terms = [
            c.log_abs_det(x, s)
            for c, x, s in zip(self._constraints, xs, statics, strict=True)
        ]
        where = "log_abs_det(x)"
        return self._fold(where, terms, lambda t, k: t.flatten(-k).sum(-1)).sum(0)

    @property
    def _constraints(self) -> list[Constraint]:
        return tree_leaves(self.parts)

    def _domain(self, what: str, domains: list[Domain]) -> Domain:
        pairs = zip(tree_paths(self.parts), domains, strict=True)
        told = "; ".join(f"'{path}': {domain.words}" for path, domain in pairs)
        # Never zero: an elementwise set would be taken for a set of numbers.
        dims = max(1, *(domain.event_dims for domain in domains))
        return Domain(f"a tree with the {what} of each part ({told})", "", dims)

    def _tree(self, fn: Callable[..., Any], *columns: Sequence[Any]) -> Any:
        """The tree of what ``fn`` makes of each part and its entries."""
        rows = zip(self._constraints, *columns, strict=True)
        return tree_unflatten(tree_flatten(self.parts)[1], [fn(*row) for row in rows])

    def _match(self, method: str, tree: Any) -> list[Any]:
        try:
            return tree_match(tree, self.parts)
        except (ValueError, TypeError):
            raise ConstraintError(
                f"Product.{method}",
                f"have the keys of its parts, {tree_paths(self.parts)}",
                f"a tree with {tree_paths(tree)}"
                if tree_paths(tree) != [""]
                else told(tree),
            ) from None

    def _values(self, method: str, y: Any) -> list[Tensor]:
        """The values of the parts, with the same leading dimensions."""
        ys = self._match(method, y)
        for path, c, part in zip(
            tree_paths(self.parts), self._constraints, ys, strict=True
        ):
            c.codomain.require(f"Product.{method}['{path}']", part)
        shapes = [
            part.shape[: part.dim() - c.codomain.event_dims]
            for c, part in zip(self._constraints, ys, strict=True)
        ]
        self._batch_dims(method, shapes)
        return ys

    def _statics(self, method: str, static: Any) -> list[Any]:
        if isinstance(static, tuple) and not static:
            return [()] * len(self._constraints)
        return self._match(f"{method}(static=...)", static)

    def _batch_dims(self, method: str, shapes: Sequence[torch.Size]) -> int:
        """How many leading dimensions all parts share.

        Elementwise parts share what they have in common; the others have no more.
        """
        common = 0
        for sizes in zip(*shapes, strict=False):
            if any(size != sizes[0] for size in sizes):
                break
            common += 1
        for path, c, shape in zip(
            tree_paths(self.parts), self._constraints, shapes, strict=True
        ):
            if c.codomain.event_dims and len(shape) != common:
                raise ConstraintError(
                    f"Product.{method}",
                    "have the same leading dimensions in every part",
                    f"{tuple(shape)} at '{path}', and only {tuple(shape[:common])} in all",
                )
        return common

    def _fold(
        self,
        method: str,
        terms: list[Tensor],
        reduce: Callable[[Tensor, int], Tensor],
    ) -> Float[Tensor, "parts *batch"]:
        """One term for each part, reduced to the leading dimensions that all share."""
        batch = self._batch_dims(method, [term.shape for term in terms])
        return torch.stack(
            [
                reduce(term, term.dim() - batch) if term.dim() > batch else term
                for term in terms
            ]
        )


def _excess(c: Constraint, y: Tensor) -> Tensor:
    """The violation in units of the tolerance, which may be zero."""
    violation, tolerance = c.violation(y), c.tolerance(y)
    exact = tolerance <= 0
    ratio = violation / torch.where(exact, 1.0, tolerance)
    return torch.where(exact & (violation > 0), torch.inf, ratio)
