"""A compiled step is the eager one, in one graph, and is compiled once."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pureopt._tree import tree_leaves
from tests.objectives import bowl, bowl_grads, run
from tests.strategies import Case, Leaf
from tests.tables import TRANSFORMS

pytestmark = pytest.mark.compile
CASE = Case(
    {"w": Leaf((3, 2), torch.float32), "b": [Leaf((3,), torch.bfloat16)]}, 2, 1.0
)


@pytest.mark.parametrize("row", TRANSFORMS, ids=lambda row: row.name)
def test_compiled_is_eager_and_learning_rates_never_recompile(row):
    def evaluate_and_step(lr, params, state):
        transform = row.make(lr)
        return transform.step(params, state, bowl_grads(params), value=bowl(params))

    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(evaluate_and_step, backend=backend, fullgraph=True)
    first = CASE.fill()
    compiled(torch.tensor(0.5), first, row.make(0.5).init(first))
    # Once per call of the backend; the compiler may restart within one compilation.
    graphs = backend.frame_count
    assert graphs >= 1
    for lr in (0.3, 0.1, 0.03):
        rate, params = torch.tensor(lr), CASE.fill()
        state = row.make(rate).init(params)
        for _ in range(5):
            params, state = compiled(rate, params, state)
        eager = run(row.make(rate), CASE.fill(), 5)
        for a, b in zip(tree_leaves((params, state)), tree_leaves(eager), strict=True):
            assert a.dtype == b.dtype
            # The backend runs the same kernels on a graph that may fold constants and
            # turn x / c into x * (1 / c): a few ulp, times 5 steps; bfloat16 leaves
            # round once per step.
            eps = 64 * torch.finfo(torch.float32).eps
            if a.dtype == torch.bfloat16:
                eps = 5 * torch.finfo(torch.bfloat16).eps
            torch.testing.assert_close(a, b, rtol=eps, atol=eps)
    assert backend.frame_count == graphs
