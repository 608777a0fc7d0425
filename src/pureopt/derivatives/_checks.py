"""What the operators ask of a function and its arguments."""

from __future__ import annotations

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
from pureopt._stand_in import StandIn
from pureopt._tree import (
    check_like,
    check_params,
    tree_flatten,
    tree_items,
    tree_leaves,
    tree_map,
    tree_match,
    tree_unflatten,
)
from pureopt.derivatives._complaints import WRITES, explain
from pureopt.derivatives._exactness import composed_of_exact

T = TypeVar("T")


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
    leaves = [] if torch.compiler.is_compiling() else _counted(args)
    before = [leaf._version for leaf in leaves]  # noqa: SLF001
    try:
        value = f(*args)
    except (RuntimeError, TypeError, ValueError) as error:
        if not isinstance(error, PureoptError):
            explain(where, error)
        raise
    for leaf, count in zip(leaves, before, strict=True):
        if leaf._version != count:  # noqa: SLF001
            raise DerivativeError(where, *WRITES)
    return value


def _counted(args: Sequence[Any]) -> list[Tensor]:
    """The tensors of which torch counts how often they are written to."""
    # What `x.detach()` gives inside of Taylor mode is the value itself.
    leaves = [
        leaf if isinstance(leaf, Tensor) else getattr(leaf, "value", None)
        for leaf in tree_leaves(args)
    ]
    return [x for x in leaves if isinstance(x, Tensor) and not x.is_inference()]


def function(where: str, f: T) -> T:
    """``f``, which must be a function.

    Raises:
        DerivativeError: If it is not.
    """
    if callable(f):
        return f
    hint = "Pass the function itself, as in `lambda x: loss(x, batch)`, not its value."
    raise DerivativeError(where, "be a function", told(f), hint)


def scalar_function(where: str, f: Callable[..., Any]) -> Callable[..., Tensor]:
    """``f`` under :func:`exact`; its value must be a 0-d floating tensor."""
    exactly = composed_of_exact(function(where, f))
    return lambda *args: scalar(where, exactly(*renewed(args)))


def tensor_function(where: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` under :func:`exact`; its value must be a tree of floating tensors."""
    exactly = composed_of_exact(function(where, f))
    return lambda *args: tensors(where, exactly(*renewed(args)))


def renewed(trees: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same leaves in containers of their own.

    Torch takes the leaves to differentiate by from the tree after the call: for those
    that a function has stored there, as in ``params["w"] = mask * params["w"]``.
    """
    return tree_map(lambda leaf: leaf, trees)


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
        DerivativeError: If it is a power series: the call stands inside Taylor mode.
    """
    leaves = tree_leaves(x)
    for leaf in leaves:
        if isinstance(leaf, StandIn):
            raise DerivativeError(
                where,
                "be called outside of Taylor mode",
                "a `Jet`: the function of a `jet`, `nth_derivative` or `laplacian`",
                "Take the outer derivative by `torch.func.grad` or `torch.func.jvp`, or "
                "both from one pass: `bilaplacian`, or `jet` of higher order.",
            )
    check_params(where, x)
    if not any(leaf.numel() for leaf in leaves):
        raise TreeError(where, "hold at least one number", told(leaves[0]))


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


def key(where: str, key: Any, tree: Any) -> Tensor:
    """``key``, which must be one key of ``pureopt.random``, where the tree is.

    Args:
        where: The public call, such as ``"trace_xtrace(key=...)"``.
        key: What is to draw vectors like the tree.
        tree: A tree of tensors.

    Raises:
        HyperparameterError: If it is not.
    """
    if isinstance(key, Tensor) and key.dtype == torch.int64 and not key.dim():
        device = tree_leaves(tree)[0].device
        if key.device == device:
            return key
        rule = f"be on the device of the tensors, {device}"
        hint = f'Move it there: `key.to("{device}")`.'
        raise HyperparameterError(where, rule, f"one on {key.device}", hint)
    hint = (
        "Make one with `pureopt.random.key(seed)`; map over several with "
        "`torch.func.vmap`."
    )
    raise HyperparameterError(where, "be one key, a 0-d int64 tensor", told(key), hint)
