"""The invariants of a constraint on its own: sets, inverses, dimensions, derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import jacfwd, jacrev

from pureopt import random
from pureopt._tree import ravel, tree_leaves, tree_map
from pureopt.constraints import Constraint
from pureopt.constraints._domains import INVERTIBLE
from pureopt.constraints._numeric import max_abs
from pureopt.testing._cases import Measured, Probe, holds, measured

# Derivatives by differences: the step, and how much of the largest number they may miss.
# The truncation is h^4 times a fifth derivative, the rounding eps / h: 1e-12 for a map
# of order one. The rest is for maps that are steep where they were drawn.
_H = 1e-3
_SLOPE = 1e-6
# Up to so many free numbers a Jacobian costs next to nothing.
_FEW = 64


def feasibility(probe: Probe) -> Iterator[Measured]:
    """``check(forward(x))`` for finite ``x``, and of what is projected; NaN stays NaN.

    What is outside has no free value.
    """
    c, x = probe.constraint, probe.drawn()
    y = c.forward(x, probe.static)
    yield _inside("check(forward(x))", c, y)
    yield _inside("check(y)", c, probe.y)
    if not ravel(x).numel():
        return
    bad = c.forward(tree_map(lambda t: torch.full_like(t, torch.nan), x), probe.static)
    yield holds("forward(NaN) is NaN", bool(ravel(bad).isnan().any()))
    nothing = tree_map(lambda t: torch.full_like(t, torch.nan), probe.y)
    yield holds("check(NaN) is False", not bool(c.check(nothing).any()))
    if c.offers("project"):
        off = tree_map(torch.add, probe.y, _noise(probe))
        yield _inside("check(project(y + noise))", c, c.project(off))
        yield _distance("|project(y) - y|", c, probe.x, c.project(probe.y), probe.y)
    for outside in probe.outside:
        far = tree_map(lambda t: t.to(probe.case.dtype), outside)
        yield holds("check(outside) is False", not bool(c.check(far).all()))
        inverse = ravel(c.right_inverse(far, c.bind(far)))
        yield holds("right_inverse(outside) is NaN", bool(inverse.isnan().any()))


def round_trip(probe: Probe) -> Iterator[Measured]:
    """``forward(right_inverse(y)) == y``, and the result is in the set."""
    c, y = probe.constraint, probe.y
    again = c.forward(probe.x, probe.static)
    yield _distance("|forward(right_inverse(y)) - y|", c, probe.x, again, y)
    yield _inside("check(forward(right_inverse(y)))", c, again)


def inverse(probe: Probe) -> Iterator[Measured]:
    """``right_inverse(forward(x)) == x`` for bijections; else idempotent."""
    c, static = probe.constraint, probe.static
    # Where the map is not yet flat: near the radius no digits of x survive it.
    x = probe.drawn(min(probe.case.scale, 1.0))
    y = c.forward(x, static)
    back = c.right_inverse(y, static)
    yield _distance(
        "|forward(right_inverse(forward(x))) - forward(x)|",
        c, back, c.forward(back, static), y,
    )  # fmt: skip
    again = c.right_inverse(c.forward(back, static), static)
    start, what = (
        (x, "|right_inverse(forward(x)) - x|")
        if c.bijective
        else (back, "|r(r(x)) - r(x)|, r = right_inverse . forward")
    )
    if probe.case.batch or not 0 < _vector(probe, x).numel() <= _FEW:
        return
    there = back if c.bijective else again
    # What rounding does to y comes back multiplied by the inverse of the Jacobian.
    f, _ = probe.vector_map()
    point = _vector(probe, start)
    singular = torch.linalg.svdvals(jacfwd(f)(point).double())
    kept = singular[: c.dim(probe.case.shape)]
    small = float(kept.min()) if len(kept) else 1.0
    scale = float(c.rounding(start, y).max()) / max(small, 1e-300)
    size = float(ravel(start).abs().max())
    eps = torch.finfo(ravel(x).dtype).eps
    worst = float((ravel(there) - ravel(start)).abs().max())
    yield measured(what, worst, 4 * scale + 8 * eps * size)


def dimension(probe: Probe) -> Iterator[Measured]:
    """The rank of the Jacobian is ``dim``; no null directions if ``bijective``."""
    c = probe.constraint
    f, v = probe.vector_map()
    dim = c.dim(probe.case.shape)
    yield holds(f"dim = {dim} <= {v.numel()} free numbers", dim <= v.numel())
    if c.bijective:
        yield measured("free numbers - dim", v.numel() - dim, 0)
    if not v.numel():
        return
    singular = torch.linalg.svdvals(jacfwd(f)(v))
    # Ranks of well drawn points: singular values down to the conditioning of the draw.
    rank = int((singular > 1e-12 * singular.max()).sum())
    yield measured("|rank of the Jacobian - dim|", abs(rank - dim), 0)


def derivatives(probe: Probe) -> Iterator[Measured]:
    """Both modes and all four second-order nestings agree with differences."""
    f, v = probe.vector_map()
    if not v.numel():
        return
    for mode in (jacfwd, jacrev):
        slopes = mode(f)(torch.zeros_like(v))
        yield holds(f"{mode.__name__} at zero is finite", bool(slopes.isfinite().all()))
    want = _slopes(f, v)
    for mode in (jacfwd, jacrev):
        name = f"|{mode.__name__} - differences|"
        yield _relative(name, mode(f)(v), want)
    want = _slopes(jacrev(f), v)
    for outer, inner in itertools.product((jacfwd, jacrev), repeat=2):
        name = f"|{outer.__name__}({inner.__name__}) - differences|"
        yield _relative(name, outer(inner(f))(v), want)


def volume(probe: Probe) -> Iterator[Measured]:
    """``log_abs_det`` is that of the Jacobian."""
    c = probe.constraint
    if not c.offers("log_abs_det"):
        return
    own = c.log_abs_det(probe.x, probe.static).sum()
    if probe.packed is not None:
        first = probe.packed.bind(probe.x)
        v = probe.packed.right_inverse(probe.x, first)
        own = own + probe.packed.log_abs_det(v, first)
    f, v = probe.vector_map()
    want = own.new_zeros(())
    if v.numel():
        want = torch.linalg.svdvals(jacfwd(f)(v)).log().sum()
    size = max(1.0, abs(float(want)))
    yield measured("|log_abs_det - log det J|", abs(float(own - want)), 1e-8 * size)


def orientation(probe: Probe) -> Iterator[Measured]:
    """The sign of the determinant never changes in a chart, where there is one."""
    c = probe.constraint
    if not INVERTIBLE.contains(c.codomain):
        return
    sign = torch.linalg.slogdet(probe.y.double()).sign
    for salt in range(3):
        y = c.forward(probe.drawn(salt=salt), probe.static)
        other = torch.linalg.slogdet(y.double()).sign
        yield holds("the sign of det stays", bool((other == sign).all()))


def _noise(probe: Probe) -> Any:
    """Normal numbers in the shapes of ``y``."""
    key = random.fold_in(random.key(probe.case.seed), torch.tensor(2, device="cpu"))
    keys = iter(random.split(key, len(tree_leaves(probe.y))))
    return tree_map(lambda t: random.normal(next(keys), t.shape).to(t), probe.y)


def _inside(what: str, c: Constraint, y: Any) -> Measured:
    """``check``, told by the element that is farthest outside."""
    truth = bool(c.check(y).all())
    violation, tolerance = c.violation(y), c.tolerance(y)
    if not violation.numel():
        return Measured(what, 0.0, 0.0, truth)
    worst = int((violation - tolerance).flatten().argmax())
    return Measured(
        what,
        float(violation.flatten()[worst]),
        float(tolerance.flatten()[worst]),
        truth,
    )


def _distance(what: str, c: Constraint, x: Any, got: Any, want: Any) -> Measured:
    """The distance of two values against :meth:`Constraint.rounding`."""
    tolerance = c.rounding(x, want)
    gaps = [
        max_abs(a - b, a.dim() - tolerance.dim())
        for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True)
    ]
    gap = torch.stack([g.double() for g in gaps]).amax(0)
    if not gap.numel():
        return Measured(what, 0.0, 0.0, ok=True)
    worst = int((gap - tolerance).flatten().argmax())
    bound = tolerance.double().expand(gap.shape).flatten()
    return measured(what, float(gap.flatten()[worst]), float(bound[worst]))


def _vector(probe: Probe, x: Any) -> Tensor:
    if probe.packed is not None:
        x = probe.packed.right_inverse(x, probe.packed.bind(x))
    return ravel(x)


def _slopes(f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """The Jacobian by central differences of fourth order, in the last dimension."""
    h = _H * max(1.0, float(v.abs().max()))
    columns: list[Tensor] = []
    for e in torch.eye(len(v), dtype=v.dtype, device=v.device):
        a, b, c, d = (f(v + k * h * e) for k in (-2, -1, 1, 2))
        columns.append((a - 8 * b + 8 * c - d) / (12 * h))
    return torch.stack(columns, -1)


def _relative(what: str, got: Tensor, want: Tensor) -> Measured:
    size = max(1.0, float(want.abs().max()))
    return measured(what, float((got - want).abs().max()), _SLOPE * size)
