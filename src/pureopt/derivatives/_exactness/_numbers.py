"""Tensors made of numbers: what has a derivative would silently become a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness._numeric import Table, is_differentiated


def _checked(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **named: Any) -> Tensor:
        data = [x for x in (*args, *named.values()) if isinstance(x, list | tuple)]
        if any(map(is_differentiated, _tensors(data))):
            raise DerivativeError(
                "exact(f=...)",
                "keep its numbers in tensors",
                f"`{make.__name__}` of a list with tensors that have derivatives",
                "Join them by `torch.stack([x, y])`; constants are `x.detach()`.",
            )
        return make(*args, **named)

    return made


def _tensors(data: Any) -> list[Tensor]:
    """Those in lists and tuples."""
    if not isinstance(data, list | tuple):
        return []
    return [
        x
        for part in data
        for x in ([part] if isinstance(part, Tensor) else _tensors(part))
    ]


NUMBERS: Table = {
    make: _checked(make)
    for make in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
}
