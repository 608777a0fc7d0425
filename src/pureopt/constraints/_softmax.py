"""Probability vectors from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._domains import VECTOR
from pureopt.constraints._numeric import working
from pureopt.constraints._simplex import OnSimplex, floor
from pureopt.constraints._sphere import require_entries


@final
@dataclass(frozen=True)
class SimplexSoftmax(OnSimplex):
    r"""Probability vectors from as many logits.

    .. math:: p = \operatorname{softmax}(x), \qquad
        x_i = \log p_i - \tfrac1K \textstyle\sum_j \log p_j

    ``x`` has ``K`` entries, one more than the simplex has dimensions: adding a constant
    to all of them changes nothing. Hence not ``bijective``, and without ``log_abs_det``;
    :class:`Simplex` is the same map without that direction. About zeros in ``p`` see
    :meth:`right_inverse`.

    References:
        Bridle (1990) (the softmax).

    Example:
        >>> import torch
        >>> x = SimplexSoftmax().right_inverse(torch.tensor([0.5, 0.25, 0.25]))
        >>> SimplexSoftmax().forward(x + 10)
        tensor([0.5000, 0.2500, 0.2500])
        >>> SimplexSoftmax().bijective
        False
    """

    @property
    def bijective(self) -> bool:
        """False: logits that differ by a constant give the same probabilities."""
        return False

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where the smallest entry may leave the normal numbers; it is feasible beyond.

        ``(-log floor - log K) / 2``, because two logits differ by at most ``2 max|x|``.
        """
        return max(-math.log(floor(dtype)) - math.log(n), 0.0) / 2

    def forward(
        self, x: Float[Tensor, "*batch K"], static: Any = ()
    ) -> Float[Tensor, "*batch K"]:
        """The probabilities; see the class."""
        del static
        VECTOR.require("SimplexSoftmax.forward(x)", x)
        require_entries("SimplexSoftmax.forward(x)", x.shape)
        return working(x).softmax(-1).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch K"], static: Any = ()
    ) -> Float[Tensor, "*batch K"]:
        """The centered logarithms, NaN off the simplex.

        An entry below the smallest normal number counts as that number, hence a zero
        comes back to rounding error, from an ``x`` where the gradient vanishes.
        """
        del static
        logs = self._logs(y)
        return (logs - logs.mean(-1, keepdim=True)).to(y.dtype)
