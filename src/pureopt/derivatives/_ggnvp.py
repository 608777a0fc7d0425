"""The generalized Gauss-Newton matrix times a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._dense import value_and_slope, value_slope_and_pullback


def ggnvp(
    model: Callable[[P], Any], loss: Callable[[Any], Tensor], params: P, v: P
) -> P:
    r"""The generalized Gauss-Newton matrix of ``loss(model(params))`` times ``v``.

    .. math::
        G v = J^T \, \nabla^2 \ell(z) \, J v, \qquad z = m(\theta), \quad
        J = \frac{\partial m}{\partial \theta}

    The part of the Hessian that does not need the curvature of the model: the whole
    Hessian where the model is linear or the loss is at a stationary point of
    :math:`\ell`, and positive semidefinite wherever the loss is convex in the outputs.
    Costs about three gradients, and no matrix in memory.

    Args:
        model: From the parameters to the outputs, a tree of tensors; the data is closed
            over. Forward mode does not stop at ``torch.no_grad``: what is meant to be a
            constant is detached, ``y.detach()``.
        loss: From the outputs to a 0-d tensor; the targets are closed over.
        params: The parameters.
        v: The direction, like ``params``.

    Returns:
        A tree like ``params``.

    Raises:
        TreeError: If ``params`` holds what is not a floating tensor, or ``v`` is not
            like it.
        DerivativeError: If ``model`` does not return floating tensors, ``loss`` not a
            0-d floating tensor, or one of them cannot be differentiated.

    References:
        Schraudolph (2002). Martens (2020), section 8.

    Example:
        Least squares, where ``G`` is ``A^T A``:

        >>> import torch
        >>> import pureopt as po
        >>> a = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        >>> x, v = torch.zeros(2), torch.tensor([1.0, 1.0])
        >>> po.derivatives.ggnvp(lambda x: a @ x, lambda z: (z**2).sum() / 2, x, v)
        tensor([3., 7.])
    """
    where = "ggnvp(loss=...)"
    gradient = grad(_checks.scalar_function(where, loss))

    def curvature(z: Any, u: Any) -> Any:
        return _checks.call(where, value_and_slope, gradient, z, u)[1]

    return sandwich("ggnvp", model, curvature, params, v)


def sandwich(
    name: str,
    model: Callable[[Any], Any],
    curvature: Callable[[Any, Any], Any],
    params: Any,
    v: Any,
) -> Any:
    """``J^T C J v``, with ``curvature(outputs, u)`` the product ``C u``."""
    where = f"{name}(model=...)"
    _checks.point(f"{name}(params=...)", params)
    v = _checks.direction(f"{name}(v=...)", v, params, "params")
    outputs = _checks.tensor_function(where, model)

    def product(params: Any, v: Any) -> Any:
        z, u, pullback = value_slope_and_pullback(outputs, params, v)
        return pullback(curvature(z, u))

    return _checks.call(where, product, params, v)
