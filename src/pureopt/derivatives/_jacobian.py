"""The Jacobian as arrays, by forward or reverse mode, whichever is cheaper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._dense import by_columns, by_rows, size, value_and_pullback


def jacobian(
    f: Callable[[P], Any], *, chunk_size: int | None = None
) -> Callable[[P], Any]:
    r"""The function ``x -> J`` with all first derivatives of ``f``.

    .. math::
        J_{ij} = \frac{\partial f_i}{\partial x_j}

    With ``d`` numbers in ``x`` and ``m`` in ``f(x)``: by ``d`` columns in forward mode
    if ``d <= m``, otherwise by ``m`` rows in reverse mode; a column and a row cost about
    the same, one to two evaluations. ``f`` is evaluated once to find ``m``: reverse mode
    needs that anyway, forward mode does without it when ``d`` is 1.

    Args:
        f: From a tree of tensors to a tree of tensors. Other arguments are closed over.
            Forward mode does not stop at ``torch.no_grad``: what is meant to be a constant
            is detached, ``y.detach()``.
        chunk_size: How many columns or rows at a time, of which each takes the memory
            of an evaluation; ``None`` for all. The result does not depend on it.

    Returns:
        A function of a tree ``x``. For tensors the result has the shape of ``f(x)``
        followed by that of ``x``; for trees it is a tree like ``f(x)`` of trees like
        ``x`` of such arrays.

    Raises:
        HyperparameterError: If ``chunk_size`` is not a positive integer.
        TreeError: At the call, if ``x`` holds what is not a floating tensor.
        DerivativeError: At the call, if ``f`` does not return floating tensors, or
            cannot be differentiated.

    References:
        Griewank and Walther (2008), chapters 3 and 4 (the two modes and their cost).

    Example:
        Polar coordinates at radius 2 and angle 0:

        >>> import torch
        >>> import pureopt as po
        >>> def point(polar):
        ...     r, a = polar["radius"], polar["angle"]
        ...     return torch.stack([r * a.cos(), r * a.sin()])
        >>> polar = {"radius": torch.tensor(2.0), "angle": torch.tensor(0.0)}
        >>> po.derivatives.jacobian(point)(polar)
        {'radius': tensor([1., 0.]), 'angle': tensor([0., 2.])}
    """
    where = "jacobian(f=...)"
    chunk_size = _checks.chunk("jacobian(chunk_size=...)", chunk_size)
    outputs = _checks.tensor_function(where, f)

    def arrays(x: Any) -> Any:
        if size(x) > 1:
            y, pullback = value_and_pullback(outputs, x)
            if size(x) > size(y):
                return by_rows(pullback, y, x, chunk_size)
        return by_columns(outputs, x, chunk_size)

    def jacobian_of_f(x: P) -> Any:
        _checks.point("jacobian(f)(x)", x)
        return _checks.call(where, arrays, x)

    return jacobian_of_f
