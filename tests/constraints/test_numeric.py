"""What several constraints share, against other libraries."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from torch.func import vmap

from pureopt.constraints._lu_chart import pivoted
from pureopt.constraints._numeric import inverse, matrix_exp


@pytest.mark.parametrize("size", [1e-4, 0.01, 0.02, 0.049, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_exponential_of_a_single_matrix_is_exact(dtype, size):
    """torch 2.13 is off by 2e-10 in float64 at a norm of 0.049, by 1e-5 at 0.5."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20, 4, 4, generator=generator, dtype=torch.float64)
    a = (a * (size / a.abs().sum(-2).amax(-1)[:, None, None])).to(dtype)
    # Scaling and squaring at norms of order one: some n eps |exp(A)|.
    tolerance = 20 * 4 * torch.finfo(dtype).eps
    for one in a:
        want = torch.from_numpy(scipy.linalg.expm(one.double().numpy()))
        for got in (
            matrix_exp(one),
            matrix_exp(one[None])[0],
            vmap(matrix_exp)(one[None])[0],
        ):
            assert torch.allclose(
                got.double(), want, rtol=0, atol=tolerance * float(want.abs().max())
            )


@pytest.mark.parametrize("f", [inverse, pivoted])
def test_a_lane_of_a_lane_is_its_own_matrix(f):
    # torch 2.13: there `lu_unpack` raises if it is to leave the factors packed.
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    # Condition numbers below 1e2.
    torch.testing.assert_close(vmap(vmap(f))(a), f(a), rtol=1e-12, atol=1e-12)
