"""Constraints on the leaves of a parameter tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, TypeVar, cast, final

import torch
from torch import Tensor

from pureopt._errors import ConstraintError, TreeError
from pureopt._tree import (
    check_params,
    tree_flatten,
    tree_items,
    tree_leaves,
    tree_map,
    tree_match,
    tree_paths,
    tree_unflatten,
)
from pureopt.constraints._base import Constraint

T = TypeVar("T")

Spec: TypeAlias = Mapping[str, Any] | Constraint
"""Globs over dotted paths to constraints, possibly nested; or one for every leaf."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Space:
    """A parameter tree seen from its free numbers; made by :func:`constrain`.

    Call :meth:`forward` once per step and hand the tensors to the model. Optimizers see
    ``free`` only; ``static`` travels beside it and is never trained. Inside vmap pass
    ``static`` explicitly, so that each member has its own.

    Attributes:
        free: The tree of ``params`` with each constrained leaf replaced by its free
            value; detached contiguous copies.
        static: ``{path: static}`` of the constrained leaves.
        constraints: ``{path: constraint}`` of the constrained leaves.
        shapes: ``{path: shape}`` of all leaves of ``params``.

    Example:
        >>> import torch, pureopt as po
        >>> params = {"w": torch.eye(3), "b": torch.zeros(3)}
        >>> space = po.constrain(params, {"w": po.constraints.Orthogonal()})
        >>> space
        Space(6 free numbers)
          w: Orthogonal(), (3, 3) from (3,)
          b: free, (3,)
        >>> moved = space.forward({"w": torch.ones(3), "b": torch.ones(3)})
        >>> torch.allclose(moved["w"] @ moved["w"].T, torch.eye(3), atol=1e-6)
        True
    """

    free: Any
    static: dict[str, Any]
    constraints: dict[str, Constraint]
    shapes: dict[str, torch.Size]

    def forward(self, free: T, static: Mapping[str, Any] | None = None) -> T:
        """The parameters of ``free``; unconstrained leaves pass unchanged.

        Args:
            free: A tree like ``self.free``.
            static: A dict like ``self.static``, which is the default.

        Raises:
            ConstraintError: If a free value and its static do not fit together.
            TreeError: If the keys differ; names the first.
        """
        leaves = dict(self._leaves("Space.forward(free=...)", free))
        static = self._static("Space.forward(static=...)", static)
        reference = dict(tree_items(self.free))
        for path, constraint in self.constraints.items():
            shape = reference[path].shape
            self._check_fit("forward(free", path, leaves[path], shape, static[path])
            leaves[path] = constraint.forward(leaves[path], static[path])
        return tree_unflatten(tree_flatten(self.free)[1], leaves.values())

    def right_inverse(self, params: T, static: Mapping[str, Any] | None = None) -> T:
        """The free values of ``params``; NaN where a leaf is off its set or its chart.

        Args:
            params: A tree like the one given to :func:`constrain`.
            static: A dict like ``self.static``, which is the default.

        Raises:
            ConstraintError: If a parameter and its static do not fit together.
            TreeError: If the keys differ; names the first.
        """
        leaves = dict(self._leaves("Space.right_inverse(params=...)", params))
        static = self._static("Space.right_inverse(static=...)", static)
        for path, constraint in self.constraints.items():
            leaf, shape = leaves[path], self.shapes[path]
            self._check_fit("right_inverse(params", path, leaf, shape, static[path])
            leaves[path] = constraint.right_inverse(leaf, static[path])
        return tree_unflatten(tree_flatten(self.free)[1], leaves.values())

    def __repr__(self) -> str:
        """One line per leaf."""
        total = sum(leaf.numel() for leaf in tree_leaves(self.free))
        lines = [f"Space({total} free numbers)"]
        for path, leaf in tree_items(self.free):
            shape = tuple(self.shapes[path])
            told = f"free, {shape}"
            if path in self.constraints:
                told = f"{self.constraints[path]!r}, {shape} from {tuple(leaf.shape)}"
            lines.append(f"  {path}: {told}" if path else f"  {told}")
        return "\n".join(lines)

    def _leaves(self, where: str, tree: Any) -> Iterator[tuple[str, Tensor]]:
        paths = tree_paths(self.free)
        try:
            leaves = tree_match(tree, self.free)
        except (ValueError, TypeError):
            odd = sorted(set(paths) ^ set(tree_paths(tree)))
            got = f"a difference at '{odd[0]}'" if odd else "other containers"
            raise TreeError(where, "have the keys of the space", got) from None
        for path, leaf in zip(paths, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                got = f"`{type(leaf).__name__}` at '{path}'"
                raise TreeError(where, "hold only tensors", got)
            yield path, leaf

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
        self, what: str, path: str, leaf: Tensor, shape: torch.Size, static: Any
    ) -> None:
        """Raise unless leaf and static have the same leading dimensions on top."""
        where = f"Space.{what}{_key(path)}, static)"
        batch = _extra(where, leaf, shape)
        of_static = f"Space.{what}, static{_key(path)})"
        for part, reference in _pairs(of_static, static, self.static[path]):
            extra = _extra(of_static, part, reference.shape)
            if extra != batch:
                raise ConstraintError(
                    where,
                    "be stacked as its static is",
                    f"a leaf stacked over {tuple(batch)} with a static over {tuple(extra)}",
                    "Pass a leaf like that of `space.free` (`forward`) or of `params` "
                    "(`right_inverse`); if it is stacked, pass `static` too, stacked "
                    "alike: `torch.vmap(space.forward)(free, static)`.",
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
        )
    return leaf.shape[:split]


def constrain(params: Any, spec: Spec) -> Space:
    """Put constraints on the leaves of ``params``.

    The one place that reads numbers: it checks once that each leaf is in its set, and
    never moves it there. Call it eagerly, outside vmap and ``torch.compile``.

    Args:
        params: A tree of floating tensors, or one tensor.
        spec: ``{glob: constraint}`` over dotted leaf paths, where ``*`` also crosses
            dots; nested dicts join their keys by dots. The first glob that matches a
            path wins, and unmatched leaves are free. A bare constraint is for every
            leaf.

    Raises:
        ConstraintError: If a leaf is outside its set, with the path, the rule, the
            measured violation and the way out; if its shape does not fit; if a glob
            matches no path.
        TreeError: If a leaf is not a floating tensor.

    Example:
        >>> import torch, pureopt as po
        >>> orthogonal = po.constraints.Orthogonal()
        >>> po.constrain(-torch.eye(2), orthogonal).free
        tensor([0.])
        >>> po.constrain(torch.ones(2, 2), orthogonal)
        Traceback (most recent call last):
        pureopt.ConstraintError: `constrain(params)` must satisfy Orthogonal():
        max|Y^T Y - I| (Y Y^T if wide) <= 2.4e-06, got 2. For the nearest point call
        `Orthogonal().project(params)`, or choose another constraint.
    """
    check_params("constrain(params)", params)
    constraints = _resolve(tree_paths(params), _globs(spec))
    free: list[Tensor] = []
    statics: dict[str, Any] = {}
    for path, leaf in tree_items(params):
        y = leaf.detach()
        if path in constraints:
            _check_inside(path, y, constraints[path])
            statics[path] = tree_map(_own, constraints[path].bind(y))
            y = constraints[path].right_inverse(y, statics[path])
            _check_chart(path, y, constraints[path])
        free.append(_own(y))
    return Space(
        free=tree_unflatten(tree_flatten(params)[1], free),
        static=statics,
        constraints=constraints,
        shapes={path: leaf.shape for path, leaf in tree_items(params)},
    )


def _own(leaf: Tensor) -> Tensor:
    return leaf.detach().clone(memory_format=torch.contiguous_format)


def _key(path: str) -> str:
    return f"['{path}']" if path else ""


def _globs(spec: Spec, prefix: str = "") -> dict[str, Constraint]:
    """The spec as one flat dict, in order."""
    if isinstance(spec, Constraint):
        return {prefix or "*": spec}
    if not isinstance(spec, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConstraintError(
            f"constrain(params, spec{_key(prefix)})",
            "be a constraint or a dict of constraints",
            f"`{getattr(spec, '__name__', type(spec).__name__)}`",
            "Pass an instance: `Orthogonal()`.",
        )
    flat: dict[str, Constraint] = {}
    for key, value in cast("Mapping[object, Any]", spec).items():
        flat |= _globs(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _resolve(paths: list[str], globs: dict[str, Constraint]) -> dict[str, Constraint]:
    """The constraint of each constrained path."""
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in paths):
            near = get_close_matches(glob, paths, n=3, cutoff=0.3) or paths[:3]
            told = ", ".join(f"'{path}'" for path in near)
            raise ConstraintError(
                f"constrain(params, spec['{glob}'])",
                "match the path of a leaf",
                "no match",
                f"Near names: {told}. `*` matches any text, dots included."
                if any(paths)
                else "`params` is one tensor: pass the constraint itself.",
            )
    return {
        path: next(c for glob, c in globs.items() if fnmatchcase(path, glob))
        for path in paths
        if any(fnmatchcase(path, glob) for glob in globs)
    }


def _check_inside(path: str, y: Tensor, constraint: Constraint) -> None:
    where = f"constrain(params{_key(path)})"
    constraint.codomain.require(where, y)
    if y.is_meta or bool(constraint.check(y).all()):
        return
    violation, tolerance = constraint.violation(y), constraint.tolerance(y)
    # NaN sorts above every number: a leaf with NaN reports NaN.
    worst = int((violation - tolerance).flatten().argmax())
    measured = float(violation.flatten()[worst])
    allowed = float(tolerance.flatten()[worst])
    many = f" in the worst of {violation.numel()} matrices" if violation.dim() else ""
    raise ConstraintError(
        where,
        f"satisfy {constraint!r}: {constraint.rule} <= {allowed:.2g}",
        f"{measured:.3g}{many}",
        "The leaf is not finite: look for NaN and inf where it was made."
        if not bool(y.isfinite().all())
        else f"For the nearest point call `{_called(constraint)}.project(params"
        f"{_key(path)})`, or choose another constraint.",
    )


def _check_chart(path: str, x: Tensor, constraint: Constraint) -> None:
    if x.is_meta or bool(x.isfinite().all()):
        return
    raise ConstraintError(
        f"constrain(params{_key(path)})",
        f"lie in a chart of {constraint!r}",
        "a free value that is not finite",
        "Choose another constraint for this leaf.",
    )


def _called(constraint: Constraint) -> str:
    told = repr(constraint)
    return f"({told})" if " " in told else told
