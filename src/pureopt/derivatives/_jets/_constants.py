"""The constants of a function that is put off: they must be then what they are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import CellType, FunctionType, NoneType
from typing import Any

from torch import Tensor

from pureopt._errors import DerivativeError, told
from pureopt.derivatives._exactness._numeric import innermost
from pureopt.derivatives._jets._jet import Jet

# Functions of functions of arguments: what rules are made of goes no deeper.
_DEPTH = 6
_NUMBERS = {int, float, bool, complex, str, NoneType}


def unwritten(f: Callable[..., Any]) -> Callable[..., Any] | None:
    """``f``, which raises if a tensor that it holds has been written to in the meantime.

    Reverse mode of torch, which reads what it has saved as late, raises as well. Neither
    sees what is written past torch's count, as by ``x.data`` or by numpy. Lists are a
    function's own (:class:`Jet` copies them).

    Returns:
        ``None`` where torch does not count: of tensors made in ``torch.inference_mode``.
    """
    held = _held(f, _DEPTH)
    before: list[int] = []
    for x in held:
        bare = innermost(x)
        if bare.is_inference():
            return None
        before.append(bare._version)  # noqa: SLF001
    if not held:
        return f

    def checked(*args: Any) -> Any:
        for x, count in zip(held, before, strict=True):
            if innermost(x)._version != count:  # noqa: SLF001
                raise DerivativeError(
                    "jet(f=...)",
                    "not write in place to what it has used",
                    f"{told(x)} that has changed since: a constant, mask, index or weight",
                    "Compute a new tensor: `t = t + dt` in place of `t += dt`.",
                )
        return f(*args)

    return checked


def _held(x: Any, depth: int) -> list[Tensor]:
    """The tensors in a function, its arguments and what these are made of."""
    if isinstance(x, Jet):
        x = x.value
    if isinstance(x, Tensor):
        return [x]
    held: list[Tensor] = []
    if depth:
        for part in _parts(x):
            held += _held(part, depth - 1)
    return held


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _parts(x: Any) -> list[Any]:
    match x:
        case FunctionType():
            return [*map(_contents, x.__closure__ or ())]
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
