"""What the operators ask of a function and its arguments, and torch's complaints in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pureopt._errors import DerivativeError, told

# (what torch's message contains, what was wrong, what to do)
_CLUES = (
    (
        "data-dependent control flow",
        "a function that branches on the value of a tensor",
        "Choose with `torch.where(condition, a, b)`, both of which must be finite.",
    ),
    (
        "vmap: inplace arithmetic",
        "a function that writes in place to a tensor that is not batched",
        "Compute a new tensor: `x = x + y` in place of `x += y`.",
    ),
    (
        "Batch norm got a batched tensor",
        "batch norm in train mode, where a sample's output depends on the whole batch",
        "Put the module into eval mode, or use group norm or layer norm.",
    ),
)


def call(where: str, f: Callable[..., Any], *args: Any) -> Any:
    """``f(*args)``; what torch complains about is told in words.

    Args:
        where: The public call, such as ``"hvp(f=...)"``.
        f: The function.
        *args: What it is called with.

    Raises:
        DerivativeError: If torch's message is one that has a known cause.
    """
    try:
        return f(*args)
    except RuntimeError as error:
        for clue, got, way_out in _CLUES:
            if clue in str(error):
                rule = "be differentiable by torch.func"
                raise DerivativeError(where, rule, got, way_out) from error
        raise


def scalar(where: str, value: Any) -> Tensor:
    """``value``, which must be a 0-d floating tensor.

    Raises:
        DerivativeError: If it is not.
    """
    if isinstance(value, Tensor) and value.is_floating_point() and not value.dim():
        return value
    hint = (
        "Reduce it, for example with `.sum()` or `.mean()`."
        if isinstance(value, Tensor) and value.dim()
        else ""
    )
    raise DerivativeError(where, "return a 0-d floating tensor", told(value), hint)
