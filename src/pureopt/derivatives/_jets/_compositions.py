"""Rules that are written elsewhere: the compositions of ``exact`` and torch's own Python.

They are taken where there is no rule that is made for series, hence this module comes
after the others.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from pureopt.derivatives._exactness._bodies import asking_nobody, rebound
from pureopt.derivatives._exactness._numeric import KERNELS
from pureopt.derivatives._exactness._scope import REPLACEMENTS
from pureopt.derivatives._jets._jet import (
    RULES,
    WRITTEN_IN_PYTHON,
    Jet,
    Rule,
    missing,
    name_of,
)
from pureopt.derivatives._jets._shapes import value_of


def _asking(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, which looks for jets itself: a compiler does not let it ask them."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(arg, Jet) for arg in args):
            return Jet.__torch_function__(kernel, (), args, kwargs)
        return kernel(*args, **kwargs)

    return call


_NN = {k: _asking(f) if callable(f) else f for k, f in vars(KERNELS).items()}
_C = types.SimpleNamespace(_nn=types.SimpleNamespace(**_NN))
_TORCH = types.SimpleNamespace(**{**vars(torch), "_C": _C})


def _bodies(module: types.ModuleType) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The functions of a module that let arguments stand in for tensors, as they run on one.

    The same code, in a namespace where no argument is asked whether it stands in: what it
    calls in turn meets the jet.
    """
    plain = asking_nobody(module)
    kernels = {**plain, "torch": _TORCH}
    found: dict[Callable[..., Any], Callable[..., Any]] = {}
    for function in vars(module).values():
        called = getattr(getattr(function, "__code__", None), "co_names", ())
        if any(name.startswith("has_torch_function") for name in called):
            found[function] = rebound(function, kernels if "_nn" in called else plain)
    return found


class _Running(threading.local):
    """The compositions that run."""

    def __init__(self) -> None:
        self.names: list[str] = []


_RUNNING = _Running()


def _ending(op: Callable[..., Any], composition: Callable[..., Any]) -> Rule:
    """The composition, which calls ``op`` itself where torch is to refuse the arguments."""
    name = name_of(op)

    def apply(*args: Any, **kwargs: Any) -> Any:
        if name in _RUNNING.names:
            op(*map(_value, args), **{k: _value(v) for k, v in kwargs.items()})
            raise missing(op)
        _RUNNING.names.append(name)
        try:
            return composition(*args, **kwargs)
        finally:
            _RUNNING.names.pop()

    return apply


def _value(x: Any) -> Any:
    return [_value(part) for part in x] if isinstance(x, list | tuple) else value_of(x)


for _op, _rule in REPLACEMENTS.items():
    RULES.setdefault(_op, _ending(_op, _rule))
for _op, _rule in {**_bodies(F), **_bodies(torch.functional)}.items():
    RULES.setdefault(_op, _rule)
RULES.setdefault(torch.Tensor.norm, RULES[torch.norm])

_METHODS = [f for f in vars(torch.Tensor).values() if isinstance(f, types.FunctionType)]
WRITTEN_IN_PYTHON.extend((m, RULES[m]) for m in _METHODS if m in RULES)
