"""How often a function is called, and how large the tensors are that it makes."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pureopt._tree import tree_leaves


def counted(f):
    """The function, and a list that grows by one with each of its calls."""
    calls = []

    def counting(*args):
        calls.append(0)
        return f(*args)

    return counting, calls


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out
