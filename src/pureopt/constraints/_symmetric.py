"""Symmetric matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._domains import SYMMETRIC, Domain
from pureopt.constraints._linear import LinearSubspace
from pureopt.constraints._numeric import scaled

_SQRT2 = math.sqrt(2.0)


@final
@dataclass(frozen=True)
class Symmetric(LinearSubspace):
    r"""Symmetric matrices from their lower triangle, packed row by row.

    .. math:: Y_{ii} = x_{ii}, \qquad Y_{ij} = Y_{ji} = x_{ij} / \sqrt 2

    An isometry, :math:`\|Y\|_F = \|x\|_2`: a gradient step in ``x`` is the gradient
    step in ``Y``. A vector of length ``n (n + 1) / 2`` gives an ``n`` by ``n`` matrix.

    Example:
        >>> import torch
        >>> y = Symmetric().forward(torch.tensor([1.0, 2.0, 3.0]))
        >>> bool((y == y.mT).all()), round(float(y.norm()) ** 2, 4)
        (True, 14.0)
        >>> Symmetric().right_inverse(torch.tensor([[1.0, 5.0], [4.0, 1.0]]))
        tensor([nan, nan, nan])
    """

    @property
    def codomain(self) -> Domain:
        """Symmetric matrices."""
        return SYMMETRIC

    @property
    def rule(self) -> str:
        """Half the largest asymmetry."""
        return "max|Y - Y^T| / 2"

    def degrees(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        return shape[-1] * (shape[-1] + 1) // 2

    def embed(
        self, x: Float[Tensor, "*batch d"], shape: Sequence[int]
    ) -> Float[Tensor, "*batch n n"]:
        """Unpack; see the class."""
        n, batch = shape[-1], x.shape[:-1]
        row, column = torch.tril_indices(n, n, device=x.device)
        zeros = x.new_zeros((*batch, n * n))
        # A scatter, because its gradient is a gather; that of a gather is slower.
        lower = zeros.scatter(-1, (n * row + column).expand(x.shape), x)
        lower = lower.reshape(*batch, n, n)
        i = torch.arange(n, device=x.device)
        both = scaled(lower + lower.mT, 1 / _SQRT2)
        return torch.where(i == i[:, None], lower, both)

    def adjoint(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch d"]:
        """Pack the symmetric part."""
        n = y.shape[-1]
        row, column = torch.tril_indices(n, n, device=y.device)
        x = y[..., row, column]
        both = scaled(x + y[..., column, row], 1 / _SQRT2)
        return torch.where(row == column, x, both)
