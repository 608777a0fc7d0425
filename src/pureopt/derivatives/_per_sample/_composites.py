"""What becomes several operations, which have rules or are known to ``vmap``.

They run under the mode, so that their parts are seen one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pureopt.derivatives._exactness._bodies import BODIES
from pureopt.derivatives._exactness._numbers import NUMBERS
from pureopt.derivatives._exactness._numeric import Table
from pureopt.derivatives._exactness._recurrent import RECURRENT
from pureopt.derivatives._per_sample._bags import embedding_bag

Args = ParamSpec("Args")
R = TypeVar("R")

# Functions with several parameters.
COMPOSITES: Table = {
    F.multi_head_attention_forward: BODIES[F.multi_head_attention_forward],
}
# What ``vmap`` refuses or runs lane by lane, whether it has parameters or not. What they
# do not know they leave to torch's own. Numbers are read as nothing else is.
FOR_VMAP: Table = {**NUMBERS, **RECURRENT, F.embedding_bag: embedding_bag}

# It calls `super`, which a mode that is traced cannot.
UNFLATTEN = Tensor.unflatten


class _ForVmap(TorchFunctionMode):
    """Stateless, so that it can be traced."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is UNFLATTEN:
            func = torch.unflatten
        return FOR_VMAP.get(func, func)(*args, **(kwargs or {}))


def for_vmap(f: Callable[Args, R]) -> Callable[Args, R]:
    """``f`` with the compositions that ``vmap`` over first derivatives needs."""

    @functools.wraps(f)
    def composed(*args: Args.args, **kwargs: Args.kwargs) -> R:
        with _ForVmap():
            return f(*args, **kwargs)

    return composed
