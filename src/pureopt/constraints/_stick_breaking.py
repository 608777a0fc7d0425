"""Probability vectors by breaking a stick."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pureopt.constraints._domains import VECTOR
from pureopt.constraints._numeric import or_nan, working
from pureopt.constraints._simplex import OnSimplex, floor


@final
@dataclass(frozen=True)
class SimplexStickBreaking(OnSimplex):
    r"""Probability vectors by breaking pieces off a stick of length one.

    .. math::
        z_i = \operatorname{sigmoid}(x_i - \log(K - i)), \qquad
        p_i = z_i \prod_{j < i} (1 - z_j), \qquad
        x_i = \log p_i - \log \frac{\sum_{j > i} p_j}{K - i}

    ``x`` has ``K - 1`` entries; zero gives equal probabilities. The entries are not
    alike: the first has the say over all that follow, which optimizers feel; prefer
    :class:`Simplex` unless the order means something. The tails of the sum are added up
    from the end, and products are sums of logarithms, so that no entry loses digits to
    larger ones. About zeros in ``p`` see :meth:`right_inverse`.

    References:
        Halmos (1944) (random alms). Stan Development Team (2024), *Reference Manual*,
        section "Simplex transforms" (the shift by ``log(K - i)``).

    Example:
        >>> import torch
        >>> c, x = SimplexStickBreaking(), torch.full((3,), 20.0)
        >>> c.right_inverse(c.forward(x))
        tensor([20., 20., 20.])
    """

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where the last entry may leave the normal numbers; it is feasible beyond.

        ``(-log floor - log K) / (K - 1)``: the last entry is a product of ``K - 1``
        pieces, of which piece ``i`` is at least ``exp(-max|x|) / (1 + 1 / (K - i))``.
        """
        return max(-math.log(floor(dtype)) - math.log(n), 0.0) / max(n - 1, 1)

    def forward(
        self, x: Float[Tensor, "*batch K-1"], static: Any = ()
    ) -> Float[Tensor, "*batch K"]:
        """The probabilities; see the class."""
        del static
        VECTOR.require("SimplexStickBreaking.forward(x)", x)
        taken, left = _pieces(working(x))
        # The softmax divides by a sum that is one up to rounding error.
        return _log_probabilities(taken, left).softmax(-1).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch K"], static: Any = ()
    ) -> Float[Tensor, "*batch K-1"]:
        """The logits of the pieces, NaN off the simplex.

        An entry below the smallest normal number counts as that number, hence a zero
        comes back to rounding error, from an ``x`` where the gradient vanishes.
        """
        del static
        self._require("right_inverse", y)
        p = working(y).clamp(min=floor(y.dtype))
        tails = p[..., 1:].flip(-1).cumsum(-1).flip(-1)
        x = p[..., :-1].log() - tails.log() + _shift(tails)
        return or_nan(self.check(y), x, 1).to(y.dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch K-1"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`\tfrac12 \log K + \sum_{i<K} (\log p_i + \log(1 - z_i))`."""
        del static
        VECTOR.require("SimplexStickBreaking.log_abs_det(x)", x)
        taken, left = _pieces(working(x))
        logs = _log_probabilities(taken, left)[..., :-1]
        volume = math.log(x.shape[-1] + 1) / 2  # the simplex is tilted in its space
        return ((logs + left).sum(-1) + volume).to(x.dtype)


def _pieces(x: Tensor) -> tuple[Tensor, Tensor]:
    """``log z`` and ``log(1 - z)``."""
    logits = torch.stack([x - _shift(x), torch.zeros_like(x)], -1)
    taken, left = logits.log_softmax(-1).unbind(-1)
    return taken, left


def _log_probabilities(taken: Tensor, left: Tensor) -> Tensor:
    """The logarithms of the pieces times what was left before them."""
    return F.pad(taken, (0, 1)) + F.pad(left.cumsum(-1), (1, 0))


def _shift(x: Tensor) -> Tensor:
    """``log(K - i)`` for ``i`` from 1 to ``K - 1``."""
    d = x.shape[-1]
    return torch.arange(d, 0, -1, dtype=x.dtype, device=x.device).log()
