"""An objective on any tree, with its gradient in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pureopt._tree import tree_leaves, tree_map


def _stiffness(x: Tensor) -> Tensor:
    """Unequal curvatures, so that no coordinate behaves as another."""
    index = torch.arange(x.numel(), dtype=x.dtype, device=x.device)
    return (1 + index).reshape(x.shape)


def bowl(params: Any) -> Tensor:
    """A smooth convex function with its minimum at zero."""
    terms = [
        (_stiffness(x) * x * x / 2 + x * x * x * x / 8).sum()
        for x in tree_leaves(params)
    ]
    return sum(terms[1:], start=terms[0])


def bowl_grads(params: Any) -> Any:
    """Its gradient, without nesting another level of autograd."""
    return tree_map(lambda x: _stiffness(x) * x + x * x * x / 2, params)


def run(transform: Any, params: Any, steps: int, state: Any = None) -> tuple[Any, Any]:
    """``steps`` steps of the transform down the bowl."""
    state = transform.init(params) if state is None else state
    for _ in range(steps):
        params, state = transform.step(
            params, state, bowl_grads(params), value=bowl(params)
        )
    return params, state
