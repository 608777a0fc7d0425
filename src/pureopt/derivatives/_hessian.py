"""The Hessian as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._dense import by_columns, by_rows, size, value_and_pullback


def hessian(
    f: Callable[[P], Any], *, chunk_size: int | None = None
) -> Callable[[P], Any]:
    r"""The function ``x -> H`` with all second derivatives of ``f``.

    .. math::
        H_{ij} = \frac{\partial^2 f}{\partial x_i \, \partial x_j}

    Reverse over reverse mode: one gradient, then its derivative in each of the ``p``
    directions, ``chunk_size`` of them at a time. Unlike ``torch.func.hessian``, which
    has the same values where it is right, it needs no forward mode, is traced by
    ``torch.compile`` under vmap too, and :func:`exact` is applied.

    Args:
        f: From a tree of tensors to a 0-d tensor. Outputs of other shapes, and trees of
            them, work too: for ``m > 1`` numbers in ``f(x)`` the cost is ``m`` times as
            much, by forward over reverse mode. Other arguments are closed over.
        chunk_size: How many directions at a time, of which each takes the memory of a
            gradient, or of ``m``; ``None`` for all. The result does not depend on it.

    Returns:
        A function of a tree ``x``. For tensors the result has the shape of ``f(x)``
        followed by twice that of ``x``; for trees it is a tree like ``f(x)`` of trees
        like ``x`` of trees like ``x``: ``hessian(f)(x)["a"]["b"]``.

    Raises:
        HyperparameterError: If ``chunk_size`` is not a positive integer.
        TreeError: At the call, if ``x`` holds what is not a floating tensor.
        DerivativeError: At the call, if ``f`` does not return floating tensors, or
            cannot be differentiated twice.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> x = torch.tensor([1.0, 3.0])
        >>> po.derivatives.hessian(lambda x: x[0] ** 2 * x[1])(x)
        tensor([[6., 2.],
                [2., 0.]])
    """
    where = "hessian(f=...)"
    chunk_size = _checks.chunk("hessian(chunk_size=...)", chunk_size)
    outputs = _checks.tensor_function(where, f)

    def first(x: Any) -> Any:
        y, pullback = value_and_pullback(outputs, x)
        if isinstance(y, Tensor) and not y.dim():
            return pullback(torch.ones_like(y))
        return by_rows(pullback, y, x, None)

    def second(x: Any) -> Any:
        if size(outputs(x)) == 1:
            gradient, pullback = value_and_pullback(first, x)
            return by_rows(pullback, gradient, x, chunk_size)
        # A row of these would be pulled back through all outputs, a column is not.
        return by_columns(first, x, chunk_size)

    def hessian_of_f(x: P) -> Any:
        _checks.point("hessian(f)(x)", x)
        return _checks.call(where, second, x)

    return hessian_of_f
