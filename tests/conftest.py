"""What all tests share: one thread, drawn cases, devices, fresh compiler caches."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# A worker of xdist per core, one thread per worker.
torch.set_num_threads(1)

# Deadlines measure the machine, not the code. `derandomize` draws the same cases in each
# run, so that a red suite is red for everybody; `make laws` draws fresh ones.
_common = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "suite", _common, max_examples=20, derandomize=True, database=None
)
settings.register_profile("laws", _common, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(
                    not torch.cuda.is_available(), reason="no CUDA device"
                ),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest):
    """Give each compile test the recompilation budget of a new process."""
    if request.node.get_closest_marker("compile") is None:
        yield
        return
    # Here, not at the top: importing the compiler costs a second, which the workers
    # without a compile test need not pay.
    import torch._dynamo

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
