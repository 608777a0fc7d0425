"""The Jacobian of a function between trees, as arrays, column by column or row by row.

Both directions give the tree of outputs of the tree of inputs: the array of an output
and an input has the shape of the output followed by that of the input, and the wider of
their dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from pureopt._tree import (
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
    unravel,
)

Pullback = Callable[[Any], Any]


def size(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.numel() for leaf in tree_leaves(tree))


def unit_vectors(like: Any) -> Tensor:
    """The identity of the size of ``like``, in the widest of its dtypes."""
    n = size(like)
    dtype = tree_leaves(like)[0].dtype
    for leaf in tree_leaves(like):
        dtype = torch.promote_types(dtype, leaf.dtype)
    return torch.eye(n, dtype=dtype, device=tree_leaves(like)[0].device)


def value_and_pullback(f: Callable[[Any], Any], x: Any) -> tuple[Any, Pullback]:
    """``f(x)``, and the transposed derivative: from a tree like ``f(x)`` to one like ``x``."""
    evaluated: Any = vjp(f, x)
    value, pullback = evaluated
    return value, lambda e: pullback(e)[0]


def value_and_slope(f: Callable[[Any], Any], x: Any, v: Any) -> tuple[Any, Any]:
    """``f(x)``, and the derivative along ``v``."""
    # Forward mode refuses a point whose entries share memory, such as `x.expand(3)`.
    evaluated: Any = jvp(f, (tree_map(Tensor.contiguous, x),), (v,))
    return evaluated


def value_slope_and_pullback(
    f: Callable[[Any], Any], x: Any, v: Any
) -> tuple[Any, Any, Pullback]:
    """``f(x)``, the derivative along ``v``, and the transposed derivative.

    From one evaluation, hence of one function where ``f`` draws random numbers.
    """
    both = lambda x: value_and_slope(f, x, v)  # noqa: E731
    evaluated: Any = vjp(both, x, has_aux=True)
    value, pullback, slope = evaluated
    return value, slope, lambda e: pullback(e)[0]


def by_columns(f: Callable[[Any], Any], x: Any, chunk_size: int | None) -> Any:
    """The Jacobian of ``f`` at ``x`` by forward mode, ``chunk_size`` columns at a time."""

    def column(e: Tensor) -> Any:
        return value_and_slope(f, x, unravel(e, x))[1]

    # Not `out_dims=-1`: vmap cannot expand a column of constants along it.
    columns = vmap(column, chunk_size=chunk_size)(unit_vectors(x))
    return tree_map(lambda array: _inputs(array.movedim(0, -1), x), columns)


def _inputs(array: Tensor, x: Any) -> Any:
    """The last dimension of ``array``, all entries of ``x``, as a tree like ``x``."""
    leaves, structure = tree_flatten(x)
    pieces = array.split([leaf.numel() for leaf in leaves], dim=-1)
    return tree_unflatten(
        structure,
        [
            _shaped(piece, array.shape[:-1], leaf)
            for piece, leaf in _pair(pieces, leaves)
        ],
    )


def by_rows(pullback: Pullback, y: Any, x: Any, chunk_size: int | None) -> Any:
    """The Jacobian from its transpose ``pullback``, ``chunk_size`` rows at a time.

    Args:
        pullback: From a tree like the output ``y`` to a tree like the input ``x``.
        y: The output.
        x: The input.
        chunk_size: How many rows at a time, or all.
    """

    def row(e: Tensor) -> Any:
        return pullback(unravel(e, y))

    rows = tree_leaves(vmap(row, chunk_size=chunk_size)(unit_vectors(y)))
    leaves, structure = tree_flatten(y)
    sizes = [leaf.numel() for leaf in leaves]
    split = [array.split(sizes) for array in rows]
    outputs: list[Any] = []
    for i, out in enumerate(leaves):
        entries = [
            array[i].reshape(out.shape + leaf.shape).to(_wider(out, leaf))
            for array, leaf in _pair(split, tree_leaves(x))
        ]
        outputs.append(tree_unflatten(tree_flatten(x)[1], entries))
    return tree_unflatten(structure, outputs)


def _shaped(piece: Tensor, front: torch.Size, leaf: Tensor) -> Tensor:
    return piece.reshape(front + leaf.shape).to(_wider(piece, leaf))


def _wider(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.promote_types(a.dtype, b.dtype)


def _pair(a: Sequence[Any], b: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(a, b, strict=True))
