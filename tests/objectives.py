"""An objective on any tree, with its gradient in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pureopt._tree import tree_leaves, tree_map


def _stiffness(x: Tensor) -> Tensor:
    """Unequal curvatures in (0.5, 1.5], so that no coordinate behaves as another."""
    index = torch.arange(1, x.numel() + 1, dtype=x.dtype, device=x.device)
    return (0.5 + index / max(x.numel(), 1)).reshape(x.shape)


def bowl(params: Any) -> Tensor:
    """Smooth and convex, with its minimum at 0 and bounded slopes.

    The slopes are below 1.5, so that no dtype overflows however far away one starts.
    """
    terms = [
        (_stiffness(x) * ((1 + x * x).sqrt() - 1)).sum() for x in tree_leaves(params)
    ]
    return sum(terms[1:], start=terms[0])


def bowl_grads(params: Any) -> Any:
    """Its gradient, without nesting another level of autograd."""
    return tree_map(lambda x: _stiffness(x) * x / (1 + x * x).sqrt(), params)


def run(transform: Any, params: Any, steps: int, state: Any = None) -> tuple[Any, Any]:
    """``steps`` steps of the transform down the bowl."""
    state = transform.init(params) if state is None else state
    for _ in range(steps):
        params, state = transform.step(
            params, state, bowl_grads(params), value=bowl(params)
        )
    return params, state
