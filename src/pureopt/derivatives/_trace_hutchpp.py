"""The trace of an operator: exactly on a random range, by quadratic forms off it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from pureopt._random import normal, split
from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._estimate import Estimate
from pureopt.derivatives._operator import (
    at_least,
    flat,
    rademacher,
    rows,
    sample_mean,
    size,
    working_dtype,
)


def trace_hutchpp(
    matvec: Callable[[P], P],
    like: P,
    *,
    key: Int[Tensor, ""],
    matvecs: int,
    chunk_size: int | None = None,
) -> Estimate:
    r"""Hutch++: the trace on the range of a sketch, and Hutchinson's estimate off it.

    .. math::
        \operatorname{tr} A \approx \operatorname{tr}(Q^\top A Q) + \frac{1}{m}
        \sum_{i=1}^m g_i^\top (I - Q Q^\top) A (I - Q Q^\top) g_i,
        \qquad Q = \operatorname{orth}(A S)

    A third of the products each goes to the normal sketch ``S``, to ``Q`` and to the
    random signs :math:`g_i`. Unbiased; the error falls with ``1 / matvecs`` for any
    positive semidefinite operator and is zero to rounding if the rank is at most
    ``matvecs // 3``. It is differentiable where :math:`A S` has full rank.

    Args:
        matvec: A linear function of trees like ``like``.
        like: A tree that shows structure, shapes and dtypes; its values do not matter.
        key: A key of ``pureopt.random``, on the device of the tree.
        matvecs: How many products, at least four; what three does not divide goes to the
            random signs. ``2 matvecs / 3`` vectors are held.
        chunk_size: How many products at a time; a third by default.

    Returns:
        The estimate and the standard error of its random part, in the units of the
        operator.

    Raises:
        HyperparameterError: If a number is out of its range, or ``key`` is not one key.
        TreeError: If ``like`` is no tree of real floating tensors, or ``matvec`` returns
            another tree.

    References:
        Meyer, Musco, Musco and Woodruff (2021), algorithm 1.

    Example:
        A matrix of ones has rank one:

        >>> import torch
        >>> import pureopt as po
        >>> value, stderr = po.derivatives.trace_hutchpp(
        ...     lambda v: v.sum() * torch.ones_like(v),
        ...     torch.zeros(1000, dtype=torch.float64),
        ...     key=po.random.key(0),
        ...     matvecs=6,
        ... )
        >>> round(float(value), 9), bool(stderr < 1e-9)
        (1000.0, True)
    """
    where = "trace_hutchpp"
    n = size(f"{where}(like=...)", like)
    _checks.key(f"{where}(key=...)", key, like)
    at_least(f"{where}(matvecs=...)", matvecs, 4)
    _checks.chunk(f"{where}(chunk_size=...)", chunk_size)
    product, dtype = rows(flat(where, matvec, like), chunk_size), working_dtype(like)
    third = matvecs // 3
    for_sketch, for_signs = split(key)
    q = torch.linalg.qr(product(normal(for_sketch, (third, n), dtype=dtype)).mT)[0].mT
    g = rademacher(for_signs, (matvecs - 2 * third, n), dtype)
    g = g - (g @ q.mT) @ q
    value, stderr = sample_mean((g * product(g)).sum(-1))
    return Estimate((q * product(q)).sum() + value, stderr)
