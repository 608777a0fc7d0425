"""Rules of pooling: averages are linear, maxima are chosen by the values."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._jets._algebra import linear
from pureopt.derivatives._jets._jet import RULES, Jet
from pureopt.derivatives._jets._register import linear_in_first, rule, spellings

linear_in_first(
    spellings(
        "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
        "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    )
)  # fmt: skip


def _chosen(x: Jet, indices: Tensor, spatial: int) -> Jet:
    """The elements at ``indices`` into the flattened spatial dimensions."""

    def choose(c: Tensor) -> Tensor:
        flat = torch.gather(c.flatten(-spatial), -1, indices.flatten(-spatial))
        return flat.reshape(indices.shape)

    return linear(choose, x)


def _maximal(op: Callable[..., Any], spatial: int) -> Callable[..., Any]:
    def pool(input: Jet, *args: Any, **kwargs: Any) -> Jet:  # noqa: A002
        kwargs.pop("return_indices", None)
        _, indices = op(input.value, *args, **kwargs)
        return _chosen(input, indices, spatial)

    return pool


def _maximal_with_indices(op: Callable[..., Any], spatial: int) -> Callable[..., Any]:
    def pool(input: Jet, *args: Any, **kwargs: Any) -> tuple[Jet, Tensor]:  # noqa: A002
        kwargs.pop("return_indices", None)
        _, indices = op(input.value, *args, **kwargs)
        return _chosen(input, indices, spatial), indices

    return pool


for _n in (1, 2, 3):
    for _name in (f"max_pool{_n}d", f"adaptive_max_pool{_n}d"):
        _indexed = getattr(F, f"{_name}_with_indices")
        for _op in spellings(_name):
            RULES[_op] = _maximal(_indexed, _n)
        for _op in spellings(f"{_name}_with_indices"):
            RULES[_op] = _maximal_with_indices(_indexed, _n)


def _powered(x: Any, norm_type: float, pooled: Callable[[Any], Any], n: int) -> Any:
    """The norm over each window: torch has it as a mean times the number."""
    mean = pooled(torch.pow(x, norm_type))
    return torch.pow(torch.relu(mean) * n, 1 / norm_type)


@rule("lp_pool1d")
def lp_pool1d(
    input: Jet,  # noqa: A002
    norm_type: float,
    kernel_size: int,
    stride: int | None = None,
    ceil_mode: bool = False,
) -> Jet:
    def pooled(x: Any) -> Any:
        return F.avg_pool1d(x, kernel_size, stride, 0, ceil_mode)

    return _powered(input, norm_type, pooled, kernel_size)


@rule("lp_pool2d")
def lp_pool2d(
    input: Jet,  # noqa: A002
    norm_type: float,
    kernel_size: Any,
    stride: Any = None,
    ceil_mode: bool = False,
) -> Jet:
    def pooled(x: Any) -> Any:
        return F.avg_pool2d(x, kernel_size, stride, 0, ceil_mode)

    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    return _powered(input, norm_type, pooled, sizes[0] * sizes[1])
