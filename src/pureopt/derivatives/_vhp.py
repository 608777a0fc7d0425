"""A vector times the Hessian, by reverse over reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._inner import inner


def vhp(f: Callable[[P], Tensor], x: P, v: P) -> P:
    r"""``v`` times the Hessian of ``f`` at ``x``, with reverse mode only.

    .. math::
        v^T H = \nabla_x \, \langle \nabla f(x), v \rangle

    The same numbers as :func:`hvp` (but for what ``f`` computes under ``torch.no_grad``, a
    constant in reverse mode alone) at about the same cost, with the intermediate values
    of both passes in memory. For functions with an operation that has no forward mode,
    such as an ``autograd.Function`` without ``jvp``, and for two nested vmaps, where
    ``torch.compile`` fails to trace forward mode.

    Args:
        f: From a tree of tensors to a 0-d tensor. Other arguments are closed over.
        x: The point.
        v: The direction, like ``x``.

    Returns:
        A tree like ``x``.

    Raises:
        TreeError: If ``x`` holds what is not a floating tensor, or ``v`` is not like it.
        DerivativeError: If ``f`` does not return a 0-d floating tensor, or holds an
            operation whose backward formula has no derivative.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> x, v = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 10.0])
        >>> po.derivatives.vhp(lambda x: x[0] ** 2 * x[1], x, v)
        tensor([26.,  2.])
    """
    where = "vhp(f=...)"
    gradient = grad(_checks.scalar_function(where, f))
    _checks.point("vhp(x=...)", x)
    v = _checks.direction("vhp(v=...)", v, x)

    def product(x: Any, v: Any) -> Any:
        return grad(lambda y: inner(gradient(y), v))(x)

    return _checks.call(where, product, x, v)
