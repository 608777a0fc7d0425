"""Constraints onto the leaves of a parameter tree, checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import escape
from typing import Any, TypeAlias, cast

from pureopt._errors import ConstraintError
from pureopt._tree import (
    check_params,
    tree_flatten,
    tree_items,
    tree_paths,
    tree_unflatten,
)
from pureopt.constraints._base import Constraint
from pureopt.constraints._door import enter, own, require_start
from pureopt.constraints._product import Product
from pureopt.constraints._space import Space, key

Spec: TypeAlias = Mapping[str, Any] | Constraint
"""Globs over dotted paths to constraints, possibly nested; or one for every leaf."""


def constrain(params: Any, spec: Spec) -> Space:
    """Put constraints on the leaves of ``params``.

    The one place that reads numbers: it checks once that each leaf is in its set, and
    never moves it there. Call it eagerly, outside vmap and ``torch.compile``.

    Args:
        params: A tree of floating tensors, or one tensor.
        spec: ``{glob: constraint}`` over dotted leaf paths, where ``*`` also crosses
            dots; nested dicts join their keys by dots. The first glob that matches a
            path wins, and unmatched leaves are free. A bare constraint is for every
            leaf; a :class:`~pureopt.constraints.Product` names the leaves of its parts.

    Raises:
        ConstraintError: If a leaf is outside its set, with the path, the rule, the
            measured violation and the way out; if its shape does not fit; if its
            constraint takes structured values (`Cayley()`), with the chain to write; if
            a glob matches no path.
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
    paths = tree_paths(params)
    constraints = _resolve(paths, _globs(spec))
    everywhere = isinstance(spec, Constraint) and len(constraints) > 1
    hint = _ONLY_SOME if everywhere and not isinstance(spec, Product) else ""
    free: list[Any] = []
    statics: dict[str, Any] = {}
    for path, leaf in tree_items(params):
        y = leaf.detach()
        if path in constraints:
            where, name = f"constrain(params{key(path)})", f"params{key(path)}"
            require_start(where, constraints[path])
            x, statics[path] = enter(where, name, y, constraints[path], hint)
            free.append(x)
        else:
            free.append(own(y))
    structure = tree_flatten(params)[1]
    return Space(
        free=tree_unflatten(structure, free),
        static=statics,
        constraints=constraints,
        shapes={path: leaf.shape for path, leaf in tree_items(params)},
        paths=tree_unflatten(structure, paths),
    )


_ONLY_SOME = (
    "To constrain only some leaves, pass a dict of globs: `{'*weight': constraint}`."
)


def _globs(spec: Spec, prefix: str = "") -> dict[str, Constraint]:
    """The spec as one flat dict, in order."""
    if isinstance(spec, Product):
        prefix = f"{prefix}." if prefix else ""
        return {prefix + escape(path): part for path, part in tree_items(spec.parts)}
    if isinstance(spec, Constraint):
        return {prefix or "*": spec}
    if not isinstance(spec, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConstraintError(
            f"constrain(params, spec{key(prefix)})",
            "be a constraint or a dict of constraints",
            f"`{getattr(spec, '__name__', type(spec).__name__)}`",
            "Pass an instance: `Orthogonal()`.",
        )
    flat: dict[str, Constraint] = {}
    for name, value in cast("Mapping[object, Any]", spec).items():
        flat |= _globs(value, f"{prefix}.{name}" if prefix else str(name))
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
