"""What every transform does with the data it is given, on any tree."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode

from pureopt import from_state_dict, to_state_dict
from pureopt._tree import tree_flatten, tree_items, tree_leaves, tree_map
from tests.objectives import bowl, bowl_grads, run
from tests.strategies import Case, Leaf, cases
from tests.tables import TRANSFORMS

each_row = pytest.mark.parametrize("row", TRANSFORMS, ids=lambda row: row.name)
SMALL = Case({"w": Leaf((2, 3), torch.float32), "b": Leaf((), torch.float32)}, 1, 1.0)


def same(a, b):
    """Bit-equal trees of one structure."""
    assert tree_flatten(a)[1] == tree_flatten(b)[1]
    for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def signature(tree):
    return [(path, leaf.shape, leaf.dtype) for path, leaf in tree_items(tree)]


@each_row
@given(case=cases())
def test_a_step_writes_to_no_input(row, case):
    transform = row.make(torch.tensor(0.1))
    params, grads = case.fill(), case.fill(salt=1)
    value = bowl(params)
    state = transform.init(params)
    inputs = tree_leaves((params, grads, value, state, row.make(torch.tensor(0.1))))
    inputs = [leaf for leaf in inputs if isinstance(leaf, torch.Tensor)]
    before = [(leaf._version, leaf.clone()) for leaf in inputs]
    new, new_state = transform.step(params, state, grads, value=value)
    transform.eval_params(new, new_state)
    transform.restart(new_state)
    for leaf, (version, copy) in zip(inputs, before, strict=True):
        assert leaf._version == version
        assert torch.equal(leaf, copy)


@each_row
@given(case=cases())
def test_the_same_inputs_give_the_same_bits(row, case):
    transform = row.make(0.1)
    same(run(transform, case.fill(), 3), run(transform, case.fill(), 3))


@each_row
@given(case=cases())
def test_trees_shapes_and_dtypes_are_kept(row, case):
    transform = row.make(0.1)
    params = case.fill()
    state = transform.init(params)
    new, new_state = transform.step(
        params, state, case.fill(salt=1), value=bowl(params)
    )
    assert tree_flatten(new)[1] == tree_flatten(params)[1]
    assert signature(new) == signature(params)
    assert signature(transform.eval_params(new, new_state)) == signature(params)
    assert tree_flatten(new_state)[1] == tree_flatten(state)[1]
    assert signature(new_state) == signature(state)


@each_row
@given(case=cases())
def test_a_step_moves_and_stays_finite(row, case):
    params = case.fill()
    new, state = run(row.make(0.1), params, 2)
    finite = [leaf.isfinite().all() for leaf in tree_leaves((new, state))]
    assert all(finite)
    moved = zip(tree_leaves(new), tree_leaves(params), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


@pytest.mark.parametrize(
    "row", [row for row in TRANSFORMS if row.rests], ids=lambda row: row.name
)
@given(case=cases())
def test_zero_gradients_leave_fresh_parameters_where_they_are(row, case):
    transform = row.make(0.1)
    params = case.fill()
    state, now = transform.init(params), params
    for _ in range(2):
        zero = tree_map(torch.zeros_like, params)
        now, state = transform.step(now, state, zero, value=torch.tensor(1.0))
    same(now, params)
    same(transform.eval_params(now, state), params)


@each_row
@given(case=cases(), data=st.data())
def test_the_order_of_keys_does_not_matter(row, case, data):
    """Gradients may come in another order, and a reordered problem is the same one."""
    transform = row.make(0.1)
    names = data.draw(st.permutations(["x", "y", "z"]))
    salts = {"x": 0, "y": 1, "z": 2}
    params = {name: case.fill(salt=salt) for name, salt in salts.items()}
    grads = {name: case.fill(salt=salt + 9) for name, salt in salts.items()}
    shuffled = {name: params[name] for name in names}
    shuffled_grads = {name: grads[name] for name in names}
    value = bowl(params)
    state = transform.init(params)
    new, _ = transform.step(params, state, grads, value=value)
    by_key, _ = transform.step(params, state, shuffled_grads, value=value)
    same(new, by_key)
    moved, _ = transform.step(
        shuffled, transform.init(shuffled), shuffled_grads, value=value
    )
    assert list(moved) == names
    if row.leafwise:
        same(new, {name: moved[name] for name in salts})
        return
    for name in salts:
        for a, b in zip(tree_leaves(new[name]), tree_leaves(moved[name]), strict=True):
            # The joint norm is summed in another order: up to 12 leaves of up to 9
            # elements, each addition half an ulp of float32 apart, and one rounding
            # to the dtype of the leaf.
            close = 12 * torch.finfo(torch.float32).eps + torch.finfo(a.dtype).eps
            torch.testing.assert_close(a, b, rtol=close, atol=close * case.scale)


@each_row
@given(case=cases())
def test_states_own_contiguous_memory(row, case):
    transform = row.make(0.1)
    params = tree_map(lambda p: p.expand(3, *p.shape), case.fill())
    for state in (transform.init(params), vmap(transform.init)(params)):
        leaves = [leaf for leaf in tree_leaves(state) if leaf.numel()]
        assert all(leaf.is_contiguous() for leaf in leaves)
        memory = {leaf.untyped_storage().data_ptr() for leaf in leaves}
        assert len(memory) == len(leaves)
        inputs = {p.untyped_storage().data_ptr() for p in tree_leaves(params)}
        assert not memory & inputs


@each_row
@given(case=cases())
def test_a_run_resumes_from_its_state_dict_bit_by_bit(row, case):
    transform = row.make(0.1)
    half = run(transform, case.fill(), 2)
    saved = to_state_dict(half)
    # As from a file of another library, whose keys come in another order.
    saved = {key: saved[key].clone() for key in sorted(saved)}
    params = case.fill(salt=5)
    loaded = from_state_dict(saved, (params, transform.init(params)))
    same(loaded, half)
    same(run(transform, loaded[0], 2, loaded[1]), run(transform, case.fill(), 4))


@each_row
@given(case=cases())
def test_a_step_reads_no_data(row, case):
    """On the meta device there is none: reading a value would raise."""
    transform = row.make(0.1)
    params = case.fill(device="meta")
    new, state = run(transform, params, 2)
    answer = transform.eval_params(new, transform.restart(state))
    assert all(leaf.is_meta for leaf in tree_leaves((new, state, answer)))
    assert signature(new) == signature(params)


class Counter(TorchDispatchMode):
    """Counts what makes the host wait for the device, or moves data between the two."""

    def __init__(self):
        super().__init__()
        self.waits, self.copies = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        waiting = (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.nonzero.default,
        )
        self.waits += func in waiting
        device = kwargs.get("device")
        if func is torch.ops.aten._to_copy.default and device is not None:
            self.copies += torch.device(device).type != args[0].device.type
        return func(*args, **kwargs)


def test_the_counter_counts():
    with Counter() as counter:
        float(torch.ones(()))
        torch.ones(()).to("meta")
    assert (counter.waits, counter.copies) == (1, 1)


@each_row
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_a_step_never_waits_for_the_device(row, lr):
    transform = row.make(lr)
    params = SMALL.fill()
    state, grads, value = transform.init(params), bowl_grads(params), bowl(params)
    with Counter() as counter:
        params, state = transform.step(params, state, grads, value=value)
        transform.eval_params(params, state)
        transform.restart(state)
    assert (counter.waits, counter.copies) == (0, 0)


@pytest.mark.parametrize(
    "row", [row for row in TRANSFORMS if row.has_lr], ids=lambda row: row.name
)
def test_a_learning_rate_is_a_number_a_tensor_or_a_schedule(row):
    rate = 0.125  # exact in every dtype
    runs = [
        run(row.make(lr), SMALL.fill(), 3)
        for lr in (rate, torch.tensor(rate), lambda step: torch.full_like(step, rate,
                                                              dtype=torch.float32))
    ]  # fmt: skip
    same(runs[0], runs[1])
    same(runs[0], runs[2])
