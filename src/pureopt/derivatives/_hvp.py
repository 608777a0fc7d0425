"""The Hessian times a vector, by forward over reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._dense import value_and_slope


def hvp(f: Callable[[P], Tensor], x: P, v: P) -> P:
    r"""The Hessian of ``f`` at ``x`` times ``v``.

    .. math::
        H v = \frac{d}{dt} \nabla f(x + t v) \Big|_{t = 0}

    Forward mode over reverse mode: about the cost of three gradients, whatever the
    number of parameters, and no Hessian in memory. Right also for the functions whose kernels
    drop terms above first order, because :func:`exact` is applied.

    Args:
        f: From a tree of tensors to a 0-d tensor. Other arguments are closed over.
            Forward mode does not stop at ``torch.no_grad``: what is meant to be a constant
            is detached, ``y.detach()``.
        x: The point.
        v: The direction, like ``x``.

    Returns:
        A tree like ``x``.

    Raises:
        TreeError: If ``x`` holds what is not a floating tensor, or ``v`` is not like it.
        DerivativeError: If ``f`` does not return a 0-d floating tensor, or holds an
            operation without forward mode; :func:`vhp` then is the way.

    References:
        Pearlmutter (1994).

    Example:
        The Hessian of :math:`x^2 y` at ``(1, 3)`` is ``[[6, 2], [2, 0]]``:

        >>> import torch
        >>> import pureopt as po
        >>> x, v = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 10.0])
        >>> po.derivatives.hvp(lambda x: x[0] ** 2 * x[1], x, v)
        tensor([26.,  2.])
    """
    where = "hvp(f=...)"
    gradient = grad(_checks.scalar_function(where, f))
    _checks.point("hvp(x=...)", x)
    v = _checks.direction("hvp(v=...)", v, x)

    def product(x: Any, v: Any) -> Any:
        return value_and_slope(gradient, x, v)[1]

    return _checks.call(where, product, x, v)
