"""What every operator on functions does with dtypes, lanes, devices and compilers."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jvp, vmap

from pureopt._tree import tree_leaves, tree_map
from tests.tables import OPERATORS


def rows(**flags):
    chosen = [
        row for row in OPERATORS if all(getattr(row, k) == v for k, v in flags.items())
    ]
    return pytest.mark.parametrize("row", chosen, ids=lambda row: row.name)


def floats(tree):
    return [leaf for leaf in tree_leaves(tree) if leaf.is_floating_point()]


@rows()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_dtype_of_the_input_is_that_of_the_output(row, dtype):
    f, args = row.make(dtype)
    out = floats(f(*args))
    assert out
    assert all(leaf.dtype == dtype for leaf in out)
    assert all(leaf.isfinite().all() for leaf in out)


@rows()
def test_the_input_is_not_written_to(row):
    f, args = row.make(torch.float64)
    before = [(leaf, leaf._version, leaf.clone()) for leaf in tree_leaves(args)]
    f(*args)
    for leaf, version, copy in before:
        assert leaf._version == version
        assert torch.equal(leaf, copy)


@rows(vmaps=True)
def test_a_lane_is_the_call_on_its_input(row):
    f, args = row.make(torch.float64)
    # Lanes of three different inputs: the same numbers, moved.
    moved = [tree_map(lambda a, k=k: _moved(a, k), args) for k in range(3)]
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *moved)
    lanes = vmap(f, randomness="error")(*stacked)
    for k, one in enumerate(moved):
        # The same sums in another order: a few hundred roundings of numbers near one.
        torch.testing.assert_close(
            tree_map(lambda leaf, k=k: leaf[k], lanes), f(*one), rtol=1e-9, atol=1e-11
        )


def _moved(leaf, k):
    return leaf + 0.1 * k * leaf.cos() if leaf.is_floating_point() else leaf


@rows(differentiable=True)
def test_forward_and_reverse_mode_agree_on_it(row):
    f, args = row.make(torch.float64)
    leaves = floats(args)
    generator = torch.Generator().manual_seed(7)
    direction = [
        torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        for leaf in leaves
    ]

    def total(values):
        new = iter(values)
        swapped = tree_map(lambda a: next(new) if a.is_floating_point() else a, args)
        return sum(leaf.sum() for leaf in floats(f(*swapped)))

    _, forward = jvp(total, (leaves,), (direction,))
    reverse = sum(
        (g * d).sum() for g, d in zip(grad(total)(leaves), direction, strict=True)
    )
    assert forward.isfinite()
    torch.testing.assert_close(forward, reverse, rtol=1e-8, atol=1e-10)


@rows(meta=True)
def test_no_data_is_read(row):
    f, args = row.make(torch.float64)
    real = f(*args)
    meta = f(*tree_map(lambda leaf: leaf.to("meta"), args))
    for a, b in zip(tree_leaves(meta), tree_leaves(real), strict=True):
        assert a.device.type == "meta"
        assert a.shape == b.shape
        assert a.dtype == b.dtype


@rows(compiled=True)
@pytest.mark.compile
def test_compiled_is_eager(row):
    f, args = row.make(torch.float64)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), f(*args), rtol=1e-10, atol=1e-12)
