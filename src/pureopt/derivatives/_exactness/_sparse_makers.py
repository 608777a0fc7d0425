"""``to_sparse`` and what else makes a sparse tensor of a dense one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import Table, is_inexact, is_wrapped
from pureopt.derivatives._exactness._sparse import (
    LAYOUTS,
    as_stand_in,
    from_dense,
    is_forward,
    mask_of,
)


def _is_needed(x: Any) -> bool:
    """Whether these are numbers that a transform moves, or that move in forward mode."""
    return (
        not torch.compiler.is_compiling()
        and isinstance(x, Tensor)
        and x.layout == torch.strided
        and (is_wrapped(x) or is_forward(x))
        and is_inexact(x)
        and not x.is_meta
    )


def _maker(func: Callable[..., Any]) -> Callable[..., Any]:
    """The composition for a method that makes a sparse tensor of a dense one."""

    def make(input: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
        if not _is_needed(input):
            return func(input, *args, **kwargs)
        # To see what torch refuses, and what it makes; no transform can wrap all layouts.
        shape, device = input.shape, input.device
        with torch._C._DisableFuncTorch():  # noqa: SLF001
            nothing = torch.zeros(shape, dtype=torch.bool, device=device)
            pattern = func(nothing, *args, **kwargs)
            layout, d = pattern.layout, pattern.sparse_dim()
        if layout not in LAYOUTS or (layout != torch.sparse_coo and len(shape) != d):
            return func(input, *args, **kwargs)
        kept = input != 0
        kept = kept.flatten(d).any(d) if d < len(shape) else kept
        return from_dense(input, kept, layout)

    make.__name__ = func.__name__
    return make


def _sparse_mask(input: Any, mask: Any) -> Any:  # noqa: A002
    """``Tensor.sparse_mask`` of a dense tensor."""
    if not _is_needed(input) or mask.layout != torch.sparse_coo:
        return input.sparse_mask(mask)
    return mask_of(input, as_stand_in(mask).kept)


SPARSE: Table = {
    **{
        method: _maker(method)
        for method in (
            torch.Tensor.to_sparse,
            torch.Tensor.to_sparse_coo,
            torch.Tensor.to_sparse_csr,
            torch.Tensor.to_sparse_csc,
        )
    },
    torch.Tensor.sparse_mask: _sparse_mask,
}
