"""The inner product of two trees."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from pureopt._tree import tree_leaves


def inner(a: Any, b: Any) -> Tensor:
    """The sum of ``a * b`` over all entries of all leaves; the trees must match."""
    products = [
        (x * y).sum() for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True)
    ]
    return functools.reduce(torch.add, products)
