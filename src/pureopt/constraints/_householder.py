"""Householder reflections in triangular storage: orthonormal columns at any scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pureopt.constraints._numeric import identity, scaled, working_eps
from pureopt.constraints._orthogonal_map import OrthogonalMap


@final
@dataclass(frozen=True)
class Householder(OrthogonalMap):
    r"""The first ``k`` columns of a product of Householder reflections.

    .. math::
        Q = -H_1 \cdots H_k \begin{bmatrix} I \\ 0 \end{bmatrix} D, \quad
        H_i = I - \frac{2 v_i v_i^T}{v_i^T v_i}, \quad
        V = \begin{bmatrix} I + \tfrac12 \operatorname{tril}(A, -1) \\ \tfrac12 B
        \end{bmatrix}

    multiplied out by the UT transform, so that no loop runs over the reflections:
    :math:`H_1 \cdots H_k = I - V T V^T`, where :math:`T^{-1}` is the upper triangle of
    :math:`V^T V` with half its diagonal. A bijection for each choice of the signs
    ``D``; :math:`|v_i|^2 \le 2` at the point that they were chosen for. Orthonormal to
    rounding error at any scale, because the columns of ``V`` are normalized. Undefined
    nowhere.

    References:
        Puglisi (1992); Joffrain, Low, Quintana-Ortí, van de Geijn and Van Zee (2006),
        the UT transform. Ballard, Demmel, Grigori, Jacquelin, Knight and Nguyen (2015),
        the signs for which the reflections of given columns are well conditioned.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Orthogonal
        >>> c, y = Orthogonal(Householder()), torch.eye(4, 2)
        >>> x = c.right_inverse(y, c.bind(y)) + 1e3
        >>> bool(c.check(c.forward(x, c.bind(y))))
        True
    """

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``0.1 / sqrt(n eps)``, with the eps of at least float32.

        Orthonormal beyond, too, but there what several reflections leave of each other
        in ``q``, ``1 / |v|^2``, is lost to rounding, and with it the chart.
        """
        return 0.1 / math.sqrt(n * working_eps(dtype))

    def amplification(self, reach: Tensor, shape: torch.Size) -> Tensor:
        """``sqrt(n)``, whatever ``x``: reflections do not grow."""
        return torch.full_like(reach, math.sqrt(shape[-2]))

    def columns(self, a: Tensor, b: Tensor, base: Any) -> Float[Tensor, "*batch n k"]:
        """The columns of the product."""
        del base
        below = scaled(torch.cat([a.tril(-1), b], -2), 0.5)
        w, t_inverse = ut_transform(below + _top(below))
        corner = w[..., : a.shape[-1], :].mT
        q = w @ torch.linalg.solve_triangular(t_inverse, corner, upper=True)
        return q - _top(q)

    def blocks(
        self, q: Float[Tensor, "*batch n k"], base: Any
    ) -> tuple[Tensor, Tensor, Bool[Tensor, "*batch"]]:
        """The reflections that make ``q``."""
        del base
        k = q.shape[-1]
        v, pivots = reflectors(q)
        low = scaled(v[..., :k, :].tril(-1), 2)
        # The pivots of orthonormal columns; off the chart one of them is zero.
        defect = scaled(pivots, 0.5) * v.square().sum(-2) - 1
        inside = (defect.abs() <= 0.5).all(-1)  # noqa: PLR2004
        return low - low.mT, scaled(v[..., k:, :], 2), inside

    def log_abs_det(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch"]:
        r""":math:`-\sum_i (n - i) \log(|v_i|^2)`: each is a stereographic projection."""
        below = scaled(torch.cat([a.tril(-1), b], -2), 0.5)
        n, k = below.shape[-2:]
        spheres = torch.arange(n - 1, n - 1 - k, -1, dtype=a.dtype, device=a.device)
        return -(below.square().sum(-2).log1p() @ spheres)


def reflectors(q: Float[Tensor, "*batch n k"]) -> tuple[Tensor, Tensor]:
    r"""The ``V`` of :math:`-H_1 \cdots H_k E = Q`, and :math:`2 / |v_i|^2`.

    Column by column, :math:`v_i` is what takes :math:`-e_i` to the column, and
    :math:`H_i` is taken off the rest. In exact arithmetic ``V`` is the unit lower factor
    of ``Q + E``; that elimination loses digits where ``V`` is large, reflections do not.
    """
    k = q.shape[-1]
    columns: list[Tensor] = []
    pivots: list[Tensor] = []
    for i in range(k):
        head, tail = q[..., :1, :1], q[..., 1:, :1]
        # 1 + head, which cancels near -1: columns have unit length.
        small = tail.square().sum(-2, keepdim=True) / (1 - head.clamp(max=0))
        pivot = torch.where(head < 0, small, 1 + head)
        v = torch.cat([torch.ones_like(pivot), tail / pivot], -2)
        q = q[..., 1:] - (v * pivot) @ (v.mT @ q[..., 1:])
        q = q[..., 1:, :]
        columns.append(F.pad(v, (0, 0, i, 0)))
        pivots.append(pivot[..., 0, 0])
    return torch.cat(columns, -1), torch.stack(pivots, -1)


def ut_transform(v: Float[Tensor, "*batch n k"]) -> tuple[Tensor, Tensor]:
    r"""``W``, ``T^{-1}`` with :math:`H_1 \cdots H_k = I - W T W^T`, ``|w_i| = 1``."""
    # Not zero: each column of V has an entry 1.
    w = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True)
    upper = (w.mT @ w).triu(1)
    return w, upper + scaled(identity(upper), 0.5)


def _top(x: Float[Tensor, "*batch n k"]) -> Float[Tensor, "n k"]:
    """The first ``k`` columns of the identity of size ``n``."""
    return torch.eye(*x.shape[-2:], dtype=x.dtype, device=x.device)
