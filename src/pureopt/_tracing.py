"""What a compiler needs that eager code does not."""

from __future__ import annotations

import torch
from torch import Tensor

from pureopt._stand_in import StandIn


def as_traced(constant: Tensor, by: Tensor | StandIn) -> Tensor:
    """``constant``; while it compiles, as traced as ``by``, which is broadcast to it.

    A compiled ``vmap(jacfwd)`` of torch 2.13 refuses a product of a tensor that depends
    on the variable and one that does not.
    """
    if not torch.compiler.is_compiling() or isinstance(by, StandIn):
        return constant
    nowhere = torch.zeros_like(by, dtype=torch.bool)
    return torch.where(nowhere, by.to(constant.dtype), constant)
