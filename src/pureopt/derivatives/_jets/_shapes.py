"""Rules of functions that move, copy, drop or convert numbers, and of those that read them."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._jets._algebra import lift, linear
from pureopt.derivatives._jets._jet import RULES, Jet
from pureopt.derivatives._jets._register import (
    linear_in_first,
    rule,
    sharing,
    spellings,
    views_of_first,
)

# Those of the first list may share memory with their argument.
VIEWS = (
    "reshape", "view", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "permute",
    "transpose", "swapaxes", "swapdims", "t", "movedim", "moveaxis", "adjoint", "expand",
    "broadcast_to", "contiguous", "narrow", "select", "chunk", "split",
    "split_with_sizes", "tensor_split", "unbind", "diagonal", "real", "unfold",
    "as_strided", "cpu", "cuda", "hsplit", "vsplit", "dsplit", "alias", "resolve_conj",
    "resolve_neg", "conj", "imag", "view_as_real", "atleast_1d", "atleast_2d",
    "atleast_3d", "conj_physical", "sum_to_size",
)  # fmt: skip

COPIES = (
    "repeat", "repeat_interleave", "tile", "flip", "fliplr", "flipud", "roll", "rot90",
    "clone", "diag", "diag_embed", "diagflat", "tril", "triu", "trace", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "fold", "interpolate",
    "upsample",
)  # fmt: skip

# Functions of the values alone. Of those that are piecewise constant the derivatives are
# zero wherever they exist.
READS = (
    "sign", "floor", "ceil", "round", "trunc", "fix", "heaviside", "zeros_like",
    "ones_like", "empty_like", "full_like",
    "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__", "__gt__",
    "__ge__", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit",
    "logical_not", "logical_and", "logical_or", "logical_xor", "argmax", "argmin",
    "argsort", "searchsorted", "bucketize", "count_nonzero", "nonzero", "all", "any",
    "is_floating_point", "is_complex", "is_contiguous", "numel", "nelement", "size",
    "dim", "ndimension", "stride", "allclose", "equal",
    "isclose", "isreal", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full",
    "new_empty", "new_tensor", "__bool__", "element_size",
    "get_device", "is_same_size", "result_type", "can_cast", "is_signed", "is_inference",
    "broadcast_shapes", "linalg.matrix_rank", "long", "int", "short", "char", "byte", "bool",
)  # fmt: skip

PROPERTIES = ("T", "mT", "H", "mH", "real", "imag")


def _of_values(op: Callable[..., Any]) -> Callable[..., Any]:
    def read(*args: Any, **kwargs: Any) -> Any:
        return op(
            *(value_of(arg) for arg in args),
            **{name: value_of(arg) for name, arg in kwargs.items()},
        )

    return read


def value_of(arg: Any) -> Any:
    """The value of a jet; anything else as it is."""
    return arg.value if isinstance(arg, Jet) else arg


def _shaped(op: Callable[..., Any]) -> Callable[..., Any]:
    """To the shape of another, which is all that is kept of it."""

    def apply(x: Any, other: Any) -> Any:
        shape = other.shape
        return linear(lambda c: op(c, shape), x) if isinstance(x, Jet) else op(x, shape)

    return apply


def _each(op: Callable[..., Any], rule: Callable[..., Any]) -> Callable[..., Any]:
    """Of one argument, or of each of several."""

    def apply(*tensors: Any) -> Any:
        if len(tensors) == 1:
            return rule(*tensors)
        return tuple(rule(x) if isinstance(x, Jet) else op(x) for x in tensors)

    return apply


views_of_first(spellings(*VIEWS))
linear_in_first(spellings(*COPIES))
for _op in spellings("atleast_1d", "atleast_2d", "atleast_3d"):
    RULES[_op] = _each(_op, RULES[_op])
# These methods are Python that calls `super`, which the compiler does not trace.
RULES[Tensor.unflatten] = RULES[torch.unflatten]
RULES[Tensor.split] = RULES[torch.split]
for _name, _op in (
    ("view_as", Tensor.view), ("reshape_as", torch.reshape), ("expand_as", Tensor.expand),
):  # fmt: skip
    RULES.update(dict.fromkeys(spellings(_name), sharing(_shaped(_op))))
views_of_first(getattr(Tensor, name).__get__ for name in PROPERTIES)
for _op in spellings(*READS):
    RULES[_op] = _of_values(_op)
_DATA: Any = Tensor.data
for _op in (_DATA.__get__, Tensor.detach, torch.detach):
    RULES[_op] = sharing(_of_values(torch.detach))


def _converting(op: Callable[..., Any]) -> Callable[..., Any]:
    """Linear; but whole numbers are no series."""

    def convert(x: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(value_of(arg) for arg in args)
        value = op(value_of(x), *args, **kwargs)
        series = isinstance(x, Jet) and isinstance(value, Tensor)
        if not series or not (value.is_floating_point() or value.is_complex()):
            return value
        return linear(lambda c: c.to(value.device, value.dtype), x)

    return convert


for _op in spellings("to", "float", "double", "half", "bfloat16", "type", "type_as"):
    RULES[_op] = sharing(_converting(_op))


def _first(jets: Sequence[Any]) -> Jet:
    return next(x for x in jets if isinstance(x, Jet))


def _joining(op: Callable[..., Any]) -> Callable[..., Any]:
    def join(tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        first = _first(tensors)
        jets = [lift(first, x) for x in tensors]
        return linear(lambda *c: op(c, *args, **kwargs), *jets)

    return join


for _op in spellings(
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "row_stack",
):  # fmt: skip
    RULES[_op] = _joining(_op)


@rule("column_stack")
def column_stack(tensors: Sequence[Any]) -> Any:
    # Torch has no rule for vmap, and so none for many directions.
    columns = [x if x.ndim > 1 else x.reshape(-1, 1) for x in tensors]
    return torch.cat(columns, 1)


@rule("broadcast_tensors")
def broadcast_tensors(*tensors: Any) -> tuple[Any, ...]:
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = tuple(tensors[0])
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    return tuple(x.expand(shape) for x in tensors)


@rule("meshgrid")
def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Any, ...]:
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = tuple(tensors[0])
    sizes = [x.reshape(-1).shape[0] for x in tensors]
    axes = list(range(len(sizes)))
    if indexing == "xy":
        axes[:2] = axes[1::-1]
    shape = [sizes[a] for a in axes]
    spread = [[-1 if a == i else 1 for a in axes] for i in range(len(sizes))]
    return tuple(
        x.reshape(to).expand(shape) for x, to in zip(tensors, spread, strict=True)
    )


@rule("block_diag")
def block_diag(*tensors: Any) -> Any:
    first = _first(tensors)
    jets = [lift(first, x) for x in tensors]
    return linear(torch.block_diag, *jets)


@rule("where")
def where(condition: Any, input: Any, other: Any) -> Any:  # noqa: A002
    mask = value_of(condition)
    if not (isinstance(input, Jet) or isinstance(other, Jet)):
        return torch.where(mask, input, other)
    first = _first((input, other))
    # The mask is expanded, so that it means the same beside a dimension of directions.
    shape = torch.broadcast_shapes(
        mask.shape, *(x.shape for x in (input, other) if isinstance(x, Jet | Tensor))
    )
    mask = mask.expand(shape)
    return linear(
        lambda a, b: torch.where(mask, a, b), lift(first, input), lift(first, other)
    )


def _where_method(input: Any, condition: Any, other: Any) -> Any:  # noqa: A002
    return where(condition, input, other)


RULES[Tensor.where] = _where_method


@rule("masked_fill")
def masked_fill(input: Any, mask: Any, value: Any) -> Any:  # noqa: A002
    return where(mask, value, input)


@rule("nan_to_num")
def nan_to_num(
    x: Jet, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Jet:
    kept = torch.isfinite(x.value)
    value = torch.nan_to_num(x.value, nan, posinf, neginf)
    return where(kept, x, value)
