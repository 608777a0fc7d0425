"""Optimization for PyTorch as pure functions.

Models are pure functions of a parameter tree, constraints are maps with a tested right
inverse, optimizers are stateless ``(params, state, grads) -> (params, state)``
transforms, and everything runs inside ``torch.func.vmap``, ``grad``, ``jacfwd`` and
``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

from importlib.metadata import version

from pureopt import constraints as constraints
from pureopt import derivatives as derivatives
from pureopt import entropy as entropy
from pureopt import random as random
from pureopt._errors import CompositionError as CompositionError
from pureopt._errors import ConstraintError as ConstraintError
from pureopt._errors import DerivativeError as DerivativeError
from pureopt._errors import HyperparameterError as HyperparameterError
from pureopt._errors import PureoptError as PureoptError
from pureopt._errors import TreeError as TreeError
from pureopt._functional import Functional as Functional
from pureopt._functional import functionalize as functionalize
from pureopt._functional import stack as stack
from pureopt._solution import Solution as Solution
from pureopt._solution import Status as Status
from pureopt._tree import from_state_dict as from_state_dict
from pureopt._tree import ravel as ravel
from pureopt._tree import to_state_dict as to_state_dict
from pureopt._tree import unravel as unravel
from pureopt.constraints._constrain import constrain as constrain
from pureopt.constraints._space import Space as Space
from pureopt.solvers import minimize as minimize
from pureopt.training import Aux as Aux
from pureopt.training import Carry as Carry
from pureopt.training import Record as Record
from pureopt.training import Step as Step
from pureopt.training import make_step as make_step
from pureopt.training import train as train
from pureopt.transforms import EMA as EMA
from pureopt.transforms import LBFGS as LBFGS
from pureopt.transforms import SGD as SGD
from pureopt.transforms import Adam as Adam
from pureopt.transforms import AdamState as AdamState
from pureopt.transforms import AdamW as AdamW
from pureopt.transforms import Additive as Additive
from pureopt.transforms import ClipByGlobalNorm as ClipByGlobalNorm
from pureopt.transforms import EMAState as EMAState
from pureopt.transforms import LBFGSState as LBFGSState
from pureopt.transforms import SGDState as SGDState
from pureopt.transforms import Transform as Transform
from pureopt.transforms import chain as chain

__version__ = version("pureopt")

__all__ = [
    "EMA",
    "LBFGS",
    "SGD",
    "Adam",
    "AdamState",
    "AdamW",
    "Additive",
    "Aux",
    "Carry",
    "ClipByGlobalNorm",
    "CompositionError",
    "ConstraintError",
    "DerivativeError",
    "EMAState",
    "Functional",
    "HyperparameterError",
    "LBFGSState",
    "PureoptError",
    "Record",
    "SGDState",
    "Solution",
    "Space",
    "Status",
    "Step",
    "Transform",
    "TreeError",
    "chain",
    "constrain",
    "constraints",
    "derivatives",
    "entropy",
    "from_state_dict",
    "functionalize",
    "make_step",
    "minimize",
    "random",
    "ravel",
    "stack",
    "to_state_dict",
    "train",
    "unravel",
]
