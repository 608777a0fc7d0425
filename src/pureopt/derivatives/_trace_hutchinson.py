"""The trace of an operator from random quadratic forms."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._estimate import Estimate
from pureopt.derivatives._operator import (
    at_least,
    flat,
    rademacher,
    rows,
    sample_mean,
    size,
    working_dtype,
)


def trace_hutchinson(
    matvec: Callable[[P], P],
    like: P,
    *,
    key: Int[Tensor, ""],
    matvecs: int,
    chunk_size: int | None = None,
) -> Estimate:
    r"""The trace as the mean of quadratic forms of random signs.

    .. math::
        \operatorname{tr} A \approx \frac{1}{m} \sum_{i=1}^m v_i^\top A v_i, \qquad
        \operatorname{Var} = \frac{2}{m} \sum_{i \ne j} a_{ij}^2

    for a symmetric ``A``. Unbiased for any square one, exact for a diagonal one. The
    error falls with ``matvecs^(-1/2)``; :func:`trace_hutchpp` and :func:`trace_xtrace`
    need fewer products where the eigenvalues decay. This one needs no memory for a
    basis, is linear in the operator, and is differentiable.

    Args:
        matvec: A linear function of trees like ``like``.
        like: A tree that shows structure, shapes and dtypes; its values do not matter.
        key: A key of ``pureopt.random``, on the device of the tree.
        matvecs: How many products, at least two.
        chunk_size: How many products at a time; all by default.

    Returns:
        The estimate and its standard error, in the units of the operator.

    Raises:
        HyperparameterError: If a number is out of its range, or ``key`` is not one key.
        TreeError: If ``like`` is no tree of real floating tensors, or ``matvec`` returns
            another tree.

    References:
        Hutchinson (1990), section 2.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> value, stderr = po.derivatives.trace_hutchinson(
        ...     lambda v: a @ v, a[0], key=po.random.key(0), matvecs=4000
        ... )
        >>> bool((value - 5).abs() < 4 * stderr), round(float(stderr), 3)
        (True, 0.032)
    """
    where = "trace_hutchinson"
    n = size(f"{where}(like=...)", like)
    _checks.key(f"{where}(key=...)", key, like)
    at_least(f"{where}(matvecs=...)", matvecs, 2)
    _checks.chunk(f"{where}(chunk_size=...)", chunk_size)
    v = rademacher(key, (matvecs, n), working_dtype(like))
    return sample_mean((v * rows(flat(where, matvec, like), chunk_size)(v)).sum(-1))
