"""What every estimator does with batches, lanes, devices and compilers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jacfwd, vmap

from tests.strategies import DTYPES, Case, Leaf
from tests.tables import ESTIMATORS

each_row = pytest.mark.parametrize("row", ESTIMATORS, ids=lambda row: row.name)
inputs = st.builds(
    Case,
    st.builds(
        Leaf,
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
        st.sampled_from(DTYPES),
    ),
    st.integers(0, 2**20),
    st.sampled_from([1e-2, 1.0, 10.0]),
)


@each_row
@given(case=inputs)
def test_a_batch_is_its_samples(row, case):
    estimate, x = row.make(), case.fill()
    batch = estimate(x)
    assert batch.shape == x.shape[:-1]
    assert batch.dtype == x.dtype
    # The same sums along the last dimension, of at most 5 terms, in another order.
    close = {"rtol": 8 * torch.finfo(x.dtype).eps, "atol": 0}
    torch.testing.assert_close(vmap(vmap(estimate))(x), batch, **close)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            torch.testing.assert_close(estimate(x[i, j]), batch[i, j], **close)


@each_row
@given(case=inputs)
def test_the_input_is_not_written_to(row, case):
    x = case.fill()
    version, copy = x._version, x.clone()
    row.make()(x)
    assert x._version == version
    assert torch.equal(x, copy)


@each_row
def test_no_data_is_read(row):
    assert row.make()(torch.zeros(3, 4, device="meta")).shape == (3,)


@each_row
@pytest.mark.compile
def test_compiled_is_eager(row):
    estimate = row.make()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for fn in (estimate, vmap(grad(estimate)), vmap(jacfwd(estimate))):
        compiled = torch.compile(fn, backend="aot_eager", fullgraph=True)
        # The same kernels, a few of which the compiler may rewrite.
        torch.testing.assert_close(compiled(x), fn(x), rtol=1e-6, atol=1e-7)
