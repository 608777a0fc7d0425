"""What an invariant is tried on: a constraint, a value of its set, and its chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from pureopt import random
from pureopt._tree import ravel, tree_flatten, tree_leaves, tree_map, tree_unflatten
from pureopt.constraints import Constraint


@final
@dataclass(frozen=True)
class Case:
    """What varies from try to try.

    Attributes:
        shape: The event shape; a tree of shapes if the values are trees.
        batch: The leading dimensions.
        dtype: The dtype of the values.
        seed: What the numbers are drawn from.
        scale: The largest modulus of drawn free numbers; the constraint's radius bounds
            it.
        contiguous: Whether the tensors are contiguous.

    Example:
        >>> import torch
        >>> print(Case((3, 3), dtype=torch.float64, scale=10.0))
        shape (3, 3), batch (), float64, seed 0, scale 10
    """

    shape: Any
    batch: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64
    seed: int = 0
    scale: float = 1.0
    contiguous: bool = True

    def __str__(self) -> str:
        """In words."""
        told = f"shape {self.shape}, batch {self.batch}, {str(self.dtype)[6:]}, "
        told += f"seed {self.seed}, scale {self.scale:g}"
        return told if self.contiguous else f"{told}, not contiguous"


class Measured(NamedTuple):
    """One number that an invariant found, and what it may be at most.

    Attributes:
        what: What was measured.
        worst: The worst number found.
        tolerance: The largest one that rounding explains.
        ok: Whether it is.

    Example:
        >>> measured("det", 0.5, 0.1)
        Measured(what='det', worst=0.5, tolerance=0.1, ok=False)
    """

    what: str
    worst: float
    tolerance: float
    ok: bool


def measured(what: str, worst: float, tolerance: float) -> Measured:
    """A number with its bound; NaN is never within it."""
    return Measured(what, worst, tolerance, worst <= tolerance)


def holds(what: str, truth: bool) -> Measured:
    """A statement: 0 where it is true, 1 where it is not."""
    return Measured(what, float(not truth), 0.0, truth)


def raised(error: Exception) -> Measured:
    """What was raised in the place of a number, in one line."""
    told = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    return Measured(told, torch.nan, 0.0, ok=False)


@final
@dataclass(frozen=True, eq=False)
class Probe:
    """A constraint at one feasible value: what every invariant is given.

    Attributes:
        constraint: The constraint.
        case: What was drawn.
        y: The feasible value.
        packed: What makes the free value of a vector where the domain is a set of
            matrices with a structure; ``None`` where free numbers are entries.
        outside: Values that are not in the set, as float64 without leading dimensions.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Skew
        >>> probe = Probe(Skew(), Case((2, 2)), torch.zeros(2, 2))
        >>> probe.x
        tensor([0.])
    """

    constraint: Constraint
    case: Case
    y: Any
    packed: Constraint | None = None
    outside: Sequence[Any] = field(default=())

    @cached_property
    def static(self) -> Any:
        """The static data of the chart around ``y``."""
        return self.constraint.bind(self.y)

    @cached_property
    def x(self) -> Any:
        """The free value of ``y``."""
        return self.constraint.right_inverse(self.y, self.static)

    def drawn(self, scale: float | None = None, salt: int = 1) -> Any:
        """A free value with entries uniform in ``[-scale, scale]``, in the chart of ``y``."""
        scale = self.case.scale if scale is None else scale
        key = random.fold_in(
            random.key(self.case.seed), torch.tensor(salt, device="cpu")
        )
        keys = iter(random.split(key, 1 + len(tree_leaves(self.x))))

        def draw(x: Tensor) -> Tensor:
            u = random.uniform(next(keys), x.shape, dtype=torch.float64)
            return (scale * (2 * u - 1)).to(x)

        if self.packed is None:
            return tree_map(draw, self.x)
        vector = draw(self.packed.right_inverse(self.x, self.packed.bind(self.x)))
        return self.packed.forward(vector, self.packed.bind(self.x))

    def vector_map(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """``forward`` as a map from vectors to vectors, and the vector of ``x``."""
        c, static, x = self.constraint, self.static, self.x
        if self.packed is not None:
            first = self.packed.bind(x)
            c, static = self.packed >> c, (first, static)
            x = self.packed.right_inverse(x, first)
        leaves, structure = tree_flatten(x)
        sizes = [leaf.numel() for leaf in leaves]

        def forward(v: Tensor) -> Tensor:
            pieces = [
                piece.reshape(leaf.shape)
                for piece, leaf in zip(v.split(sizes), leaves, strict=True)
            ]
            return ravel(c.forward(tree_unflatten(structure, pieces), static))

        return forward, ravel(x)


def feasible(constraint: Constraint, case: Case) -> Any:
    """A value of the set: drawn, projected, or the image of drawn free numbers.

    Raises:
        ConstraintError: If the constraint has neither ``sample`` nor ``project``, and
            its standard chart does not take vectors.
    """
    key = random.key(case.seed)
    wide = torch.promote_types(case.dtype, torch.float32)
    shape = tree_map_shapes(lambda s: (*case.batch, *s), case.shape)
    if constraint.offers("sample"):
        y = constraint.sample(key, shape, dtype=wide)
    elif constraint.offers("project"):
        y = constraint.project(random.normal(key, shape, dtype=wide))
    else:
        free = constraint.free_shape(shape)
        x = tree_map_shapes(lambda s: random.normal(key, s, dtype=wide), free)
        y = constraint.forward(x)
    return prepare(constraint, case, y)


def prepare(constraint: Constraint, case: Case, y: Any) -> Any:
    """A feasible value in the dtype and the layout of the case.

    Half precision would round a value off its set: there, it is the image of the
    rounded free value.
    """
    wide = torch.promote_types(case.dtype, torch.float32)
    y = tree_map(lambda t: t.to(wide), y)
    if wide != case.dtype:
        x = constraint.right_inverse(y, constraint.bind(y))
        x, low = tree_map(lambda t: t.to(case.dtype), (x, y))
        y = constraint.forward(x, constraint.bind(low))
    return y if case.contiguous else tree_map(strided, y)


def strided(t: Tensor) -> Tensor:
    """The same numbers with gaps between them, and transposed where there are two dims."""
    if t.dim() > 1:
        t = t.mT.contiguous().mT
    return torch.stack([t, torch.zeros_like(t)], -1)[..., 0]


def tree_map_shapes(fn: Callable[[Any], Any], shapes: Any) -> Any:
    """``fn`` of each shape in a tree of shapes; a tuple of integers is a leaf."""
    if isinstance(shapes, torch.Size) or (
        isinstance(shapes, tuple | list) and all(isinstance(n, int) for n in shapes)
    ):
        return fn(tuple(shapes))
    if isinstance(shapes, dict):
        return {key: tree_map_shapes(fn, shape) for key, shape in shapes.items()}
    parts = [tree_map_shapes(fn, shape) for shape in shapes]
    return type(shapes)(*parts) if hasattr(shapes, "_fields") else type(shapes)(parts)
