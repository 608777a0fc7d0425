"""Skew-symmetric matrices."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt.constraints._domains import SKEW, VECTOR, Domain
from pureopt.constraints._linear import LinearSubspace
from pureopt.constraints._numeric import scaled

_SQRT2 = math.sqrt(2.0)


@final
@dataclass(frozen=True)
class Skew(LinearSubspace):
    r"""Skew-symmetric matrices from their strict lower triangle, packed row by row.

    .. math:: A_{ij} = x_{ij} / \sqrt 2 = -A_{ji} \quad (i > j), \qquad A_{ii} = 0

    An isometry, :math:`\|A\|_F = \|x\|_2`. A vector of length ``n (n - 1) / 2`` gives
    an ``n`` by ``n`` matrix; the empty vector gives the 1 by 1 zero.

    Example:
        >>> import torch
        >>> a = Skew().forward(torch.tensor([3.0, 0.0, 4.0]))
        >>> bool((a == -a.mT).all()), round(float(a.norm()), 4)
        (True, 5.0)
        >>> Skew().right_inverse(torch.eye(2))
        tensor([nan])
    """

    @property
    def codomain(self) -> Domain:
        """Skew-symmetric matrices."""
        return SKEW

    @property
    def rule(self) -> str:
        """Half the largest symmetric part."""
        return "max|Y + Y^T| / 2"

    def degrees(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        return shape[-1] * (shape[-1] - 1) // 2

    def embed(
        self, x: Float[Tensor, "*batch d"], shape: Sequence[int]
    ) -> Float[Tensor, "*batch n n"]:
        """Unpack; see the class."""
        del shape
        return unpack(x)

    def adjoint(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch d"]:
        """Pack the skew part."""
        return pack(scaled(y - y.mT, 0.5))


def unpack(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n n"]:
    """The skew matrix of a packed vector."""
    n, batch = _size(x), x.shape[:-1]
    row, column = torch.tril_indices(n, n, -1, device=x.device)
    zeros = x.new_zeros((*batch, n * n))
    # A scatter, because its gradient is a gather; that of a gather is slower.
    index = (n * row + column).expand(x.shape)
    lower = zeros.scatter(-1, index, scaled(x, 1 / _SQRT2)).reshape(*batch, n, n)
    return lower - lower.mT


def pack(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch d"]:
    """The strict lower triangle, scaled to an isometry."""
    n = a.shape[-1]
    row, column = torch.tril_indices(n, n, -1, device=a.device)
    return scaled(a[..., row, column], _SQRT2)


def _size(x: Tensor) -> int:
    """The ``n`` of a packed length ``n (n - 1) / 2``."""
    VECTOR.require("Skew(x)", x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    n = (math.isqrt(8 * length + 1) + 1) // 2
    if n * (n - 1) // 2 != length:
        raise ConstraintError(
            "Skew.forward(x)",
            "have a last dimension n (n - 1) / 2: 0, 1, 3, 6, 10, ...",
            str(tuple(x.shape)),
            "`right_inverse` of an n by n matrix gives the right one.",
        )
    return n
