"""Probability vectors, by isometric log-ratios."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt import _random
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    or_nan,
    scaled,
    working,
)
from pureopt.constraints._sphere import require_entries, sum_tolerance
from pureopt.constraints._sum_to_zero import helmert, helmert_adjoint

SIMPLEX = Domain("a vector of probabilities", "(..., K)", 1, inside=(VECTOR,))


class OnSimplex(Constraint, ABC):
    """What all maps onto the simplex share: the set, its projection, its samples.

    The set is the closed simplex, because large free values round to its boundary. An
    entry below the smallest normal number counts as that number in ``right_inverse``,
    hence a vertex comes back to rounding error, from a free value of some 87 in float32
    and 708 in float64. The gradient there vanishes: start from the inside to learn.
    """

    @property
    def domain(self) -> Domain:
        """Vectors."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Vectors of probabilities."""
        return SIMPLEX

    @property
    def rule(self) -> str:
        """The deviation of the sum from one, and the most negative entry."""
        return "max(|sum(Y) - 1|, -min(Y))"

    def dim(self, shape: Sequence[int]) -> int:
        """``K - 1``."""
        self._require_shape("dim", shape)
        require_entries(f"{type(self).__name__}.dim(shape)", shape)
        return shape[-1] - 1

    def violation(self, y: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
        """The deviation of the sum from one, or the most negative entry if larger."""
        self._require("violation", y)
        return simplex_error(y)

    def tolerance(self, y: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
        """``4 eps + 10 sqrt(K) eps'``, see :func:`sum_tolerance`."""
        return sum_tolerance(y)

    def project(self, y: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
        """The nearest vector of probabilities, by sorting.

        References:
            Held, Wolfe and Crowder (1974). Duchi, Shalev-Shwartz, Singer and
            Chandra (2008), figure 1.
        """
        self._require("project", y)
        return nearest_on_simplex(y)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch K"]:
        """Uniform on the simplex: the Dirichlet distribution of all ones."""
        self._require_shape("sample", shape, dtype)
        require_entries(f"{type(self).__name__}.sample(shape=...)", shape)
        return uniform_on_simplex(key, shape, dtype)

    def _require(self, method: str, y: Tensor) -> None:
        where = f"{type(self).__name__}.{method}(y)"
        SIMPLEX.require(where, y)
        require_entries(where, y.shape)

    def _logs(self, y: Tensor) -> Tensor:
        """``log y``, NaN off the simplex."""
        self._require("right_inverse", y)
        return or_nan(self.check(y), finite_log(y), 1)


@final
@dataclass(frozen=True)
class Simplex(OnSimplex):
    r"""Probability vectors by the isometric log-ratio transform.

    .. math:: p = \operatorname{softmax}(V x), \qquad x = V^T \log p

    with the orthonormal columns :math:`V` of Helmert, which span the vectors of sum zero.
    ``x`` has ``K - 1`` entries; zero gives equal probabilities, and no entry of ``p`` is
    singled out: a gradient step in ``x`` is one in centered logits. In ``O(K)``. About
    zeros in ``p`` see :meth:`right_inverse`.

    References:
        Egozcue, Pawlowsky-Glahn, Mateu-Figueras and Barceló-Vidal (2003).

    Example:
        >>> import torch
        >>> p = torch.tensor([0.7, 0.2, 0.1])
        >>> x = Simplex().right_inverse(p)
        >>> x.shape, torch.allclose(Simplex().forward(x), p)
        (torch.Size([2]), True)
        >>> Simplex().project(torch.tensor([0.9, 0.5, -1.0])).round(decimals=4)
        tensor([0.7000, 0.3000, 0.0000])
    """

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where the smallest entry may leave the normal numbers; it is feasible beyond.

        ``(-log floor - log K) / sqrt(2 K)``, because two centered logits differ by
        at most ``sqrt(2) |x|``.
        """
        return max(-math.log(floor(dtype)) - math.log(n), 0.0) / math.sqrt(2 * n)

    def forward(
        self, x: Float[Tensor, "*batch K-1"], static: Any = ()
    ) -> Float[Tensor, "*batch K"]:
        """The probabilities; see the class."""
        del static
        VECTOR.require("Simplex.forward(x)", x)
        return helmert(working(x)).softmax(-1).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch K"], static: Any = ()
    ) -> Float[Tensor, "*batch K-1"]:
        """The log-ratios, NaN off the simplex.

        An entry below the smallest normal number counts as that number, hence a zero
        comes back to rounding error, from an ``x`` where the gradient vanishes.
        """
        del static
        return helmert_adjoint(self._logs(y)).to(y.dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch K-1"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`\log K + \sum_i \log p_i`."""
        del static
        VECTOR.require("Simplex.log_abs_det(x)", x)
        return ilr_log_abs_det(working(x)).to(x.dtype)


def ilr_log_abs_det(x: Float[Tensor, "*batch K-1"]) -> Float[Tensor, "*batch"]:
    """The product of the nonzero eigenvalues of ``diag(p) - p p^T``, as a logarithm."""
    logs = helmert(x).log_softmax(-1)
    return logs.sum(-1) + math.log(logs.shape[-1])


def floor(dtype: torch.dtype) -> float:
    """What smaller probabilities count as: the smallest number ``log`` takes well."""
    wide = torch.promote_types(dtype, torch.float32)
    subnormal = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    return max(subnormal, torch.finfo(wide).tiny)


def finite_log(y: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
    """``log y`` of what is at least the floor, in at least float32."""
    return working(y).clamp(min=floor(y.dtype)).log()


def simplex_error(y: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
    """How far the sum is from one, or the most negative entry from zero."""
    p = working(y)
    return torch.maximum((p.sum(-1) - 1).abs(), -p.amin(-1))


def nearest_on_simplex(y: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch K"]:
    """The Euclidean projection onto the simplex; NaN where ``y`` is not finite."""
    p = finite_or_zero(working(y), 1)
    # The result does not change, but far from the simplex no digits are lost: what is
    # one below the largest entry is zero in the end.
    p = (p - p.amax(-1, keepdim=True)).clamp(min=-1)
    high = p.sort(-1, descending=True).values
    count = torch.arange(1, p.shape[-1] + 1, dtype=p.dtype, device=p.device)
    support = high > (high.cumsum(-1) - 1) / count
    total = torch.where(support, high, torch.zeros_like(high)).sum(-1, keepdim=True)
    theta = (total - 1) / support.sum(-1, keepdim=True)
    return or_nan(all_finite(y, 1), (p - theta).clamp(min=0), 1).to(y.dtype)


def uniform_on_simplex(
    key: Int[Tensor, ""], shape: Sequence[int], dtype: torch.dtype
) -> Float[Tensor, "*batch K"]:
    """Exponential numbers divided by their sum."""
    wide = torch.promote_types(dtype, torch.float32)
    u = _random.uniform(key, shape, dtype=wide)
    # Zero is drawn once in 2^24: the sum of one such number must not be zero.
    e = scaled((-u).log1p(), -1.0).clamp(min=torch.finfo(wide).eps ** 2)
    return (e / e.sum(-1, keepdim=True)).to(dtype)
