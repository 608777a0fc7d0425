"""Each transform, constraint, operator and estimator once: the laws run over these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pureopt as po
from tests.constraints.rows import CONSTRAINTS as CONSTRAINTS
from tests.derivatives.rows import OPERATORS as OPERATORS


@dataclass(frozen=True)
class Row:
    """One configuration of a public callable.

    ``make(lr)`` gives a transform (rows without a learning rate ignore it), ``make()``
    an estimator.
    """

    name: str
    public: str
    """The public dotted name below `pureopt`."""
    make: Callable[..., Any]
    smooth: bool = True
    """A step is differentiable away from zero gradients: compare with differences."""
    needs_value: bool = False
    """A step needs the loss."""
    has_lr: bool = True
    """`make` takes a learning rate that matters."""
    rests: bool = True
    """From a fresh state, zero gradients leave the parameters where they are."""
    leafwise: bool = True
    """Leaves do not influence one another, so that their order cannot matter by a bit."""


TRANSFORMS = [
    Row("sgd", "SGD", po.SGD),
    Row("sgd-momentum", "SGD", lambda lr: po.SGD(lr, momentum=0.9, dampening=0.4)),
    Row("sgd-nesterov", "SGD", lambda lr: po.SGD(lr, momentum=0.9, nesterov=True)),
    Row("sgd-decay", "SGD", lambda lr: po.SGD(lr, weight_decay=0.1), rests=False),
    Row("adam", "Adam", po.Adam),
    Row("adam-decay", "Adam", lambda lr: po.Adam(lr, weight_decay=0.1), rests=False),
    Row("adamw", "AdamW", lambda lr: po.AdamW(lr, weight_decay=0.1), rests=False),
    Row(
        "clip-sgd",
        "ClipByGlobalNorm",
        lambda lr: po.ClipByGlobalNorm(0.5) >> po.SGD(lr),
        leafwise=False,
    ),
    Row(
        "clip-adam",
        "ClipByGlobalNorm",
        lambda lr: po.ClipByGlobalNorm(0.5) >> po.Adam(lr, betas=(0.8, 0.9)),
        leafwise=False,
    ),
    Row(
        "ema-adamw",
        "EMA",
        lambda lr: po.EMA(po.AdamW(lr), decay=0.9),
        rests=False,
    ),
    Row(
        "clip-ema-sgd",
        "EMA",
        lambda lr: po.ClipByGlobalNorm(0.5) >> po.EMA(po.SGD(lr, 0.9), decay=0.5),
        leafwise=False,
    ),
    Row(
        "lbfgs",
        "LBFGS",
        lambda lr: po.LBFGS(memory=3),
        needs_value=True,
        has_lr=False,
        leafwise=False,
    ),
]

ESTIMATORS = [
    Row("entropy-categorical", "entropy.categorical", lambda: po.entropy.categorical),
]
