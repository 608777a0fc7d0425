"""Trees: order, matching by keys, raveling, state dicts, and errors with paths."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from torch import nn

from pureopt import TreeError, from_state_dict, to_state_dict
from pureopt._tree import (
    check_like,
    check_params,
    ravel,
    tree_flatten,
    tree_items,
    tree_leaves,
    tree_map,
    tree_match,
    tree_paths,
    tree_select,
    tree_unflatten,
    unravel,
)
from tests.strategies import Pair, cases

ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)


def test_dicts_keep_their_order_after_garbage_collection():
    """In a new process, where nothing else holds the order open; it ends in silence."""
    code = """
import gc
import pureopt
from pureopt._tree import tree_leaves, tree_paths
import torch
tree = {"z": torch.tensor(0.0), "a": {"y": torch.tensor(1.0), "b": torch.tensor(2.0)}}
for _ in range(3):
    gc.collect()
    assert [float(leaf) for leaf in tree_leaves(tree)] == [0, 1, 2]
    assert tree_paths(tree) == ["z", "a.y", "a.b"]
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_paths_are_dotted_and_name_fields_keys_and_positions():
    tree = {"layer": [Pair(ONE, (TWO,))], "b": OrderedDict(x=ONE)}
    assert tree_paths(tree) == ["layer.0.first", "layer.0.second.0", "b.x"]
    assert tree_paths(ONE) == [""]
    assert tree_items(tree)[1] == ("layer.0.second.0", TWO)


@given(case=cases())
def test_flattening_and_unflattening_is_the_identity(case):
    tree = case.fill()
    leaves, structure = tree_flatten(tree)
    again = tree_unflatten(structure, leaves)
    assert tree_flatten(again)[1] == structure
    assert all(a is b for a, b in zip(tree_leaves(again), leaves, strict=True))


@given(case=cases())
def test_unravel_inverts_ravel(case):
    tree = case.fill()
    vector = ravel(tree)
    assert vector.dim() == 1
    again = unravel(vector, tree)
    for a, b in zip(tree_leaves(again), tree_leaves(tree), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_raveling_has_the_order_of_the_modules_parameters():
    gc.collect()
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1, bias=False))
    params = {name: p.detach() for name, p in module.named_parameters()}
    want = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert torch.equal(ravel(params), want)


def test_a_vector_of_another_size_is_refused():
    with pytest.raises(TreeError, match="hold the 3 numbers of `like`, got 2"):
        unravel(torch.ones(2), {"a": torch.ones(3)})


def test_raveling_takes_the_widest_dtype():
    tree = (torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64))
    assert ravel(tree).dtype == torch.float64
    assert ravel(tree, torch.float32).dtype == torch.float32


def test_the_first_tree_gives_the_order_of_the_keys():
    first = {"b": ONE, "a": TWO}
    second = {"a": torch.tensor(20.0), "b": torch.tensor(10.0)}
    total = tree_map(torch.add, first, second)
    assert list(total) == ["b", "a"]
    assert float(total["b"]) == 11
    assert [float(leaf) for leaf in tree_match(second, first)] == [10, 20]


def test_a_mask_chooses_leaf_by_leaf():
    yes, no = {"a": ONE, "b": TWO}, {"a": TWO, "b": ONE}
    assert tree_select(torch.tensor(True), yes, no) == yes
    assert tree_select(torch.tensor(False), yes, no) == no


@given(case=cases())
def test_a_state_dict_loads_by_name_in_any_order(case):
    tree = {"w": case.fill()}
    saved = to_state_dict(tree)
    backwards = {key: saved[key] for key in reversed(saved)}
    loaded = from_state_dict(backwards, tree_map(torch.zeros_like, tree))
    assert tree_flatten(loaded)[1] == tree_flatten(tree)[1]
    for a, b in zip(tree_leaves(loaded), tree_leaves(tree), strict=True):
        assert torch.equal(a, b)


def test_a_state_dict_takes_the_dtype_of_the_reference():
    loaded = from_state_dict({"w": torch.ones(2).double()}, {"w": torch.zeros(2)})
    assert loaded["w"].dtype == torch.float32


LIKE = {"layer": {"w": torch.zeros(2, 3), "b": torch.zeros(3)}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"layer": {"w": torch.zeros(2, 3)}}, "got no 'layer.b'."),
        (
            {"layer": {"w": torch.zeros(2, 3), "b": torch.zeros(3), "c": ONE}},
            "got an unknown 'layer.c'.",
        ),
        (
            {"layer": {"W": torch.zeros(2, 3), "b": torch.zeros(3)}},
            "got no 'layer.w' and an unknown 'layer.W'.",
        ),
        ({}, "got no 'layer.w' and 1 more."),
        (
            {"layer": {"w": torch.zeros(3, 2), "b": torch.zeros(3)}},
            (
                "must have the shapes of `params`, got (3, 2) at 'layer.w', "
                "where `params` has (2, 3)."
            ),
        ),
        (
            {"layer": {"w": torch.zeros(2, 3), "b": None}},
            (
                "got `NoneType` at 'layer.b'. A frozen leaf needs a zero gradient "
                "(`torch.zeros_like`)."
            ),
        ),
        (
            {"layer": {"w": torch.zeros(2, 3), "b": 0.0}},
            "got `float` at 'layer.b'. Every leaf must be a tensor.",
        ),
    ],
    ids=["missing", "extra", "renamed", "empty", "shape", "none", "number"],
)
def test_a_tree_that_does_not_match_is_named_by_its_leaf(tree, message):
    with pytest.raises(TreeError) as caught:
        check_like("f(grads=...)", tree, LIKE)
    assert str(caught.value).startswith("`f(grads=...)` must have the ")
    assert str(caught.value).endswith(message)


def test_other_containers_with_the_same_keys_do_not_match():
    with pytest.raises(TreeError, match="other containers with the same keys"):
        check_like("f(grads=...)", (ONE, TWO), [ONE, TWO])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "must hold at least one tensor, got an empty tree."),
        (
            {"w": ONE, "n": [torch.ones((), dtype=torch.int64)]},
            (
                "must hold only floating-point tensors, got a tensor of dtype torch.int64 "
                "at 'n.0'. Keep such tensors outside `params` (in buffers, or closed over), "
                "or convert them with `.float()`."
            ),
        ),
        (
            {"w": None},
            "got `NoneType` at 'w'. Leave absent parts out, or put `()` there.",
        ),
        (
            torch.ones(1, dtype=torch.complex64),
            (
                "got a tensor of dtype torch.complex64. "
                "Store it as `torch.view_as_real(leaf)`."
            ),
        ),
        ({"w": 1.0}, "got `float` at 'w'. Nodes are tuple, list, dict"),
        ({"w": {1, 2}}, "got `set` at 'w'. Nodes are tuple, list, dict"),
    ],
    ids=["empty", "integer", "none", "complex", "number", "set"],
)
def test_what_is_no_tree_of_parameters_is_refused(tree, message):
    with pytest.raises(TreeError) as caught:
        check_params("init(params=...)", tree)
    assert message in str(caught.value)


def test_a_state_dict_with_wrong_keys_is_refused():
    with pytest.raises(TreeError, match=r"got no 'w' and an unknown 'v'"):
        from_state_dict({"v": ONE}, {"w": ONE})


@pytest.mark.parametrize(
    "tree", [{"a.b": ONE, "a": {"b": TWO}}, {0: ONE, "0": TWO}], ids=["dot", "number"]
)
def test_two_leaves_of_one_path_are_no_state_dict(tree):
    """One of them would be lost in silence."""
    with pytest.raises(TreeError, match="one path for each leaf, got two leaves at"):
        to_state_dict(tree)


@pytest.mark.parametrize(
    ("tree", "got"),
    [
        (torch.zeros(3), "got (3,), where `params` has (2,)."),
        ([ONE], "got `list`. Every leaf must be a tensor."),
    ],
    ids=["shape", "type"],
)
def test_a_bare_tensor_has_no_path_to_name(tree, got):
    with pytest.raises(TreeError) as caught:
        check_like("f(grads=...)", tree, torch.zeros(2))
    assert str(caught.value).endswith(got)


def test_raveling_never_shares_memory():
    leaf = torch.ones(3)
    assert ravel(leaf).data_ptr() != leaf.data_ptr()
