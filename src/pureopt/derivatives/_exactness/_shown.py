"""What the compiler shows to a mode.

Eagerly a mode is shown each call of torch. While it compiles, torch asks a list of the
functions that may be overridden. Of private functions, of those that write in place, and
of some others the list of torch 2.13 knows nothing: their calls would be traced as they
are, without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

# The functions that are to be shown, whether or not they are in the list.
SHOWN: set[Callable[..., Any]] = set()

# How many they were when they were last put into it by a call that is not compiled.
_COUNTS: set[int] = set()

_COMPILER = "torch._dynamo.variables.torch"


def show() -> None:
    """Put them into the list, where they stay: without a mode it has no effect."""
    if torch.compiler.is_compiling():
        # Slow to import, and there already.
        from torch._dynamo.comptime import comptime  # noqa: PLC0415

        comptime(_show)
    elif _COMPILER in sys.modules and len(SHOWN) not in _COUNTS:
        _COUNTS.add(len(SHOWN))  # what is compiled may be called inside a scope
        _show()


def _show(context: Any = None) -> None:
    """Not traced: it runs while the compiler traces."""
    del context
    compiler: Any = sys.modules[_COMPILER]
    compiler.get_overridable_functions().update(SHOWN)
