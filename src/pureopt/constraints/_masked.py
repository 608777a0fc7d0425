"""Tensors with entries fixed at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pureopt._errors import HyperparameterError, told
from pureopt.constraints._domains import Domain
from pureopt.constraints._linear import SparseSubspace, structured


@final
@dataclass(frozen=True, eq=False, repr=False)
class Masked(SparseSubspace):
    """Tensors that are zero where a mask is False.

    ``x`` has the entries where the mask is True, in the order of the flattened tensor.

    Args:
        mask: A boolean tensor with the event shape of the values; copied.

    Raises:
        HyperparameterError: If ``mask`` is not a boolean tensor, or is empty or 0-d.

    Example:
        >>> import torch
        >>> c = Masked(torch.tensor([[True, False], [True, True]]))
        >>> c.forward(torch.tensor([1.0, 2.0, 3.0]))
        tensor([[1., 0.],
                [2., 3.]])
        >>> c
        Masked(mask=<3 of the 4 entries of shape (2, 2)>)
    """

    mask: Bool[Tensor, "*event"]
    _positions: Int[Tensor, "d"] = field(init=False)

    def __post_init__(self) -> None:
        mask = self.mask
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not mask.dim():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                "Masked(mask=...)",
                "be a boolean tensor of the shape of the values",
                told(mask),
            )
        if not mask.numel():
            raise HyperparameterError("Masked(mask=...)", "have entries", told(mask))
        object.__setattr__(self, "mask", mask.clone())
        object.__setattr__(self, "_positions", mask.flatten().nonzero()[:, 0])

    def __repr__(self) -> str:
        """How many entries are free."""
        mask = self.mask
        counts = f"{len(self._positions)} of the {mask.numel()} entries"
        return f"Masked(mask=<{counts} of shape {tuple(mask.shape)}>)"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the mask."""
        return tuple(self.mask.shape)

    @property
    def codomain(self) -> Domain:
        """Tensors that are zero outside the mask."""
        return structured("a tensor that is zero outside a mask", self.shape)

    @property
    def rule(self) -> str:
        """The largest entry that should be zero."""
        return "max|Y| outside the mask"

    def degrees(self, shape: Sequence[int]) -> int:
        """The number of True entries."""
        del shape
        return len(self._positions)

    def positions(self, shape: Sequence[int], device: torch.device) -> Int[Tensor, "d"]:
        """In the order of the flattened tensor."""
        del shape
        return self._positions.to(device)
