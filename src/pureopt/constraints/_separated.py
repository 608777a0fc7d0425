"""Vectors whose entries stay apart and keep their order, whichever it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pureopt._errors import ConstraintError, told
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._ordered import Ordered
from pureopt.constraints._positive import check_margin

SEPARATED = Domain(
    "a vector of numbers that are some gap apart",
    "(..., k)",
    1,
    made_by="Separated()",
    inside=(VECTOR,),
)


@final
@dataclass(frozen=True)
class Separated(Constraint):
    r"""Vectors whose entries are pairwise some gap apart, in the order they are in.

    .. math:: y_i = z_{r_i}, \qquad z = \operatorname{Ordered}(x)

    with the ranks :math:`r` as static data, int64 of shape ``(*batch, k)``, counted from
    zero. The set falls apart into one piece per order: :meth:`bind` says which, and no
    change of ``x`` leaves it, hence entries never cross and :meth:`right_inverse` gives
    them back in their places. Other orders have no free value in that chart. With a
    ``min_gap`` of zero every finite vector is in the set; ties keep the order of their
    places. ``x`` has as many entries as ``y``; without ``static`` the map is
    :class:`Ordered`.

    Args:
        min_gap: The smallest distance of two entries, at least zero.

    Raises:
        HyperparameterError: If ``min_gap`` is negative or not finite.

    Example:
        >>> import torch
        >>> c, y = Separated(min_gap=0.5), torch.tensor([3.0, -1.0, 2.0])
        >>> ranks = c.bind(y)
        >>> ranks
        tensor([2, 0, 1])
        >>> x = c.right_inverse(y, ranks)
        >>> torch.allclose(c.forward(x, ranks), y)
        True
        >>> c.forward(x - 100, ranks)
        tensor([-97.5000, -98.5000, -98.0000])
    """

    min_gap: float = 0.0

    def __post_init__(self) -> None:
        check_margin("Separated(min_gap=...)", self.min_gap)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``k``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Vectors of numbers that are some gap apart."""
        return SEPARATED

    @property
    def rule(self) -> str:
        """How much the two closest entries are too close."""
        return f"{self.min_gap:g} - min|Y[i] - Y[j]|"

    def dim(self, shape: Sequence[int]) -> int:
        """``k``."""
        self._require_shape("dim", shape)
        return shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """The sums of ``n`` gaps must not overflow."""
        return self._ordered().radius(n, dtype)

    def bind(self, y: Float[Tensor, "*batch k"]) -> Int64[Tensor, "*batch k"]:
        """The rank of each entry; of equal ones, the first has the lowest."""
        VECTOR.require("Separated.bind(y)", y)
        return y.argsort(dim=-1, stable=True).argsort(dim=-1)

    def forward(
        self, x: Float[Tensor, "*batch k"], static: Any = ()
    ) -> Float[Tensor, "*batch k"]:
        """The vector; see the class."""
        VECTOR.require("Separated.forward(x)", x)
        _check_ranks("Separated.forward(static=...)", static, x)
        return _pick(self._ordered().forward(x), static)

    def right_inverse(
        self, y: Float[Tensor, "*batch k"], static: Any = ()
    ) -> Float[Tensor, "*batch k"]:
        """The free vector; NaN where entries are too close or in another order."""
        VECTOR.require("Separated.right_inverse(y)", y)
        _check_ranks("Separated.right_inverse(static=...)", static, y)
        order = static.argsort(dim=-1) if isinstance(static, Tensor) else static
        return self._ordered().right_inverse(_pick(y, order))

    def violation(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """How much the two closest entries are too close, at least zero."""
        VECTOR.require("Separated.check(y)", y)
        return self._ordered().violation(y.sort(dim=-1).values)

    def tolerance(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """``10 eps`` times the largest entry."""
        return self._ordered().tolerance(y)

    def rounding(self, x: Any, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """That of :class:`Ordered`."""
        return self._ordered().rounding(x, y.sort(dim=-1).values)

    def project(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """Isotonic regression of the sorted entries, in their places.

        No other order has a nearer point, by the rearrangement inequality.
        """
        VECTOR.require("Separated.project(y)", y)
        order = y.argsort(dim=-1, stable=True)
        return _pick(self._ordered().project(_pick(y, order)), order.argsort(dim=-1))

    def log_abs_det(
        self, x: Float[Tensor, "*batch k"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        """That of :class:`Ordered`: a permutation keeps volumes."""
        del static
        return self._ordered().log_abs_det(x)

    def _ordered(self) -> Ordered:
        return Ordered(self.min_gap)


def _pick(x: Tensor, places: Any) -> Tensor:
    """The entries at some places of each vector; ``x`` itself without places."""
    return x.gather(-1, places) if isinstance(places, Tensor) else x


def _check_ranks(where: str, ranks: Any, x: Tensor) -> None:
    """Raise unless the ranks are absent or an int64 per number."""
    if isinstance(ranks, tuple) and not ranks:
        return
    if isinstance(ranks, Tensor) and (ranks.shape, ranks.dtype) == (
        x.shape,
        torch.int64,
    ):
        return
    raise ConstraintError(
        where,
        f"be a tensor of int64 ranks of shape {tuple(x.shape)}",
        told(ranks),
        "Take it from `bind`; under vmap, map over the free value and the static alike.",
    )
