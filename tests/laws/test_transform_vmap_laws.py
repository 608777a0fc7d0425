"""A step under vmap is the loop over its lanes, also with a learning rate per lane."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.func import vmap

from pureopt._tree import tree_leaves, tree_map
from tests.objectives import run
from tests.strategies import cases
from tests.tables import TRANSFORMS

LANES = 3


@pytest.mark.parametrize("row", TRANSFORMS, ids=lambda row: row.name)
@given(case=cases())
def test_vmap_is_the_loop(row, case):
    def two_steps(lr, params):
        transform = row.make(lr)
        params, state = run(transform, params, 2)
        return params, state, transform.eval_params(params, state)

    lrs = torch.tensor([0.01, 0.1, 0.3])
    lanes = [case.fill(salt=salt) for salt in range(LANES)]
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *lanes)
    batched = vmap(two_steps)(lrs, stacked)
    for i, lane in enumerate(lanes):
        alone = two_steps(lrs[i], lane)
        for a, b in zip(tree_leaves(alone), tree_leaves(batched), strict=True):
            assert a.dtype == b.dtype
            close_lanes(a, b[i])


def close_lanes(alone, lane):
    if not alone.is_floating_point():
        assert torch.equal(alone, lane)
        return
    # The same operations in another memory layout: sums may run in another order (a few
    # ulp of float32 in the norm and in the objective), which two steps amplify by less
    # than 8; in half precision one rounding may then fall to the other side.
    eps = 64 * torch.finfo(torch.float32).eps + 2 * torch.finfo(alone.dtype).eps
    scale = float(alone.abs().max()) if alone.numel() else 0.0
    torch.testing.assert_close(lane, alone, rtol=eps, atol=eps * scale)


@pytest.mark.parametrize(
    "row", [row for row in TRANSFORMS if row.has_lr], ids=lambda row: row.name
)
def test_one_point_under_many_learning_rates(row):
    """A sweep: the parameters and the state are shared, only the rate has lanes."""
    params = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor(0.5)}
    lrs = torch.tensor([0.0, 0.1, 0.2])
    state = row.make(0.1).init(params)

    def one(lr):
        return row.make(lr).step(params, state, params)[0]

    swept = vmap(one)(lrs)
    assert torch.equal(swept["w"][0], params["w"])
    moves = [(swept["w"][i] - params["w"]) for i in range(3)]
    # Every row is linear in its learning rate at one step: twice the rate, twice the
    # move, up to the rounding of the parameters (eps * 2 for |w| <= 2).
    torch.testing.assert_close(moves[2], 2 * moves[1], rtol=0, atol=1e-6)
    assert moves[1].abs().min() > 0
