"""Row of ``audit``."""

from __future__ import annotations

import torch

import pureopt as po
from tests.derivatives.row import OperatorRow, randn


def audited(dtype: torch.dtype):
    def f(x):
        # Single precision is refused: only what comes out is in it.
        words = po.derivatives.audit(torch.tanh, x.double(), order=2).words
        return x.new_tensor([word.value for word in words])

    return f, (randn(3, dtype=dtype),)


ROWS = [
    OperatorRow(
        "audit",
        "audit",
        audited,
        # It compares numbers and says in words how that went: it reads data, for which
        # neither lanes, derivatives, the meta device nor a graph have any.
        compiled=False,
        vmaps=False,
        differentiable=False,
        meta=False,
    ),
]
