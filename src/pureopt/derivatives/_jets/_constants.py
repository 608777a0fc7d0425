"""The constants of a function that is put off: they must be then what they are now."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType, NoneType
from typing import Any

from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness._numeric import innermost
from pureopt.derivatives._jets._jet import Jet

# Functions of functions of arguments: what rules are made of goes no deeper.
_DEPTH = 6
_NUMBERS = {int, float, bool, complex, str, NoneType}


def unwritten(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f``, which raises if what it holds has been written to in the meantime.

    Reverse mode of torch, which reads what it has saved as late, raises as well. Neither
    sees what is written past torch's count, as by ``x.data`` or by numpy.
    """
    held = [*_held(f, _DEPTH)]
    if not held:
        return f
    before = [_state(x) for x in held]

    def checked(*args: Any) -> Any:
        if not all(map(_is_as, held, before)):
            raise DerivativeError(
                "jet(f=...)",
                "not write in place to what it has used",
                "a constant, mask, index or weight that has changed since",
                "Compute a new tensor: `t = t + dt` in place of `t += dt`.",
            )
        return f(*args)

    return checked


def _state(x: Tensor | list[Any]) -> Any:
    """How often a tensor was written to; what is in a list."""
    return innermost(x)._version if isinstance(x, Tensor) else [*x]  # noqa: SLF001


def _is_as(x: Tensor | list[Any], before: Any) -> bool:
    if isinstance(x, Tensor):
        return _state(x) == before
    return len(x) == len(before) and all(map(operator.is_, x, before))


def _held(x: Any, depth: int) -> Iterator[Tensor | list[Any]]:
    """The tensors and lists in a function, its arguments and what these are made of."""
    if isinstance(x, Jet):
        x = x.value
    if isinstance(x, Tensor):
        if not innermost(x).is_inference():
            yield x
        return
    if isinstance(x, list):
        yield x
    if depth:
        for part in _parts(x):
            yield from _held(part, depth - 1)


def _is_set(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _parts(x: Any) -> list[Any]:
    match x:
        case FunctionType():
            return [cell.cell_contents for cell in x.__closure__ or () if _is_set(cell)]
        case partial():
            return [x.func, *x.args, *x.keywords.values()]
        case list() | tuple():
            return [part for part in x if type(part) not in _NUMBERS]
        case Mapping():
            return [*x.values()]
        case slice():
            return [x.start, x.stop, x.step]
        case _:
            return []
