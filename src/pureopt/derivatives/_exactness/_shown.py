"""What the compiler shows to a mode, and as what it shows a product.

Eagerly a mode is shown each call of torch. While it compiles, torch asks a list of the
functions that may be overridden. Of private functions, of those that write in place, and
of some others the list of torch 2.13 knows nothing: their calls would be traced as they
are, without a word.

Of an operator whose first operand only stands in for a tensor, the compiler exchanges the
operands and calls the function for operands in the other order. For `@` its table has no
such function, and the call arrives as if it had been written with the operands exchanged.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch

# The functions that are to be shown, whether or not they are in the list.
SHOWN: set[Callable[..., Any]] = set()

# How many they were when they were last put into it by a call that is not compiled.
_COUNTS: set[int] = set()

_COMPILER = "torch._dynamo.variables.torch"
_OPERATORS = "torch._dynamo.variables.builtin"


def show() -> None:
    """Put them into the list, where they stay: without a mode it has no effect."""
    if torch.compiler.is_compiling():
        # Slow to import, and there already.
        from torch._dynamo.comptime import comptime  # noqa: PLC0415

        comptime(_traced)
    elif _COMPILER in sys.modules and len(SHOWN) not in _COUNTS:
        _COUNTS.add(len(SHOWN))  # what is compiled may be called inside a scope
        _show()


def _show() -> None:
    compiler: Any = sys.modules[_COMPILER]
    compiler.get_overridable_functions().update(SHOWN)


def _traced(context: Any) -> None:
    """Not traced itself: it runs while the compiler traces."""
    del context
    _show()
    exchanged = vars(sys.modules[_OPERATORS])["BUILTIN_TO_TENSOR_RFN_MAP"]
    for product in (operator.matmul, operator.imatmul):
        exchanged[product] = torch.Tensor.__rmatmul__
