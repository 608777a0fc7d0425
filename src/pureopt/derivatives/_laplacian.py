"""The Laplacian in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt._tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from pureopt._typing import P
from pureopt.derivatives._checks import call, chunk, point
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._transform import coefficient_at, propagate, value_at


class ForwardLaplacian(NamedTuple):
    """What one pass of the forward Laplacian finds.

    Attributes:
        value: The output of the function.
        jacobian: For each output a tree like ``x``, of leaves of the output's shape
            followed by the input's, as ``torch.func.jacrev`` returns it.
        laplacian: A tree like the output.
    """

    value: Any
    jacobian: Any
    laplacian: Any


def laplacian(
    f: Callable[[P], Any], *, chunk_size: int | None = None
) -> Callable[[P], Any]:
    r"""The Laplacian of ``f``, the trace of its Hessian, in one forward pass.

    .. math:: \Delta f(x) = \sum_{d=1}^{D} \frac{\partial^2 f}{\partial x_d^2}(x)

    The sum is taken inside: of each intermediate value its :math:`D` first derivatives
    and *one* sum of second derivatives are carried, :math:`2 + D` numbers in place of the
    :math:`1 + 2 D` of second-order Taylor mode. For a batch of points, map it with
    ``vmap``: what does not depend on the point is then computed once.

    Args:
        f: A function of one tree of floating tensors to a tree of tensors; what it may
            call is said at :func:`jet`. The sum runs over all numbers in its argument.
        chunk_size: How many directions are carried at once; by default all. The memory
            is that many times that of a forward pass.

    Returns:
        A function of ``x``; its values are trees like those of ``f``.

    Raises:
        HyperparameterError: If ``chunk_size`` is no positive integer. The function
            raises what :func:`jet` raises.

    References:
        Li, Ye, Jiang et al. (2024), "A computational framework for neural network-based
        variational Monte Carlo with Forward Laplacian".

        Dangel, Siebert, Zeinhofer and Walther (2025), "Collapsing Taylor mode automatic
        differentiation".

    Example:
        The fundamental solution in three dimensions is harmonic:

        >>> import torch
        >>> import pureopt as po
        >>> x = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
        >>> potential = lambda x: 1 / x.square().sum().sqrt()
        >>> abs(po.derivatives.laplacian(potential)(x)) < 1e-16
        tensor(True)
    """
    chunk("laplacian(chunk_size=...)", chunk_size)

    def apply(x: P) -> Any:
        point("laplacian(f)(x=...)", x)
        basis = identity_like(x)
        return sum_along("laplacian(f=...)", f, x, basis, 2, chunk_size)

    return apply


def forward_laplacian(f: Callable[[P], Any]) -> Callable[[P], ForwardLaplacian]:
    """Value, Jacobian and Laplacian from the one pass of :func:`laplacian`.

    Args:
        f: As for :func:`laplacian`.

    Raises:
        DerivativeError: At the call, what :func:`jet` raises.

    Example:
        The local kinetic energy of the ground state of the hydrogen atom, less its
        Coulomb energy, is -1/2 everywhere:

        >>> import torch
        >>> import pureopt as po
        >>> log_psi = lambda x: -x.square().sum().sqrt()
        >>> x = torch.tensor([0.3, -0.4, 1.2])
        >>> _, grad, lap = po.derivatives.forward_laplacian(log_psi)(x)
        >>> -(lap + grad.square().sum()) / 2 - 1 / x.square().sum().sqrt()
        tensor(-0.5000)
    """

    def apply(x: P) -> ForwardLaplacian:
        point("forward_laplacian(f)(x=...)", x)
        where = "forward_laplacian(f=...)"
        out = along(where, f, x, identity_like(x), 2)
        return ForwardLaplacian(
            tree_map(value_at, out),
            # Here the first derivatives are computed, as far as they were put off.
            call(where, lambda: tree_map(lambda y: _jacobian(y, x), out)),
            tree_map(lambda y: 2 * coefficient_at(y, 2), out),
        )

    return apply


def _jacobian(y: Jet | Tensor, x: Any) -> Any:
    first = y.coefficient(1) if isinstance(y, Jet) else None
    if first is None:
        return tree_map(lambda leaf: y.new_zeros((*y.shape, *leaf.shape)), x)
    # The directions are the coordinates: last, they are the input's dimensions.
    columns = first.movedim(0, -1)
    leaves = tree_leaves(x)
    pieces = iter(columns.split([leaf.numel() for leaf in leaves], dim=-1))
    return tree_map(
        lambda leaf: next(pieces).reshape((*y.shape, *leaf.shape)).clone(), x
    )


def identity_like(x: Any) -> Tensor:
    """The coordinate directions as rows."""
    leaves = tree_leaves(x)
    return torch.eye(
        sum([leaf.numel() for leaf in leaves]),
        dtype=reduce(torch.promote_types, [leaf.dtype for leaf in leaves]),
        device=leaves[0].device,
    )


def along(
    where: str, f: Callable[[P], Any], x: P, directions: Tensor, order: int
) -> Any:
    """The jets of ``f`` along these directions (rows), summed over them at ``order``."""
    # `unravel` acts on the last dimension; the leaves get theirs by a reshape.
    leaves, structure = tree_flatten(x)
    pieces = [directions]
    if len(leaves) > 1:
        pieces = directions.split([leaf.numel() for leaf in leaves], dim=-1)
    count = len(directions)  # a number, also where shapes are traced as symbols
    first = tree_unflatten(
        structure,
        [
            piece.reshape((count, *leaf.shape)).to(leaf.dtype)
            for piece, leaf in zip(pieces, leaves, strict=True)
        ],
    )
    return propagate(where, f, x, [first, *[None] * (order - 1)], summed=order)


def sum_along(
    where: str,
    f: Callable[[P], Any],
    x: P,
    directions: Tensor,
    order: int,
    chunk_size: int | None,
) -> Any:
    """The sum over directions (rows) of the derivatives of this order, in chunks."""
    total = None
    # A whole number: by others forward mode makes float64 of lanes of float32.
    factor = math.factorial(order)
    for rows in directions.split(chunk_size) if chunk_size else [directions]:
        out = along(where, f, x, rows, order)
        part = tree_map(lambda y: coefficient_at(y, order, factor), out)
        total = part if total is None else tree_map(torch.add, total, part)
    return total
