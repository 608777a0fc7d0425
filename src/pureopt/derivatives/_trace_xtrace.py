"""The trace of a symmetric operator with every test vector used twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._random import normal
from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._estimate import Estimate
from pureopt.derivatives._operator import (
    at_least,
    flat,
    rows,
    sample_mean,
    size,
    working_dtype,
)


def trace_xtrace(
    matvec: Callable[[P], P],
    like: P,
    *,
    key: Int[Tensor, ""],
    matvecs: int,
    chunk_size: int | None = None,
) -> Estimate:
    r"""XTrace: Hutch++ for each test vector with the range of all the others, averaged.

    .. math::
        t_i = \operatorname{tr}(Q_i^\top A Q_i) + (n - l + 1)
        \frac{r_i^\top A r_i}{r_i^\top r_i}, \qquad
        Q_i = \operatorname{orth}(A \Omega_{-i}), \quad
        r_i = (I - Q_i Q_i^\top) \omega_i

    with :math:`l` normal test vectors :math:`\omega_i`, half as many as products, and
    :math:`\Omega_{-i}` all of them but the i-th. Given the others, :math:`r_i` has a
    uniform direction in the space that is left, so that each :math:`t_i` is unbiased.
    The error follows the decay of the eigenvalues, exponentially if they do; the
    estimate is exact to rounding if the rank is below ``l``, and if ``l = n``. It is
    differentiable where :math:`A \Omega` has full rank.

    Args:
        matvec: A symmetric linear function of trees like ``like``.
        like: A tree that shows structure, shapes and dtypes; its values do not matter.
        key: A key of ``pureopt.random``, on the device of the tree.
        matvecs: How many products, at least four; of an odd number one is not made, and
            no more than ``2 n`` are. ``2 matvecs`` vectors are held.
        chunk_size: How many products at a time; half of them by default.

    Returns:
        The mean of the :math:`t_i`, and their standard deviation over :math:`\sqrt l`
        as its standard error, in the units of the operator. The :math:`t_i` are
        exchangeable, not independent: over many keys the spread is 1 to 1.5 times as
        large for ``l`` up to a third of ``n``, and up to three times beyond.

    Raises:
        HyperparameterError: If a number is out of its range, or ``key`` is not one key.
        TreeError: If ``like`` is no tree of real floating tensors, or ``matvec`` returns
            another tree.

    References:
        Epperly, Tropp and Webber (2024): the estimator, its normalization for normal
        test vectors, and the projections by one QR decomposition.

    Example:
        Eigenvalues that halve, by 20 products:

        >>> import torch
        >>> import pureopt as po
        >>> d = 0.5 ** torch.arange(500, dtype=torch.float64)
        >>> value, stderr = po.derivatives.trace_xtrace(
        ...     lambda v: d * v, d, key=po.random.key(0), matvecs=20
        ... )
        >>> bool((value - 2).abs() < 0.01), bool(stderr < 0.01)
        (True, True)
    """
    where = "trace_xtrace"
    n = size(f"{where}(like=...)", like)
    _checks.key(f"{where}(key=...)", key, like)
    at_least(f"{where}(matvecs=...)", matvecs, 4)
    _checks.chunk(f"{where}(chunk_size=...)", chunk_size)
    product = rows(flat(where, matvec, like), chunk_size)
    ell = min(matvecs // 2, n)
    omega = normal(key, (ell, n), dtype=working_dtype(like))
    y = product(omega)
    q, r = torch.linalg.qr(y.mT)
    z = product(q.mT)  # rows, A being symmetric: (A Q)^T
    s = _left_out(r)
    w = (omega @ q).mT
    u = w - s * (s * w).sum(0)  # column i: Q^T times the projection of omega_i
    rest = omega - u.mT @ q.mT
    ratio = (rest * (y - u.mT @ z)).sum(-1) / rest.square().sum(-1)
    h = z @ q
    return sample_mean(
        h.diagonal(dim1=-2, dim2=-1).sum(-1)
        - (s * (h @ s)).sum(0)
        + (n - ell + 1) * ratio
    )


def _left_out(r: Float[Tensor, "l l"]) -> Float[Tensor, "l l"]:
    """Unit columns: the i-th is orthogonal to all columns of ``R`` but the i-th.

    Those of the inverse's transpose. Where ``A`` has low rank, ``R`` is singular; a pivot
    below rounding is raised to it, which leaves the columns orthogonal to rounding.
    """
    eps = torch.finfo(r.dtype).eps
    pivots = r.diagonal(dim1=-2, dim2=-1)
    largest = pivots.abs().amax(-1)
    r = r / torch.where(largest == 0, 1.0, largest)
    pivots = r.diagonal(dim1=-2, dim2=-1)
    r = r + torch.where(pivots.abs() < eps, eps - pivots, 0.0).diag_embed()
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    s = torch.linalg.solve_triangular(r.mT, eye, upper=False)
    s = s / s.abs().amax(-2, keepdim=True)
    return s / s.square().sum(-2, keepdim=True).sqrt()
