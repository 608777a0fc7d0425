"""The log-determinant of a positive definite operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from pureopt._typing import P
from pureopt.derivatives._estimate import Estimate
from pureopt.derivatives._operator import size
from pureopt.derivatives._spectral_density import density


def log_determinant(
    matvec: Callable[[P], P],
    like: P,
    *,
    key: Int[Tensor, ""],
    probes: int,
    steps: int,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The logarithm of the determinant of a positive definite operator.

    .. math::
        \log \det A = \operatorname{tr} \log A
        \approx \frac{n}{m} \sum_{i=1}^m \sum_k \tau_{ik}^2 \log \theta_{ik}

    by the quadrature of :func:`spectral_density`. NaN where a node is not positive,
    hence wherever ``A`` is found not to be positive definite: add a damping in the
    closure, ``lambda v: tree_map(lambda a, b: a + damping * b, matvec(v), v)``.

    Two errors: that of the probes, which ``stderr`` tells, and that of the quadrature,
    which it does not. The latter shrinks by a factor of about
    :math:`e^{-4 / \sqrt{\kappa}}` with each step, with the condition number
    :math:`\kappa`. It is not to be differentiated; the gradient is
    :math:`\operatorname{tr}(A^{-1} \partial A)`.

    Costs ``probes * steps`` products.

    Args:
        matvec: A symmetric positive definite linear function of trees like ``like``.
        like: A tree that shows structure, shapes and dtypes; its values do not matter.
        key: A key of ``pureopt.random``, on the device of the tree.
        probes: How many random vectors, at least two.
        steps: Lanczos steps per probe; no more than ``n`` are taken.
        chunk_size: How many probes at a time; all by default.

    Returns:
        The estimate and its standard error, in nats.

    Raises:
        HyperparameterError: If a number is out of its range, or ``key`` is not one key.
        TreeError: If ``like`` is no tree of real floating tensors, or ``matvec`` returns
            another tree.

    References:
        Ubaru, Chen and Saad (2017).

    Example:
        Of a diagonal operator every probe knows the whole spectrum:

        >>> import torch
        >>> import pureopt as po
        >>> d = torch.tensor([1.0, 2.0, 4.0])
        >>> po.derivatives.log_determinant(
        ...     lambda v: d * v, d, key=po.random.key(0), probes=2, steps=3
        ... ).value
        tensor(2.0794)
        >>> d.log().sum()
        tensor(2.0794)
    """
    where = "log_determinant"
    n = size(f"{where}(like=...)", like)
    spectrum = density(where, matvec, like, key, probes, steps, chunk_size)
    value, stderr = spectrum.integrate(_log)
    return Estimate(n * value, n * stderr)


def _log(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.nan).log()
