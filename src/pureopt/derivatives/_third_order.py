"""The third derivative applied to two vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._inner import inner


def third_order_product(f: Callable[[P], Tensor], x: P, u: P, v: P) -> P:
    r"""The third derivative of ``f`` at ``x`` in two directions: the gradient of ``u^T H v``.

    .. math::
        T[u, v, \cdot]_i = \sum_{jk} \frac{\partial^3 f}{\partial x_i \, \partial x_j \,
            \partial x_k} u_j v_k = \nabla_x \, \big( u^T H(x) \, v \big)_i

    Symmetric in ``u`` and ``v``. Three times reverse mode, at about six gradients: of
    the nestings that compile one of the two cheapest, and the one that needs no forward
    formula.

    Args:
        f: From a tree of tensors to a 0-d tensor. Other arguments are closed over.
        x: The point.
        u: A direction, like ``x``.
        v: A direction, like ``x``.

    Returns:
        A tree like ``x``.

    Raises:
        TreeError: If ``x`` holds what is not a floating tensor, or a direction is not
            like it.
        DerivativeError: If ``f`` does not return a 0-d floating tensor, or holds an
            operation that cannot be differentiated three times.

    Example:
        :math:`T[u, v, \cdot]` of :math:`x^2 y` is
        :math:`(2 (u_1 v_2 + u_2 v_1), \; 2 u_1 v_1)` everywhere:

        >>> import torch
        >>> import pureopt as po
        >>> x, u, v = torch.tensor([[1.0, 3.0], [1.0, 0.0], [5.0, 7.0]])
        >>> po.derivatives.third_order_product(lambda x: x[0] ** 2 * x[1], x, u, v)
        tensor([14., 10.])
    """
    where = "third_order_product(f=...)"
    first = grad(_checks.scalar_function(where, f))
    _checks.point("third_order_product(x=...)", x)
    u = _checks.direction("third_order_product(u=...)", u, x)
    v = _checks.direction("third_order_product(v=...)", v, x)

    def product(x: Any, u: Any, v: Any) -> Any:
        second = grad(lambda y: inner(first(y), u))
        return grad(lambda y: inner(second(y), v))(x)

    return _checks.call(where, product, x, u, v)
