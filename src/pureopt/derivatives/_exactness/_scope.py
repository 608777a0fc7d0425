"""The scope that puts compositions in the place of torch's functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

from torch.overrides import TorchFunctionMode

from pureopt.derivatives._exactness._norms import NORMS

Args = ParamSpec("Args")
R = TypeVar("R")

# Every spelling of a function that a program may call, with its composition.
REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {**NORMS}


class _Exact(TorchFunctionMode):
    """Stateless, so that it can be traced."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


def exact_ops() -> AbstractContextManager[Any]:
    """Inside this scope every nesting of derivatives is right.

    Example:
        >>> with exact_ops():
        ...     pass
    """
    return _Exact()


def exact(f: Callable[Args, R]) -> Callable[Args, R]:
    """``f`` with compositions in the place of the kernels that are wrong above first order.

    Example:
        >>> exact(lambda x: x)(1)
        1
    """

    @functools.wraps(f)
    def exactly(*args: Args.args, **kwargs: Args.kwargs) -> R:
        with _Exact():
            return f(*args, **kwargs)

    return exactly
