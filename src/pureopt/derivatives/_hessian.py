"""The Hessian as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._dense import by_columns, by_rows, value_and_pullback
from pureopt.derivatives._exactness import exact


def hessian(
    f: Callable[[P], Any], *, chunk_size: int | None = None
) -> Callable[[P], Any]:
    r"""The function ``x -> H`` with all second derivatives of ``f``.

    .. math::
        H_{ij} = \frac{\partial^2 f}{\partial x_i \, \partial x_j}

    Forward over reverse mode: one :func:`hvp` for each of the ``p`` numbers in ``x``,
    ``chunk_size`` of them at a time. The values are those of ``torch.func.hessian``
    where that is right; :func:`exact` is applied.

    Args:
        f: From a tree of tensors to a 0-d tensor. Outputs of other shapes, and trees of
            them, work too: for ``m`` numbers in ``f(x)`` the cost is ``m`` times as
            much. Other arguments are closed over.
        chunk_size: How many columns at a time, of which each takes the memory of a
            gradient; ``None`` for all. The result does not depend on it.

    Returns:
        A function of a tree ``x``. For tensors the result has the shape of ``f(x)``
        followed by twice that of ``x``; for trees it is a tree like ``f(x)`` of trees
        like ``x`` of trees like ``x``: ``hessian(f)(x)["a"]["b"]``.

    Raises:
        HyperparameterError: If ``chunk_size`` is not a positive integer.
        TreeError: At the call, if ``x`` holds what is not a floating tensor.
        DerivativeError: At the call, if ``f`` does not return floating tensors, or
            holds an operation without a second derivative or without forward mode.

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
    exactly = exact(f)

    def outputs(x: Any) -> Any:
        return _checks.tensors(where, exactly(x))

    def first(x: Any) -> Any:
        y, pullback = value_and_pullback(outputs, x)
        if isinstance(y, Tensor) and not y.dim():
            return pullback(torch.ones_like(y))
        return by_rows(pullback, y, x, None)

    def hessian_of_f(x: P) -> Any:
        _checks.point("hessian(f)(x)", x)
        return _checks.call(where, lambda x: by_columns(first, x, chunk_size), x)

    return hessian_of_f
