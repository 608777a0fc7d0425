"""The constants of a function that is put off: they must be then what they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType
from typing import Any

from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness._numeric import innermost
from pureopt.derivatives._jets._jet import Jet

# Functions of functions of arguments: what rules are made of goes no deeper.
_DEPTH = 6


def unwritten(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f``, which raises if a tensor that it holds has been written to in the meantime.

    Reverse mode of torch, which reads what it has saved as late, raises as well.
    """
    tensors = [x for x in _held(f, _DEPTH) if not innermost(x).is_inference()]
    if not tensors:
        return f
    counts = _writes(tensors)

    def checked(*args: Any) -> Any:
        if _writes(tensors) != counts:
            raise DerivativeError(
                "jet(f=...)",
                "not write in place to what it has used",
                "a constant, mask, index or weight that has changed since",
                "Compute a new tensor: `t = t + dt` in place of `t += dt`.",
            )
        return f(*args)

    return checked


def _writes(tensors: list[Tensor]) -> list[int]:
    """How often each was written to."""
    return [innermost(x)._version for x in tensors]  # noqa: SLF001


def _held(x: Any, depth: int) -> Iterator[Tensor]:
    """The tensors in a function, its arguments and what these are made of."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Jet):
        yield x.value
    elif depth:
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
            return [*x]
        case Mapping():
            return [*x.values()]
        case slice():
            return [x.start, x.stop, x.step]
        case _:
            return []
