"""A fixed permutation of the entries of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._linear import LinearSubspace


@final
@dataclass(frozen=True)
class Permutation(LinearSubspace):
    r"""Vectors with their entries in another order.

    .. math:: y_i = x_{p_i}

    All finite vectors of the length of ``order`` are in the set.

    Args:
        order: The permutation ``p`` of ``0, ..., n - 1``: integers, or a tensor of them.

    Raises:
        HyperparameterError: If ``order`` is no permutation.

    Example:
        >>> import torch
        >>> c = Permutation((2, 0, 1))
        >>> c.forward(torch.tensor([10.0, 11.0, 12.0]))
        tensor([12., 10., 11.])
        >>> c.right_inverse(torch.tensor([12.0, 10.0, 11.0]))
        tensor([10., 11., 12.])
    """

    order: Sequence[int]
    _order: Int[Tensor, "n"] = field(init=False, repr=False, compare=False)
    _inverse: Int[Tensor, "n"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            order = torch.as_tensor(self.order, device="cpu")
        except (TypeError, ValueError, RuntimeError):  # no numbers, or too many depths
            order = torch.empty(0, device="cpu")
        count = torch.arange(order.numel(), device="cpu")
        kinds = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        whole = order.dtype in kinds and order.dim() == 1 and len(order) > 0
        if not whole or not torch.equal(order.long().sort().values, count):
            raise HyperparameterError(
                "Permutation(order=...)",
                "have each of 0, ..., n - 1 once, n >= 1",
                repr(self.order),
            )
        object.__setattr__(self, "order", tuple(int(i) for i in order))
        object.__setattr__(self, "_order", order.to(torch.int64, copy=True))
        object.__setattr__(self, "_inverse", order.argsort())

    @property
    def codomain(self) -> Domain:
        """Vectors."""
        return VECTOR

    @property
    def rule(self) -> str:
        """Zero for all finite vectors."""
        return "max|Y - Y|, NaN where an entry is not finite"

    @property
    def shape(self) -> tuple[int]:
        """The length of the order."""
        return (len(self.order),)

    def degrees(self, shape: Sequence[int]) -> int:
        """All entries."""
        return shape[-1]

    def embed(
        self, x: Float[Tensor, "*batch n"], shape: Sequence[int]
    ) -> Float[Tensor, "*batch n"]:
        """Gather."""
        del shape
        return x[..., self._order.to(x.device)]

    def adjoint(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Gather with the inverse permutation."""
        return y[..., self._inverse.to(y.device)]
