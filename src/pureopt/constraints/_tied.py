"""Tensors with equal entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from pureopt._errors import HyperparameterError, told
from pureopt.constraints._domains import Domain
from pureopt.constraints._linear import Groups, TiedSubspace, structured


@final
@dataclass(frozen=True, eq=False, repr=False)
class Tied(TiedSubspace):
    r"""Tensors whose entries are equal within groups.

    .. math:: Y_e = x_k / \sqrt{m_k}, \qquad e \in \text{group } k

    with :math:`m_k` entries in group :math:`k`. ``x`` has one number per group, in the
    order of their ids. Entries with a negative id are zero.

    Args:
        groups: An integer tensor with the event shape of the values, the id of the
            group of each entry; any integers, not only consecutive ones.

    Raises:
        HyperparameterError: If ``groups`` is not an integer tensor, or is empty or 0-d.

    Example:
        >>> import torch
        >>> c = Tied(torch.tensor([[0, 1, 0], [1, 0, -1], [0, -1, 7]]))
        >>> c.forward(torch.tensor([2.0, 0.0, 3.0]))
        tensor([[1., 0., 1.],
                [0., 1., 0.],
                [1., 0., 3.]])
        >>> c
        Tied(groups=<3 groups of entries of shape (3, 3)>)
    """

    groups: Int[Tensor, "*event"]
    _groups: Groups = field(init=False)

    def __post_init__(self) -> None:
        ids = self.groups
        kinds = (torch.int8, torch.int16, torch.int32, torch.int64)
        if not isinstance(ids, Tensor) or ids.dtype not in kinds or not ids.dim():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                "Tied(groups=...)",
                "be a signed integer tensor of the shape of the values",
                told(ids),
            )
        if not ids.numel():
            raise HyperparameterError("Tied(groups=...)", "have entries", told(ids))
        object.__setattr__(self, "groups", ids.clone())
        object.__setattr__(self, "_groups", _number(ids.flatten()))

    def __repr__(self) -> str:
        """How many groups there are."""
        count, shape = len(self._groups.sizes), tuple(self.groups.shape)
        return f"Tied(groups=<{count} groups of entries of shape {shape}>)"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the group ids."""
        return tuple(self.groups.shape)

    @property
    def codomain(self) -> Domain:
        """Tensors with equal entries."""
        return structured("a tensor with groups of equal entries", self.shape)

    @property
    def rule(self) -> str:
        """The largest deviation from the mean of a group."""
        return "max|Y - the mean of its group|"

    def degrees(self, shape: Sequence[int]) -> int:
        """The number of groups."""
        del shape
        return len(self._groups.sizes)

    def groups_of(self, shape: Sequence[int], device: torch.device) -> Groups:
        """In the order of the ids."""
        del shape
        return Groups(*(t.to(device) for t in self._groups))


def _number(ids: Int[Tensor, "entries"]) -> Groups:
    """Consecutive numbers for the ids that are not negative."""
    free = ids >= 0
    _, inverse, sizes = ids[free].unique(return_inverse=True, return_counts=True)
    index = torch.zeros_like(ids, dtype=torch.int64).masked_scatter(free, inverse + 1)
    places = torch.arange(len(ids), device=ids.device)
    first = places.new_full((len(sizes) + 1,), len(ids))
    return Groups(index, first.scatter_reduce(0, index, places, "amin")[1:], sizes)
