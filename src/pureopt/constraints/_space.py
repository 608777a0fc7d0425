"""A parameter tree with constraints on its leaves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from pureopt._errors import ConstraintError, TreeError
from pureopt._tree import (
    tree_flatten,
    tree_items,
    tree_leaves,
    tree_map,
    tree_match,
    tree_paths,
    tree_select,
    tree_unflatten,
)
from pureopt.constraints._base import Constraint
from pureopt.constraints._transport import Transport

T = TypeVar("T")


@final
@dataclass(frozen=True, eq=False, repr=False)
class Space:
    """A parameter tree seen from its free numbers; made by :func:`constrain`.

    Call :meth:`forward` once per step and hand the tensors to the model. Optimizers see
    ``free`` only; ``static`` travels beside it and is never trained. Inside vmap pass
    ``static`` explicitly, so that each member has its own.

    Attributes:
        free: The tree of ``params`` with each constrained leaf replaced by its free
            value, a tensor or a tree of tensors; detached contiguous copies.
        static: ``{path: static}`` of the constrained leaves.
        constraints: ``{path: constraint}`` of the constrained leaves.
        shapes: ``{path: shape}`` of all leaves of ``params``.
        paths: The tree of ``params`` with the path of each leaf in its place.

    Example:
        >>> import torch, pureopt as po
        >>> params = {"w": torch.eye(3), "b": torch.zeros(3)}
        >>> space = po.constrain(params, {"w": po.constraints.Orthogonal()})
        >>> space
        Space(6 free numbers)
        path  shape   dim  constraint
        w     (3, 3)  3    Orthogonal(), static (signs: int8 (3,))
        b     (3,)    3    free
        >>> moved = space.forward({"w": torch.ones(3), "b": torch.ones(3)})
        >>> torch.allclose(moved["w"] @ moved["w"].T, torch.eye(3), atol=1e-6)
        True
    """

    free: Any
    static: dict[str, Any]
    constraints: dict[str, Constraint]
    shapes: dict[str, torch.Size]
    paths: Any

    def forward(self, free: T, static: Mapping[str, Any] | None = None) -> T:
        """The parameters of ``free``; unconstrained leaves pass unchanged.

        Args:
            free: A tree like ``self.free``.
            static: A dict like ``self.static``, which is the default.

        Raises:
            ConstraintError: If a free value and its static do not fit together.
            TreeError: If the keys differ; names the first.
        """
        values, static = self._checked_free("forward", free, static)
        for path, constraint in self.constraints.items():
            values[path] = constraint.forward(values[path], static[path])
        return self._tree(values)

    def right_inverse(self, params: T, static: Mapping[str, Any] | None = None) -> T:
        """The free values of ``params``; NaN where a leaf is off its set or its chart.

        Args:
            params: A tree like the one given to :func:`constrain`.
            static: A dict like ``self.static``, which is the default.

        Raises:
            ConstraintError: If a parameter and its static do not fit together.
            TreeError: If the keys differ; names the first.
        """
        values = self._values("Space.right_inverse(params=...)", params, self.paths)
        static = self._static("Space.right_inverse(static=...)", static)
        for path, constraint in self.constraints.items():
            where = f"right_inverse(params{key(path)}"
            parts = [(where, values[path], self.shapes[path])]
            self._check_fit("right_inverse(params", path, parts, static[path])
            values[path] = constraint.right_inverse(values[path], static[path])
        return self._tree(values)

    def rebind(
        self, free: T, static: Mapping[str, Any] | None = None
    ) -> tuple[T, dict[str, Any], Transport]:
        """The same parameters in charts around them, and what the change does.

        Each constraint moves its chart to its value (:meth:`Constraint.rebind
        <pureopt.constraints.Constraint.rebind>`). Leaves whose static data hold no
        numbers have one chart only and stay, and so does a leaf with an element that no
        chart holds: off its set, or not finite.

        Args:
            free: A tree like ``self.free``.
            static: A dict like ``self.static``, which is the default.

        Returns:
            Free values, static data, and a :class:`~pureopt.constraints.Transport` for
            gradients, moments and other points. It is a function, not data: inside
            ``vmap``, apply it there.

        Raises:
            ConstraintError: If a free value and its static do not fit together.
            TreeError: If the keys differ; names the first.
        """
        values, old = self._checked_free("rebind", free, static)
        new: dict[str, Any] = {**old}
        moved: dict[str, Tensor] = {}
        for path, constraint in self.constraints.items():
            if not any(part.numel() for part in tree_leaves(old[path])):
                continue
            chart = constraint.rebind(values[path], old[path])
            before = (values[path], old[path])
            inside = _every(torch.isfinite, chart[0])
            chosen = tree_select(inside, chart, before)
            # The strides of `space.static`, or a compiled step would compile anew.
            values[path], new[path] = tree_map(torch.Tensor.contiguous, chosen)
            moved[path] = inside & ~_every(torch.eq, values[path], before[0])
        rebound = self._tree(values)
        transport = Transport(
            self.constraints, self.paths, (free, old), (rebound, new), moved
        )
        return rebound, new, transport

    def __repr__(self) -> str:
        """One line per leaf."""
        total = sum(leaf.numel() for leaf in tree_leaves(self.free))
        rows = [("path", "shape", "dim", "constraint")]
        for path, x in zip(tree_leaves(self.paths), self._free_values(), strict=True):
            shape = self.shapes[path]
            c, numbers = self.constraints.get(path), _numel(x)
            dim, told = numbers, "free"
            if c is not None:
                dim = _dim(c, shape)
                told = _short(repr(c)) + _told_static(self.static[path])
            of = f" of {numbers}" if dim != numbers else ""
            rows.append((path, str(tuple(shape)), f"{dim}{of}", told))
        columns = list(zip(*rows, strict=True))
        if len(rows) == 2 and not rows[1][0]:  # noqa: PLR2004  # a bare tensor
            columns = columns[1:]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(map(str.ljust, row, widths)).rstrip()
            for row in zip(*columns, strict=True)
        ]
        return "\n".join([f"Space({total} free numbers)", *lines])

    def _free_values(self) -> list[Any]:
        return tree_match(self.free, self.paths)

    def _tree(self, values: Mapping[str, Any]) -> Any:
        return tree_unflatten(tree_flatten(self.paths)[1], values.values())

    def _checked_free(
        self, method: str, free: Any, static: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """The free value of each path, and the statics, once they fit together."""
        values = self._values(f"Space.{method}(free=...)", free, self.free)
        static = self._static(f"Space.{method}(static=...)", static)
        references = dict(zip(values, self._free_values(), strict=True))
        for path in self.constraints:
            reference = tree_items(references[path])
            leaves = tree_leaves(values[path])
            parts = [
                (f"{method}(free{key('.'.join(filter(None, (path, sub))))}", x, r.shape)
                for (sub, r), x in zip(reference, leaves, strict=True)
            ]
            self._check_fit(f"{method}(free", path, parts, static[path])
        return values, static

    def _values(self, where: str, tree: Any, like: Any) -> dict[str, Any]:
        """The part of ``tree`` at each path, in the order of ``like``."""
        paths = tree_paths(like)
        try:
            leaves = tree_match(tree, like)
        except (ValueError, TypeError):
            odd = sorted(set(paths) ^ set(tree_paths(tree)))
            got = f"a difference at '{odd[0]}'" if odd else "other containers"
            raise TreeError(where, "have the keys of the space", got) from None
        for path, leaf in zip(paths, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                got = f"`{type(leaf).__name__}` at '{path}'"
                raise TreeError(where, "hold only tensors", got)
        ordered = tree_unflatten(tree_flatten(like)[1], leaves)
        values = tree_match(ordered, self.paths)
        return dict(zip(tree_leaves(self.paths), values, strict=True))

    def _static(
        self, where: str, static: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        if static is None:
            return self.static
        if set(static) != set(self.static):
            odd = min(set(static) ^ set(self.static))
            raise TreeError(
                where, "have the keys of `space.static`", f"a difference at '{odd}'"
            )
        return static

    def _check_fit(
        self,
        what: str,
        path: str,
        parts: list[tuple[str, Tensor, torch.Size]],
        static: Any,
    ) -> None:
        """Raise unless all parts and the static have the same leading dimensions on top."""
        batches: list[tuple[str, torch.Size]] = []
        for name, leaf, shape in parts:
            where = f"Space.{name}, static)"
            batches.append((where, _extra(where, leaf, shape)))
        of_static = f"Space.{what}, static{key(path)})"
        extras = [
            _extra(of_static, part, reference.shape)
            for part, reference in _pairs(of_static, static, self.static[path])
        ]
        for where, batch in batches:
            for extra in [*extras, batches[0][1]]:
                if extra != batch:
                    _raise_unstacked(where, batch, extra)


def _raise_unstacked(where: str, batch: torch.Size, extra: torch.Size) -> None:
    raise ConstraintError(
        where,
        "be stacked as its static is",
        f"a leaf stacked over {tuple(batch)} with a static over {tuple(extra)}",
        "Pass a leaf like that of `space.free` (`forward`) or of `params` "
        "(`right_inverse`); if it is stacked, pass `static` too, stacked alike: "
        "`torch.vmap(space.forward)(free, static)`.",
    )


def _pairs(where: str, static: Any, reference: Any) -> list[tuple[Tensor, Tensor]]:
    try:
        parts = tree_match(static, reference)
    except (ValueError, TypeError):
        raise ConstraintError(
            where,
            "come with a static of the structure of `space.static`",
            f"`{type(static).__name__}`",
            "Take it from `Constraint.bind` or `space.static`.",
        ) from None
    return list(zip(parts, tree_leaves(reference), strict=True))


def _extra(where: str, leaf: Tensor, shape: torch.Size) -> torch.Size:
    """The leading dimensions that ``leaf`` has on top of ``shape``."""
    split = leaf.dim() - len(shape)
    if split < 0 or leaf.shape[split:] != shape:
        raise ConstraintError(
            where,
            f"have shape {tuple(shape)}, or end in it",
            str(tuple(leaf.shape)),
            "Inside vmap, use the space of one member."
            if shape[len(shape) - leaf.dim() :] == leaf.shape
            else "",
        )
    return leaf.shape[:split]


def key(path: str) -> str:
    """A path as a subscript; a bare tensor has none."""
    return f"['{path}']" if path else ""


def _every(test: Callable[..., Tensor], *trees: Any) -> Tensor:
    """Whether a test holds for all numbers of a tree."""
    rows = zip(*map(tree_leaves, trees), strict=True)
    return torch.stack([test(*row).all() for row in rows]).all()


def _numel(x: Any) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(x))


def _dim(constraint: Constraint, shape: torch.Size) -> int:
    """The dimension of the set of all elements of a leaf."""
    split = len(shape) - constraint.codomain.event_dims
    return math.prod(shape[:split]) * constraint.dim(shape[split:])


def _short(told: str) -> str:
    """One line, whatever the configuration holds."""
    return textwrap.shorten(told, 72, placeholder=" ...")


def _told_static(static: Any) -> str:
    """What data a chart holds, in short; shape carriers are left out."""
    parts = [
        f"{name}: {kind}" if name else kind
        for name, leaf in tree_items(static)
        if leaf.numel()
        for kind in [f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"]
    ]
    return f", static ({', '.join(parts)})" if parts else ""
