"""What the laws need to know about an operator on functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class OperatorRow:
    """One use of a public operator, as a pure function of tensors.

    Attributes:
        name: The id of the row.
        public: The name below ``pureopt.derivatives``.
        make: ``make(dtype) -> (function, args)``: a small use of the operator. ``args``
            are trees of tensors, in random values from a fixed seed; the function returns
            a tree of tensors.
        compiled: It traces under ``torch.compile(fullgraph=True)``.
        vmaps: It runs under ``vmap`` over all of ``args``, stacked.
        differentiable: The sum of its outputs has a gradient with respect to the floating
            leaves of ``args``, and forward and reverse mode agree.
        meta: It runs on the meta device.
    """

    name: str
    public: str
    make: Callable[[torch.dtype], tuple[Callable[..., Any], tuple[Any, ...]]]
    compiled: bool = True
    vmaps: bool = True
    differentiable: bool = True
    meta: bool = True


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
