"""``exact``: the values, the arguments and the refusals are those of torch."""

from __future__ import annotations

import copy

import pytest
import torch

from pureopt.derivatives import exact
from tests.derivatives.exact_calls import CALLS, V, X
from tests.derivatives.row import randn

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_the_value_is_that_of_torch(name, dtype):
    x = X.to(dtype)
    got, expected = exact(CALLS[name])(x), CALLS[name](x)
    # Other orders of the same sums: at most some hundred roundings of a condition near 10.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        got, expected, rtol=300 * eps, atol=300 * eps, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["layer norm, affine", "norm, dims", "norm, p", "attention, masked"]
)
def test_half_precision_is_rounded_once(name, dtype):
    got, expected = exact(CALLS[name])(X.to(dtype)), CALLS[name](X.to(dtype))
    # Both compute in float32, and torch rounds after the affine map once more.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=3 * eps, atol=3 * eps)


MODULES = {
    "BatchNorm2d": torch.nn.BatchNorm2d(3),
    "BatchNorm1d": torch.nn.BatchNorm1d(3, momentum=None),
    "InstanceNorm2d": torch.nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_running_statistics_move_as_they_do_in_torch(name):
    theirs, ours = (copy.deepcopy(MODULES[name]).double() for _ in range(2))
    x = randn(4, 3, 2, 2) if "2d" in name else randn(4, 3)
    for _ in range(2):
        torch.testing.assert_close(exact(ours)(x), theirs(x))
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert torch.equal(a, b)
    torch.testing.assert_close(exact(ours.eval())(x), theirs.eval()(x))


def test_a_function_with_out_is_that_of_torch():
    out = torch.empty((), dtype=torch.float64)
    got = exact(lambda x: torch.linalg.vector_norm(x, out=out))(V)
    assert got is out
    assert torch.equal(out, torch.linalg.vector_norm(V))


def test_a_singular_system_raises_as_in_torch():
    with pytest.raises(RuntimeError, match="is zero"):
        exact(torch.linalg.solve)(torch.zeros(2, 2), torch.ones(2))
    result, info = exact(torch.linalg.solve_ex)(torch.zeros(2, 2), torch.ones(2))
    assert info == 1
    assert not result.isfinite().all()
