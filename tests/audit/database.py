"""torch's own database of operations, each with arguments to call it with."""

from __future__ import annotations

import importlib
import random
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pureopt._tree import tree_flatten, tree_leaves, tree_unflatten

# Samples of one operation, from the first to the last of those in the database.
SAMPLES = 4
# Numbers in a sample: differences of the sums of more of them are too noisy to tell.
LARGEST = 100_000


def load() -> dict[str, Any]:
    """The operations that have derivatives in float64, by name."""
    # The base class of torch's test cases asks for a package that is of no use here.
    stand_in: Any = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    sys.modules.setdefault("expecttest", stand_in)
    methods = importlib.import_module(
        "torch.testing._internal.common_methods_invocations"
    )
    return {
        " ".join(filter(None, (op.name, op.variant_test_name))): op
        for op in methods.op_db
        if op.supports_autograd and torch.float64 in op.dtypes
    }


def cases(op: Any) -> Iterator[tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]:
    """Functions of the differentiable arguments of an operation, and those arguments."""
    _seed()
    samples = list(op.sample_inputs("cpu", torch.float64, requires_grad=True))
    found = [case for sample in samples if (case := _case(op, sample))]
    places = np.linspace(0, len(found) - 1, min(SAMPLES, len(found)))
    yield from (found[round(place)] for place in places)


def _case(op: Any, sample: Any):
    tree = (sample.input, sample.args, sample.kwargs)
    leaves, structure = tree_flatten(tree)
    moving = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
        and leaf.requires_grad
        and leaf.dtype == torch.float64
        and leaf.layout == torch.strided
        and leaf.numel()
    ]
    if not moving or sum(leaves[i].numel() for i in moving) > LARGEST:
        return None
    leaves = [_copied(leaf) for leaf in leaves]

    def f(*values: torch.Tensor) -> Any:
        mixed = [_copied(leaf) for leaf in leaves]
        for i, value in zip(moving, values, strict=True):
            mixed[i] = value
        first, args, kwargs = tree_unflatten(structure, mixed)
        # Dropout and its like are functions once they draw the same numbers.
        _seed()
        y = op.gradcheck_wrapper(op.get_op(), first, *args, **kwargs)
        return tree_leaves(sample.output_process_fn_grad(y))

    start = tuple(leaves[i] for i in moving)
    try:
        seen = f(*(leaf.clone().requires_grad_() for leaf in start))
    except Exception:  # noqa: BLE001 (a sample that shows how it fails)
        return None
    # Not those that are there to be saved, such as the statistics of a batch norm.
    kept = [i for i, y in enumerate(seen) if getattr(y, "requires_grad", False)]
    return (lambda *values: _chosen(f(*values), kept), start) if kept else None


def _chosen(leaves: list[Any], kept: list[int]) -> list[Any]:
    return [leaves[i] for i in kept]


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the one the database draws from)
    random.seed(0)
