"""Rules that are written elsewhere: the compositions of ``exact`` and torch's own Python.

They are taken where there is no rule that is made for series, hence this module comes
after the others.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from pureopt.derivatives._exactness._bodies import asking_nobody, rebound
from pureopt.derivatives._exactness._scope import REPLACEMENTS
from pureopt.derivatives._jets._jet import RULES, WRITTEN_IN_PYTHON


def _bodies(module: types.ModuleType) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The functions of a module that let arguments stand in for tensors, as they run on one.

    The same code, in a namespace where no argument is asked whether it stands in: what it
    calls in turn meets the jet.
    """
    names = asking_nobody(module)
    return {
        function: rebound(function, names)
        for function in vars(module).values()
        if isinstance(function, types.FunctionType)
        and any(k.startswith("has_torch_function") for k in function.__code__.co_names)
    }


for _op, _rule in {**_bodies(F), **_bodies(torch.functional), **REPLACEMENTS}.items():
    RULES.setdefault(_op, _rule)
RULES.setdefault(torch.Tensor.norm, RULES[torch.norm])

_METHODS = [f for f in vars(torch.Tensor).values() if isinstance(f, types.FunctionType)]
WRITTEN_IN_PYTHON.extend((m, RULES[m]) for m in _METHODS if m in RULES)
