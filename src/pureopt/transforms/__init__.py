"""Optimizers and gradient transforms: pure functions of ``(params, state, grads)``."""

from __future__ import annotations

from pureopt.transforms._adam import Adam as Adam
from pureopt.transforms._adam import AdamState as AdamState
from pureopt.transforms._adam import AdamW as AdamW
from pureopt.transforms._base import Additive as Additive
from pureopt.transforms._base import Transform as Transform
from pureopt.transforms._base import chain as chain
from pureopt.transforms._base import check_hyper as check_hyper
from pureopt.transforms._clip import ClipByGlobalNorm as ClipByGlobalNorm
from pureopt.transforms._ema import EMA as EMA
from pureopt.transforms._ema import EMAState as EMAState
from pureopt.transforms._lbfgs import LBFGS as LBFGS
from pureopt.transforms._lbfgs import LBFGSState as LBFGSState
from pureopt.transforms._sgd import SGD as SGD
from pureopt.transforms._sgd import SGDState as SGDState

__all__ = [
    "EMA",
    "LBFGS",
    "SGD",
    "Adam",
    "AdamState",
    "AdamW",
    "Additive",
    "ClipByGlobalNorm",
    "EMAState",
    "LBFGSState",
    "SGDState",
    "Transform",
    "chain",
    "check_hyper",
]
