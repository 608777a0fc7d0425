"""The bilaplacian by Taylor mode of order four."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pureopt._tree import tree_map
from pureopt._typing import P
from pureopt.derivatives._checks import chunk, point
from pureopt.derivatives._laplacian import identity_like, sum_along


def bilaplacian(
    f: Callable[[P], Any], *, chunk_size: int | None = None
) -> Callable[[P], Any]:
    r"""The bilaplacian of ``f``, the Laplacian of its Laplacian.

    .. math::
        \Delta^2 f = \sum_{i, j} \frac{\partial^4 f}{\partial x_i^2 \partial x_j^2}
        = \frac{1}{6} \sum_{i < j} (D_{e_i + e_j}^4 + D_{e_i - e_j}^4) f
        + \frac{4 - D}{3} \sum_i D_{e_i}^4 f

    where :math:`D_v^4` is the fourth derivative along :math:`v`. The :math:`D^2`
    directions are carried at once, summed over at order four.

    Args:
        f: As for :func:`laplacian`.
        chunk_size: How many directions are carried at once; by default all. The memory
            is three times that of as many forward passes.

    Returns:
        A function of ``x``; its values are trees like those of ``f``.

    Raises:
        HyperparameterError: If ``chunk_size`` is no positive integer. The function
            raises what :func:`jet` raises.

    References:
        Griewank, Utke and Walther (2000), "Evaluating higher derivative tensors by
        forward propagation of univariate Taylor series".

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> po.derivatives.bilaplacian(lambda x: x.square().sum() ** 2)(x)
        tensor(120.)
    """
    chunk("bilaplacian(chunk_size=...)", chunk_size)

    def apply(x: P) -> Any:
        point("bilaplacian(f)(x=...)", x)
        axes = identity_like(x)
        n = len(axes)
        where = "bilaplacian(f=...)"
        straight = sum_along(where, f, x, axes, 4, chunk_size)
        first, second = torch.triu_indices(n, n, 1, device=axes.device)
        a, b = axes[first], axes[second]
        if not len(a):
            return straight
        pairs = torch.cat([a + b, a - b])
        oblique = sum_along(where, f, x, pairs, 4, chunk_size)
        return tree_map(lambda p, s: p / 6 + s * ((4 - n) / 3), oblique, straight)

    return apply
