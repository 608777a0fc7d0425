"""Derivatives of high order: ``nth_derivative`` and ``directional_derivatives``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pureopt._errors import DerivativeError, HyperparameterError, told
from pureopt._tree import tree_flatten, tree_map, tree_unflatten
from pureopt._typing import P
from pureopt.derivatives._checks import direction, point
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._transform import (
    coefficient_at,
    propagate,
    value_at,
)

# The last number whose factorial is a double.
_LARGEST = 170
# A table, since the compiler traces no factorial of a number that varies between calls.
_FACTORIALS = [float(math.factorial(k)) for k in range(_LARGEST + 1)]


def nth_derivative(f: Callable[[Tensor], Any], n: int) -> Callable[[Tensor], Any]:
    r"""The ``n``-th derivative of a function of one real variable.

    .. math:: x \mapsto \frac{d^n f}{dx^n}(x)

    By Taylor mode, at a cost that grows with :math:`n^2` at most. Past the degree of a
    polynomial it is zero. In single precision the factorial of the order overflows past 34.

    Args:
        f: A function of a 0-d tensor to a tree of tensors of any shapes. A function that
            acts on each element alone may also be given a tensor of points: the
            derivatives are then those at each point.
        n: The order, from 0 to 170, the last whose factorial is a double.

    Returns:
        A function of ``x``; its values are trees like those of ``f``.

    Raises:
        HyperparameterError: If ``n`` is no whole number, or out of range. The function
            raises what :func:`jet` raises.
        DerivativeError: At the call, if ``x`` is no tensor.

    Example:
        The third derivative of a square, and the eighth of the sine:

        >>> import torch
        >>> import pureopt as po
        >>> x = torch.tensor(0.5)
        >>> po.derivatives.nth_derivative(lambda x: x * x, 3)(x)
        tensor(0.)
        >>> po.derivatives.nth_derivative(torch.sin, 8)(x), torch.sin(x)
        (tensor(0.4794), tensor(0.4794))
    """
    _check_order("nth_derivative(n=...)", n, 0)

    def derivative(x: Tensor) -> Any:
        point("nth_derivative(f, n)(x=...)", x)
        _check_tensor("nth_derivative(f, n)(x=...)", x)
        if n == 0:
            return tree_map(value_at, propagate("nth_derivative(f=...)", f, x, []))
        where, zeros = "nth_derivative(f=...)", [None] * (n - 1)
        out = propagate(where, f, x, [torch.ones_like(x), *zeros])
        return tree_map(lambda y: _derivative(y, n), out)

    return derivative


def directional_derivatives(
    f: Callable[[P], Any], x: P, v: P, order: int
) -> tuple[Any, ...]:
    r"""All derivatives of ``f`` at ``x`` along ``v``, from order 0 to ``order``.

    .. math:: \frac{d^k}{dt^k} f(x + t v) \Big\vert_{t=0}, \qquad k = 0, \dots, K

    They are the factorials times the coefficients that :func:`jet` finds in one pass.

    Args:
        f: A function of one tree of tensors to a tree of tensors.
        x: The point, a tree of floating tensors.
        v: The direction, a tree like ``x``.
        order: The highest order K, from 1 to 170.

    Returns:
        ``order + 1`` trees like the output of ``f``.

    Raises:
        HyperparameterError: If ``order`` is no whole number, or out of range.
        DerivativeError: What :func:`jet` raises.
        TreeError: If ``v`` is not like ``x``.

    Example:
        Value, slope and curvature along a line of :math:`x y^2`:

        >>> import torch
        >>> import pureopt as po
        >>> x, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])
        >>> po.derivatives.directional_derivatives(lambda x: x[0] * x[1] ** 2, x, v, 3)
        (tensor(4.), tensor(8.), tensor(10.), tensor(6.))
    """
    _check_order("directional_derivatives(order=...)", order, 1)
    point("directional_derivatives(x=...)", x)
    v = direction("directional_derivatives(v=...)", v, x)
    where = "directional_derivatives(f=...)"
    out = propagate(where, f, x, [v, *[None] * (order - 1)])
    leaves, structure = tree_flatten(out)
    return tuple(
        tree_unflatten(structure, [_derivative(y, k) for y in leaves])
        for k in range(order + 1)
    )


def _derivative(y: Jet | Tensor, k: int) -> Tensor:
    return coefficient_at(y, k, _FACTORIALS[k]) if k else value_at(y)


def _check_tensor(where: str, x: object) -> None:
    if not isinstance(x, Tensor):
        hint = "`directional_derivatives` takes trees."
        raise DerivativeError(where, "be a tensor", told(x), hint)


def _check_order(where: str, n: object, least: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or not least <= n <= _LARGEST:
        got = f"{n}" if isinstance(n, int | float) else told(n)
        rule = f"be a whole number from {least} to {_LARGEST}"
        raise HyperparameterError(where, rule, got)
