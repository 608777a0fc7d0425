"""What a change of charts does to gradients, tangents and points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.func import vjp

from pureopt._tree import (
    check_like,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_match,
    tree_select,
    tree_unflatten,
)
from pureopt.constraints._base import Constraint

T = TypeVar("T")

_SLACK = 10.0
"""A gradient may be off by so many square roots of eps, relative to its norm."""
_STEPS = 4
"""Steps of least squares for a redundant map: one does for each distinct scale."""


@final
@dataclass(frozen=True, eq=False)
class Transport:
    r"""The change of charts of :meth:`pureopt.Space.rebind`, for what travels beside.

    With :math:`f` the map of a chart, :math:`r` its right inverse and
    :math:`\varphi = r_{\text{new}} \circ f_{\text{old}}` the change of free values,

    .. math:: g_{\text{new}} = (D \varphi^{-1})^T g_{\text{old}}, \qquad
        v_{\text{new}} = D \varphi\, v_{\text{old}}, \qquad
        x_{\text{new}} = \varphi(x_{\text{old}})

    for gradients and their averages (a call), tangents (:meth:`tangents`) and other
    points (:meth:`points`): a transported gradient is the gradient that would have been
    taken in the new chart. (If a chart holds only one basis of each subspace: of a
    function of the subspace.) Each takes a tree like ``space.free`` and returns one;
    leaves whose free value did not change pass unchanged. A gradient that cannot be moved
    becomes zero, as after a fresh start, in the whole leaf: where the old chart does not
    lead back to the old free value (beyond the radius; where singular values have
    changed places), or the right inverse is not differentiable there.

    Where a map is redundant, :math:`r_{\text{old}}(f_{\text{old}}(x))` may be another
    free value than :math:`x`. Then the gradient there is needed first, the solution of
    :math:`D(r_{\text{old}} \circ f_{\text{old}})^T g = g_{\text{old}}`, found by four
    steps of conjugate gradients for least squares: enough where moving along the null
    directions has scaled by no more than four factors; else it becomes zero too.

    Attributes:
        constraints: ``{path: constraint}`` of the constrained leaves.
        paths: The tree of the parameters with the path of each leaf in its place.
        old: The free values and the static data before.
        new: The free values and the static data after.
        moved: ``{path: bool tensor}``, whether the free value of that leaf changed; a
            path without data that depends on the point is not in it.

    References:
        Lezcano-Casado (2019) moves the base of its maps, and leaves the moments.

    Example:
        A gradient taken in the old chart is that of the new one:

        >>> import torch, pureopt as po
        >>> from pureopt.constraints import Orthogonal
        >>> space = po.constrain(torch.eye(3, dtype=torch.float64), Orthogonal())
        >>> def loss(free, static):
        ...     return space.forward(free, static)[0, 1].exp()
        >>> old = 10 * torch.ones_like(space.free)
        >>> new, static, transport = space.rebind(old)
        >>> before = torch.func.grad(loss)(old, space.static)
        >>> after = torch.func.grad(loss)(new, static)
        >>> torch.allclose(transport(before), after), bool(after.norm() > before.norm())
        (True, True)
    """

    constraints: Mapping[str, Constraint]
    paths: Any
    old: tuple[Any, Mapping[str, Any]]
    new: tuple[Any, Mapping[str, Any]]
    moved: Mapping[str, Tensor]

    def __call__(self, grads: T) -> T:
        """Gradients, or averages of gradients, in the new chart.

        Args:
            grads: A tree like the free values.

        Raises:
            TreeError: If its structure or a shape differs.
        """

        def move(c: Constraint, old: _Chart, new: _Chart, g: Any) -> Any:
            a, adjoint = _linear(_change(c, old, old), old.point)
            z = g if c.bijective else _least_squares(a, adjoint, g)
            moved = _linear(_change(c, new, old), new.point)[0](z)
            # What was moved is the gradient, seen from where r leads.
            return _certified(moved, a(z), g)

        return self._map("gradients", move, grads)

    def tangents(self, tangents: T) -> T:
        """Directions in which free values move, in the new chart; zero as gradients are.

        Args:
            tangents: A tree like the free values.

        Raises:
            TreeError: If its structure or a shape differs.
        """

        def move(c: Constraint, old: _Chart, new: _Chart, v: Any) -> Any:
            moved = _linear(_change(c, old, new), old.point)[1](v)
            back = _linear(_change(c, new, old), new.point)[1](moved)
            return _certified(
                moved, back, _linear(_change(c, old, old), old.point)[1](v)
            )

        return self._map("tangents", move, tangents)

    def points(self, points: T) -> T:
        """Other free values; NaN where one has no place in the new chart.

        Args:
            points: A tree like the free values.

        Raises:
            TreeError: If its structure or a shape differs.
        """

        def move(c: Constraint, old: _Chart, new: _Chart, x: Any) -> Any:
            return _change(c, old, new)(x)

        return self._map("points", move, points)

    def select(self, moved: T, kept: T) -> T:
        """``moved`` where the free value of a leaf changed, else ``kept``.

        Args:
            moved: A tree like the free values.
            kept: A tree like the free values.
        """
        chosen: list[Any] = []
        pairs = zip(
            tree_leaves(self.paths),
            tree_match(moved, self.paths),
            tree_match(kept, self.paths),
            strict=True,
        )
        for path, yes, no in pairs:
            mask = self.moved.get(path)
            chosen.append(no if mask is None else tree_select(mask, yes, no))
        return tree_unflatten(tree_flatten(self.paths)[1], chosen)

    def _map(self, what: str, move: Callable[..., Any], tree: T) -> T:
        """``move`` over the leaves that moved, in the dtype of the leaf."""
        free = self.new[0]
        check_like(f"transport({what})", tree, free, "free")
        tree = tree_map(lambda _, t: t, free, tree)  # in the order of the free values
        out = tree_match(tree, self.paths)
        charts = [
            [_Chart(x, static.get(path)) for path, x in self._items(points)]
            for points, static in (self.old, self.new)
        ]
        for i, path in enumerate(tree_leaves(self.paths)):
            if path not in self.moved:
                continue
            old, new = charts[0][i], charts[1][i]
            value = tree_map(lambda x, t: t.to(x.dtype), new.point, out[i])
            value = move(self.constraints[path], old, new, value)
            value = tree_map(lambda v, t: v.to(t.dtype), value, out[i])
            out[i] = tree_select(self.moved[path], value, out[i])
        return tree_unflatten(tree_flatten(self.paths)[1], out)

    def _items(self, tree: Any) -> list[tuple[str, Any]]:
        return list(
            zip(tree_leaves(self.paths), tree_match(tree, self.paths), strict=True)
        )


@dataclass(frozen=True, eq=False)
class _Chart:
    """A free value and its static data."""

    point: Any
    static: Any


def _change(c: Constraint, source: _Chart, target: _Chart) -> Callable[[Any], Any]:
    """The change of free values from one chart to another."""
    return lambda x: c.right_inverse(c.forward(x, source.static), target.static)


def _linear(
    fn: Callable[[Any], Any], x: Any
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The transposed derivative of ``fn`` at ``x``, and the derivative."""
    pull = vjp(fn, x)[1]

    def transposed(z: Any) -> Any:
        return pull(z)[0]

    # The transpose of the transpose, which is linear, so that any point will do: some
    # right inverses call operations that have no forward mode.
    zero = tree_map(torch.zeros_like, x)
    return transposed, lambda v: vjp(transposed, zero)[1](v)[0]


def _least_squares(
    a: Callable[[Any], Any], adjoint: Callable[[Any], Any], b: Any
) -> Any:
    """A ``z`` with the least ``|A z - b|``: CGLS from ``b``, without reading numbers.

    References:
        Hestenes, Stiefel (1952), section 10.
    """
    z = b
    r = tree_map(torch.sub, b, a(z))
    s = p = adjoint(r)
    gamma = _dot(s, s)
    for _ in range(_STEPS):
        q = a(p)
        alpha = _ratio(gamma, _dot(q, q))
        z = tree_map(lambda z, p, k=alpha: z + k * p, z, p)
        r = tree_map(lambda r, q, k=alpha: r - k * q, r, q)
        s = adjoint(r)
        gamma, before = _dot(s, s), gamma
        beta = _ratio(gamma, before)
        p = tree_map(lambda s, p, k=beta: s + k * p, s, p)
    return z


def _dot(a: Any, b: Any) -> Tensor:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return torch.stack([(x * y).sum() for x, y in pairs]).sum()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """``a / b``, zero where ``b`` is: there nothing is left to do."""
    some = b > 0
    return torch.where(some, a / torch.where(some, b, 1.0), 0.0)


def _certified(moved: T, got: T, want: T) -> T:
    """``moved`` where ``got`` is ``want``, else zero."""
    r = tree_map(torch.sub, got, want)
    eps = max(torch.finfo(x.dtype).eps for x in tree_leaves(want))
    exact = _dot(r, r) <= _SLACK**2 * eps * _dot(want, want)
    return _finite(tree_select(exact, moved, tree_map(torch.zeros_like, moved)))


def _finite(tree: T) -> T:
    return tree_map(lambda t: torch.where(t.isfinite(), t, 0.0), tree)
