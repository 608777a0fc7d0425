"""Rules of indexing: reading at positions that do not depend on the variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from pureopt.derivatives._jets._algebra import lift, linear
from pureopt.derivatives._jets._jet import RULES, Jet
from pureopt.derivatives._jets._register import linear_in_first, rule, spellings
from pureopt.derivatives._jets._shapes import value_of

linear_in_first(
    spellings(
        "__getitem__", "index_select", "take_along_dim", "gather", "masked_select", "take"
    )
)


def _scattering(op: Callable[..., Any]) -> Callable[..., Any]:
    """Linear in the tensor written to and the tensor that is written, together."""

    def scatter(x: Any, dim: int, index: Any, source: Any, **kwargs: Any) -> Any:
        first = x if isinstance(x, Jet) else source
        return linear(
            lambda a, b: op(a, dim, index, b, **kwargs),
            lift(first, x),
            lift(first, source),
        )

    return scatter


for _op in spellings("scatter_add", "index_add", "index_copy"):
    RULES[_op] = _scattering(_op)


@rule("scatter")
def scatter(input: Any, dim: int, index: Any, src: Any) -> Any:  # noqa: A002
    first = input if isinstance(input, Jet) else src
    if not isinstance(src, Jet | torch.Tensor):
        src = input.value.new_full((), src).expand(index.shape)
    return linear(
        lambda a, b: torch.scatter(a, dim, index, b),
        lift(first, input),
        lift(first, src),
    )


@rule("embedding")
def embedding(input: Any, weight: Jet, *args: Any, **kwargs: Any) -> Jet:  # noqa: A002
    return linear(lambda w: F.embedding(value_of(input), w, *args, **kwargs), weight)


@rule("pad")
def pad(
    input: Jet,  # noqa: A002
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
) -> Jet:
    y = linear(lambda c: F.pad(c, pad, mode), input)
    if mode == "constant" and value:
        y.value = F.pad(input.value, pad, mode, value)
    return y
