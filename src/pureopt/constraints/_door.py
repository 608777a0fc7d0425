"""The eager door: the one place that reads numbers and raises for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt._tree import tree_leaves, tree_map
from pureopt.constraints._base import Constraint

_THINGS = {0: "numbers", 1: "vectors", 2: "matrices"}


def enter(
    where: str, name: str, y: Tensor, constraint: Constraint, hint: str = ""
) -> Any:
    """The free value and the static data of ``y``: ``(x, static)``, copies of their own.

    Args:
        where: How the value was passed, for messages.
        name: What the caller calls the value.
        y: A value that must be in the set.
        constraint: The constraint.
        hint: What else to say about a shape that does not fit.

    Raises:
        ConstraintError: If ``y`` is not in the set, with the rule, the measured
            violation and the way out.
    """
    _require_inside(where, name, y, constraint, hint)
    static = tree_map(own, constraint.bind(y))
    x = constraint.right_inverse(y, static)
    if not all(part.is_meta or bool(part.isfinite().all()) for part in tree_leaves(x)):
        raise ConstraintError(
            where,
            f"lie in a chart of {constraint!r}",
            "a free value that is not finite",
            "Choose another constraint for it.",
        )
    return tree_map(own, x), static


def require_start(where: str, constraint: Constraint) -> None:
    """Raise unless any free value will do, so that an optimizer may move it.

    Args:
        where: How the value was passed, for messages.
        constraint: The constraint.

    Raises:
        ConstraintError: Names the chain to write.
    """
    domain = constraint.domain
    if domain.made_by:
        raise ConstraintError(
            where,
            "be constrained from free numbers",
            f"`{constraint!r}`, which takes {domain.words}",
            f"Write `{domain.made_by} >> {constraint!r}`.",
        )


def own(leaf: Tensor) -> Tensor:
    """A contiguous copy without history."""
    return leaf.detach().clone(memory_format=torch.contiguous_format)


def _require_inside(
    where: str, name: str, y: Tensor, constraint: Constraint, hint: str
) -> None:
    try:
        constraint.codomain.require(where, y)
        inside = constraint.check(y)
    except ConstraintError as error:
        # What only the constraint knows of a shape it says without the path.
        _, rule, got, *way_out = error.args
        told = " ".join(filter(None, [*way_out, hint]))
        raise ConstraintError(where, rule, got, told) from None
    if y.is_meta or bool(inside.all()):
        return
    violation, tolerance = constraint.violation(y), constraint.tolerance(y)
    # NaN sorts above every number: a value with NaN reports NaN.
    worst = int((violation - tolerance).flatten().argmax())
    measured = float(violation.flatten()[worst])
    allowed = float(tolerance.flatten()[worst])
    things = _THINGS.get(constraint.codomain.event_dims, "elements")
    many = f" in the worst of {violation.numel()} {things}" if violation.dim() else ""
    if measured <= allowed:
        many += ", but what it would be made from is outside the set of a link before"
    raise ConstraintError(
        where,
        f"satisfy {constraint!r}: {constraint.rule} <= {allowed:.2g}",
        f"{measured:.3g}{many}",
        f"{_way_in(name, y, constraint)} {_matricize(y, constraint)}".rstrip(),
    )


def _matricize(y: Tensor, constraint: Constraint) -> str:
    """For the weight of a convolution: what its dimensions were taken for."""
    if constraint.codomain.event_dims != 2 or y.dim() < 4:  # noqa: PLR2004
        return ""
    return (
        "Leading dimensions are a batch; for one matrix of all of them write "
        f"`Matricized({constraint!r}, rows=-{y.dim()}, cols=(-{y.dim() - 1}, ..., -1))`."
    )


def _way_in(name: str, y: Tensor, constraint: Constraint) -> str:
    if not bool(y.isfinite().all()):
        return "It is not finite: look for NaN and inf where it was made."
    if not constraint.offers("project"):
        return "Begin with a value of the set, or choose another constraint."
    told = repr(constraint)
    told = f"({told})" if " >> " in told else told
    return (
        f"For the nearest point call `{told}.project({name})`, or choose another "
        "constraint."
    )
