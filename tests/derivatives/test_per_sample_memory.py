"""Per-sample quantities hold no gradient of each sample."""

from __future__ import annotations

import pytest
from torch import nn

import pureopt as po
from pureopt.derivatives._per_sample import _sums
from tests.derivatives.observers import Largest
from tests.derivatives.per_sample_case import check, of_module
from tests.derivatives.per_sample_cases import CASES
from tests.derivatives.row import randn

D = po.derivatives


@pytest.mark.parametrize("name", ["cnn", "tied-embedding", "words", "rnn-cell",
                                  "weight-decay", "shared-bias"])  # fmt: skip
def test_portions_that_hold_little_change_nothing(name, monkeypatch):
    # One sample and one row at a time.
    monkeypatch.setattr(_sums, "BUDGET", 1)
    check(CASES[name]())


def test_no_tensor_is_as_large_as_the_gradients_per_sample():
    net = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 50))
    case = of_module(net, randn(30, 40), randn(30, 50))
    for quantity in (D.per_sample_grad_norms, D.grad_gram, D.noise_scale):
        with Largest() as largest:
            quantity(case.loss)(case.params, *case.batch)
        # The largest activation is 30 x 60, the largest leaf 60 x 50.
        assert largest.numel == 3000
