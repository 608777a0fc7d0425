"""What the operators ask of a function and its arguments, and torch's complaints in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pureopt._errors import (
    DerivativeError,
    HyperparameterError,
    PureoptError,
    TreeError,
    told,
)
from pureopt._tree import (
    check_like,
    check_params,
    tree_flatten,
    tree_items,
    tree_leaves,
    tree_match,
    tree_unflatten,
)

T = TypeVar("T")

_RULE = "be a pure function that torch.func can transform"
_WRITES = "one that writes in place to its input"
_FRESH = (
    "Compute a new tensor: `x = x + y` in place of `x += y`, `torch.where` or "
    "`torch.cat` in place of `x[i] = y`."
)
_KEEP = (
    "Keep it a tensor; choose with `torch.where(condition, a, b)`, both of which must "
    "be finite."
)
_NATIVE = "Write that part in torch operations: what leaves torch has no derivative."
_COMPOSE = "Write it as a composition of torch operations."
_NO_SECOND = "one with `{}`, whose backward formula has no derivative"
_NO_FORWARD = "one with `{}`, which has no forward-mode derivative"
_REVERSE = (
    "`vhp`, `third_order_product` and `jacobian` of few outputs use reverse mode only; "
    "or write it as a composition of torch operations."
)

# What torch says, what the function is, and what to do. The first that fits counts.
_CLUES: tuple[tuple[str, str, str], ...] = (
    (r"leaf Variable that requires grad is being used in an in-place", _WRITES, _FRESH),
    (
        r"in-place operation \(aten::(\w+?)_?(?:\.\w+)?\) that would mutate a captured",
        "one that writes in place (`{}`) to a tensor from outside of it",
        "Return the new value in place of storing it. The running statistics of batch "
        "norm in train mode are stored so: put the module into eval mode, or use group "
        "norm or layer norm.",
    ),
    (
        r"Batch norm got a batched tensor",
        "one with batch norm in train mode, where a sample's output depends on the "
        "whole batch",
        "Put the module into eval mode, or use group norm or layer norm.",
    ),
    (
        r"vmap: inplace arithmetic",
        "one that writes in place a batched value to a tensor that is not batched",
        _FRESH,
    ),
    (
        r"output with shape .* doesn't match the broadcast shape",
        "one that writes in place a value to a tensor of fewer dimensions",
        f"{_FRESH} The kernels of `nn.LSTM` and `nn.GRU` do it under vmap: unroll "
        "`nn.LSTMCell` or `nn.GRUCell`.",
    ),
    (
        r"functions with out=|it is an out= function|doesn't work on out=",
        "one that writes to an `out=` argument",
        "Use the result of the call.",
    ),
    (
        r"data-dependent control flow",
        "one that branches on the value of a tensor, or reads it by `.item()` or "
        "`float()`",
        _KEEP,
    ),
    (
        r"calling \.item\(\) on a Tensor",
        "one that reads the value of a tensor by `.item()` or `float()`",
        _KEEP,
    ),
    (
        r"Tensor that doesn't have storage|Can't call numpy\(\)",
        "one that reads the values of a tensor by `.numpy()` or `.tolist()`",
        _NATIVE,
    ),
    (
        r"called random operation while in randomness error",
        "one that draws random numbers under vmap, such as dropout",
        "Put the module into eval mode, or draw with `pureopt.random` from a key that "
        "is an argument.",
    ),
    (
        r"operators that can support dynamic shape",
        "one with a result whose shape depends on values, such as `x[mask]`",
        "Use `torch.where(mask, x, 0.0)`, which keeps the shape.",
    ),
    (
        r"[Ff]orward AD with (?:aten::)?(\w+) that does not support it",
        _NO_FORWARD,
        _REVERSE,
    ),
    (
        r"(jvp) function for custom autograd\.Function",
        "one with a `torch.autograd.Function` that has no `{}`",
        _REVERSE,
    ),
    (r"derivative for '?(?:aten::)?(\w+)'? is not implemented", _NO_SECOND, _COMPOSE),
    (
        r"must override the (setup_context) staticmethod",
        "one with a `torch.autograd.Function` that has no `{}`, such as reentrant "
        "checkpointing",
        _COMPOSE,
    ),
    (
        r"vmap over (\w+), but it does not have vmap support",
        "one with the `torch.autograd.Function` `{}`, which has no rule for vmap",
        "Set `generate_vmap_rule = True` in it.",
    ),
    (
        r"Batching rule not implemented for aten::([\w]+)",
        "one with `{}`, which has no rule for vmap",
        _COMPOSE,
    ),
    (
        r"support saved tensor hooks",
        "one with checkpointing or other hooks on saved tensors",
        "Call the function without; a smaller `chunk_size` saves memory.",
    ),
    (
        r"requires_grad_\(\)",
        "one that calls `backward` or `torch.autograd`",
        "Differentiate inside of it with `torch.func.grad`.",
    ),
    (
        r"modified by an inplace operation",
        "one that writes in place to a value that its derivative needs",
        _FRESH,
    ),
    (
        r"ZeroTensors are immutable",
        "one with an operation that writes to a zero tangent of forward mode",
        _REVERSE,
    ),
    (
        r"Nested forward mode AD is not supported",
        "a call after a compilation of forward mode that failed in this process",
        "Start a fresh process, and let that function run eagerly.",
    ),
    (
        r"only return (?:Tensors|tensors), got (?:unsupported )?type <class '([\w.]+)'>",
        "one that returns a `{}`",
        "Return tensors, or a tree of tensors.",
    ),
)


def call(where: str, f: Callable[..., Any], *args: Any) -> Any:
    """``f(*args)``; what torch complains about is told in words.

    Outside of a compiled function it also sees to it that no tensor of ``args`` was
    written to: reverse mode refuses to, forward mode and vmap do it silently.

    Args:
        where: The public call, such as ``"hvp(f=...)"``.
        f: The function.
        *args: What it is called with: trees.

    Raises:
        DerivativeError: If ``args`` were written to, or torch's message is one that has
            a known cause.
    """
    before = _versions(args)
    try:
        value = f(*args)
    except (RuntimeError, ValueError) as error:
        if not isinstance(error, PureoptError):
            _explain(where, error)
        raise
    if _versions(args) != before:
        raise DerivativeError(where, _RULE, _WRITES, _FRESH)
    return value


def _versions(args: Sequence[Any]) -> list[int]:
    """How often each tensor was written to, where torch counts it."""
    if torch.compiler.is_compiling():
        return []
    return [
        leaf._version  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for leaf in tree_leaves(args)
        if isinstance(leaf, Tensor) and not leaf.is_inference()
    ]


def _explain(where: str, error: Exception) -> None:
    """Raise in words, if the cause is known."""
    for clue, got, way_out in _CLUES:
        if match := re.search(clue, str(error), re.DOTALL):
            told_of = got.format(*match.groups())
            raise DerivativeError(where, _RULE, told_of, way_out) from error


def scalar(where: str, value: Any) -> Tensor:
    """``value``, which must be a 0-d floating tensor.

    Raises:
        DerivativeError: If it is not.
    """
    if isinstance(value, Tensor) and value.is_floating_point() and not value.dim():
        return value
    rule = "return a 0-d floating tensor"
    if isinstance(value, Tensor) and value.is_floating_point():
        hint = "Reduce it, for example with `.sum()` or `.mean()`."
    else:
        hint = _no_derivative(value)
    raise DerivativeError(where, rule, told(value), hint)


def tensors(where: str, value: T) -> T:
    """``value``, which must be a tree of floating tensors.

    Raises:
        DerivativeError: If it is not.
    """
    items = tree_items(value)
    rule = "return a floating tensor or a tree of them"
    if not items:
        raise DerivativeError(where, rule, "an empty tree")
    for path, leaf in items:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            got = told(leaf) + (f" at '{path}'" if path else "")
            raise DerivativeError(where, rule, got, _no_derivative(leaf))
    return value


def _no_derivative(value: Any) -> str:
    """What to do with an output that has no derivative."""
    if value is None:
        return "Return the value: the function ends without `return`."
    if isinstance(value, float):
        return "Keep it a tensor: `.item()`, `float()` and `.tolist()` end derivatives."
    if isinstance(value, Tensor) and value.is_complex():
        return "Return its real part or `.abs()`, or `torch.view_as_real(...)`."
    if isinstance(value, Tensor):
        return "Whole numbers have no derivative."
    return "Return tensors; leave other results out."


def direction(where: str, v: Any, x: T, name: str = "x") -> T:
    """``v`` in the order of ``x``, whose keys, shapes and dtypes it must have.

    Args:
        where: The public call, such as ``"hvp(v=...)"``.
        v: The direction.
        x: The point.
        name: What the point is called there.

    Raises:
        TreeError: Names the first leaf that differs.
    """
    check_like(where, v, x, name)
    leaves = tree_match(v, x)
    for leaf, (path, ref) in zip(leaves, tree_items(x), strict=True):
        if leaf.dtype != ref.dtype:
            at = f" at '{path}'" if path else ""
            raise TreeError(
                where,
                f"have the dtypes of `{name}`",
                f"{leaf.dtype}{at}, where `{name}` has {ref.dtype}",
            )
    return tree_unflatten(tree_flatten(x)[1], leaves)


def point(where: str, x: Any) -> None:
    """Raise unless ``x`` is a tree of floating tensors with at least one number.

    Raises:
        TreeError: Names the first leaf that is not.
    """
    check_params(where, x)
    if not any(leaf.numel() for leaf in tree_leaves(x)):
        raise TreeError(where, "hold at least one number", told(tree_leaves(x)[0]))


def positive(where: str, number: Any) -> int:
    """``number``, which must be a positive Python integer.

    Args:
        where: The public call, such as ``"hessian(chunk_size=...)"``.
        number: A count.

    Raises:
        HyperparameterError: If it is not.
    """
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    got = repr(number) if isinstance(number, int | float) else told(number)
    raise HyperparameterError(where, "be a positive integer", got)


def chunk(where: str, chunk_size: Any) -> int | None:
    """``chunk_size``, which must be a positive integer, or ``None`` for all at once.

    Raises:
        HyperparameterError: If it is neither.
    """
    return chunk_size if chunk_size is None else positive(where, chunk_size)
