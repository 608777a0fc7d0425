"""The norms of gradients per sample against BackPACK and opacus, where installed.

They come with the peers of the benchmark, whose contenders these are: ``make peers``
installs them and runs this.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import installed
from benchmarks.per_sample import OURS, cnn, mlp, norms

PEERS = {
    "backpack-for-pytorch": ["BackPACK BatchL2Grad"],
    "opacus": ["opacus, ghost clipping", "opacus, GradSampleModule"],
}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("package", PEERS)
@pytest.mark.parametrize(
    "make", [lambda: mlp(6, (7, 5, 4)), lambda: cnn(3, 12)], ids=["mlp", "cnn"]
)
def test_the_norms_are_theirs(make, package):
    if not installed(package):
        pytest.skip(f"{package} is not installed")
    runs = norms(make())
    ours = runs[OURS]()
    assert ours.dtype == torch.float64
    for name in PEERS[package]:
        # What the project asks for; both round sums of some hundred products, 1e3 eps.
        torch.testing.assert_close(ours, runs[name](), rtol=1e-10, atol=0)
