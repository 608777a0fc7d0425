"""The diagonal of the Hessian: exact, and estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.func import grad, vmap

from pureopt import _random
from pureopt._tree import ravel, unravel
from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._dense import size, value_and_pullback
from pureopt.derivatives._estimate import Estimate


def hessian_diag(
    f: Callable[[P], Tensor], *, chunk_size: int | None = None
) -> Callable[[P], P]:
    r"""The function ``x -> diag H`` with the second derivative along each coordinate.

    .. math::
        d_i = \frac{\partial^2 f}{\partial x_i^2} = e_i^T H e_i

    Exact: one gradient, then its derivative in each of the ``p`` directions, ``chunk_size``
    of them at a time, and memory for ``chunk_size * p`` numbers where :func:`hessian` takes
    ``p * p``. For many parameters :func:`hessian_diag_estimate` costs less.

    Args:
        f: From a tree of tensors to a 0-d tensor. Other arguments are closed over.
        chunk_size: How many entries at a time; ``None`` for all. The result does not
            depend on it.

    Returns:
        A function of a tree ``x``; its result is a tree like ``x``.

    Raises:
        HyperparameterError: If ``chunk_size`` is not a positive integer.
        TreeError: At the call, if ``x`` holds what is not a floating tensor.
        DerivativeError: At the call, if ``f`` does not return a 0-d floating tensor, or
            cannot be differentiated twice.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> po.derivatives.hessian_diag(lambda x: x.prod() + (x**3).sum())(x)
        tensor([ 6., 12., 18.])
    """
    where = "hessian_diag(f=...)"
    chunk_size = _checks.chunk("hessian_diag(chunk_size=...)", chunk_size)
    products = _products(where, f)

    def diagonal(x: Any) -> Any:
        p, product = size(x), products(x)
        step = chunk_size or p
        pieces = [
            _diagonal(product, ravel(x), start, min(start + step, p))
            for start in range(0, p, step)
        ]
        return unravel(torch.cat(pieces), x)

    def hessian_diag_of_f(x: P) -> P:
        _checks.point("hessian_diag(f)(x)", x)
        return _checks.call(where, diagonal, x)

    return hessian_diag_of_f


def _products(
    where: str, f: Callable[[Any], Tensor]
) -> Callable[[Any], Callable[[Tensor], Tensor]]:
    """From a point to the map of a vector to the Hessian there times the vector.

    The gradient is evaluated once for all vectors: reverse over reverse mode.
    """
    gradient = grad(_checks.scalar_function(where, f))

    def products(x: Any) -> Callable[[Tensor], Tensor]:
        pullback = value_and_pullback(gradient, x)[1]
        return lambda v: ravel(pullback(unravel(v, x)))

    return products


def _diagonal(
    product: Callable[[Tensor], Tensor], like: Tensor, start: int, stop: int
) -> Tensor:
    """The entries from ``start`` to ``stop`` of the diagonal."""
    i = torch.arange(start, stop, device=like.device)
    basis = (i[:, None] == torch.arange(like.numel(), device=like.device)).to(
        like.dtype
    )
    rows = vmap(product)(basis)
    # Entries, not `(rows * basis).sum(-1)`: a NaN elsewhere in the row stays there.
    return rows[:, start:stop].diagonal()


def hessian_diag_estimate(
    f: Callable[[P], Tensor],
    x: P,
    *,
    key: Int[Tensor, ""],
    samples: int,
    chunk_size: int | None = None,
) -> Estimate:
    r"""An unbiased estimate of the diagonal of the Hessian, for many parameters.

    .. math::
        \hat d = \frac{1}{s} \sum_{k=1}^{s} z_k \odot H z_k, \qquad
        \operatorname{Var} \hat d_i = \frac{1}{s} \sum_{j \neq i} H_{ij}^2

    with independent signs :math:`z_k \in \{-1, 1\}^p`. Exact with one sample if the
    Hessian is diagonal; the error falls as ``1 / sqrt(samples)``. Costs ``samples``
    times :func:`hvp`.

    Args:
        f: From a tree of tensors to a 0-d tensor. Other arguments are closed over.
        x: The point.
        key: A key of ``pureopt.random``, on the device of ``x``, used once.
        samples: How many products.
        chunk_size: How many products at a time; ``None`` for all.

    Returns:
        The estimate and its standard error, trees like ``x``. With one sample the
        standard error is NaN.

    Raises:
        HyperparameterError: If ``samples`` or ``chunk_size`` is not a positive integer,
            or ``key`` is not one key.
        TreeError: If ``x`` holds what is not a floating tensor.
        DerivativeError: If ``f`` does not return a 0-d floating tensor, or cannot be
            differentiated twice.

    References:
        Bekas, Kokiopoulou and Saad (2007); with signs its denominator is ``s``.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> x, key = torch.tensor([1.0, 2.0]), po.random.key(0)
        >>> estimate = po.derivatives.hessian_diag_estimate(
        ...     lambda x: (x**3).sum(), x, key=key, samples=2
        ... )
        >>> estimate
        Estimate(value=tensor([ 6., 12.]), stderr=tensor([0., 0.]))
    """
    name = "hessian_diag_estimate"
    _checks.point(f"{name}(x=...)", x)
    _checks.key(f"{name}(key=...)", key, x)
    samples = _checks.positive(f"{name}(samples=...)", samples)
    chunk_size = _checks.chunk(f"{name}(chunk_size=...)", chunk_size)
    products = _products(f"{name}(f=...)", f)

    def estimate(x: Any, key: Tensor) -> Estimate:
        like, product = ravel(x), products(x)
        positive = _random.bits(key, (samples, like.numel())) < 0
        signs = torch.where(positive, torch.ones_like(like), -torch.ones_like(like))
        draws = vmap(lambda z: z * product(z), chunk_size=chunk_size)(signs)
        mean = draws.mean(0)
        variance = (draws - mean).square().sum(0) / (samples - 1)
        stderr = (variance / samples).sqrt()
        return Estimate(unravel(mean, x), unravel(stderr, x))

    return _checks.call(f"{name}(f=...)", estimate, x, key)
