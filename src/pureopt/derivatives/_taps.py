"""Gradients with respect to intermediate values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import grad

from pureopt._errors import DerivativeError, told
from pureopt._tree import tree_flatten, tree_items, tree_unflatten
from pureopt.derivatives import _checks

T = TypeVar("T")


class _Like(NamedTuple):
    """What a zero for a tensor needs to know, which is not the tensor."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class _Scope:
    """One call of the function: the names that passed, and what is added to them."""

    def __init__(self, zeros: dict[str, list[Tensor]] | None = None) -> None:
        # None while the shapes are looked for.
        self.zeros = zeros
        self.seen: dict[str, tuple[list[_Like], Any]] = {}


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.stack: list[_Scope] = []


_SCOPES = _Scopes()


def tap(h: T, name: str) -> T:
    """``h`` itself, under a name by which :func:`grad_at` finds it.

    Outside of :func:`grad_at` this is the identity. Names are unique in a call of the
    function that :func:`grad_at` differentiates: layers number theirs.

    Args:
        h: A floating tensor, or a tree of them.
        name: The name.

    Returns:
        ``h``.

    Raises:
        DerivativeError: Inside :func:`grad_at`, if ``h`` has something else than floating
            tensors, or the name was there before.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> x = torch.ones(2)
        >>> po.derivatives.tap(x, "hidden") is x
        True
    """
    # From the inside out, up to the call that asks for the name.
    for scope in reversed(_SCOPES.stack):
        h = _passed(scope, h, name)
        if scope.zeros is None or name in scope.zeros:
            break
    return h


def _passed(scope: _Scope, h: T, name: str) -> T:
    if name in scope.seen:
        raise DerivativeError(
            "tap(name=...)",
            "be unique in a call",
            f"'{name}' twice",
            "Number the names, as in f'layer{i}'.",
        )
    leaves, structure = tree_flatten(h)
    for path, leaf in tree_items(h):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            where = f"tap(h, '{name}')"
            got = told(leaf) + (f" at '{path}'" if path else "")
            raise DerivativeError(where, "have floating tensors for `h`", got)
    likes = [_Like(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
    scope.seen[name] = likes, structure
    if scope.zeros is None or name not in scope.zeros:
        return h
    zeros = scope.zeros[name]
    moved = [leaf + zero for leaf, zero in zip(leaves, zeros, strict=True)]
    return tree_unflatten(structure, moved)


def grad_at(
    f: Callable[..., Tensor], names: str | Sequence[str]
) -> Callable[..., dict[str, Any]]:
    r"""The function ``(*args) -> {name: gradient}`` at values on the way to ``f``.

    .. math::
        \frac{\partial f}{\partial h} = \nabla_e \, f \big|_{h \to h + e}, \quad e = 0

    ``f`` marks the values with :func:`tap`. What ``retain_grad`` does for modules, as a
    pure function: it composes with ``vmap``, where the gradients are those of each
    sample, with ``grad`` and itself, and with ``torch.compile``. ``f`` runs once more to
    find the shapes, which a compiler leaves out. Where calls are nested, a name belongs
    to the innermost that asks for it. Where ``f`` itself applies ``vmap``, the zero is
    one for all lanes, and the gradient their sum.

    Args:
        f: From any arguments to a 0-d tensor.
        names: The name or names to differentiate at.

    Returns:
        A function of the arguments of ``f``: a dict of trees like the values, in the
        order of ``names``.

    Raises:
        DerivativeError: If ``f`` is no function, or ``names`` are no names. At the call,
            if a name does not pass, ``f`` does not return a 0-d floating tensor, or cannot
            be differentiated.

    Example:
        The gradient at the hidden layer, for each of two samples:

        >>> import torch
        >>> import pureopt as po
        >>> def f(x):
        ...     return (po.derivatives.tap(3 * x, "hidden") ** 2).sum()
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> torch.func.vmap(po.derivatives.grad_at(f, "hidden"))(x)
        {'hidden': tensor([[ 6.],
                [12.]])}
    """
    where = "grad_at(f=...)"
    _checks.function(where, f)
    wanted: Any = [names] if isinstance(names, str) else names
    if not isinstance(wanted, Sequence):
        rule = "be a name or a sequence of names"
        raise DerivativeError("grad_at(names=...)", rule, told(names))
    wanted = list(wanted)  # the caller's may change

    def run(scope: _Scope, *args: Any) -> Tensor:
        _SCOPES.stack.append(scope)
        try:
            value = f(*_checks.renewed(args))
        finally:
            _SCOPES.stack.pop()
        return _checks.scalar(where, value)

    def gradients(*args: Any) -> dict[str, Any]:
        scope = _Scope()
        run(scope, *args)
        seen = scope.seen
        _check_names(wanted, seen)
        zeros = {name: [_zeros(like) for like in seen[name][0]] for name in wanted}
        slopes = grad(lambda zeros: run(_Scope(zeros), *args))(zeros)
        return {name: tree_unflatten(seen[name][1], slopes[name]) for name in wanted}

    def grad_at_names(*args: Any) -> dict[str, Any]:
        return _checks.call(where, gradients, *args)

    return grad_at_names


def _zeros(like: _Like) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=like.device)


def _check_names(wanted: list[str], seen: dict[str, Any]) -> None:
    for name in wanted:
        if name not in seen:
            known = ", ".join(f"'{name}'" for name in seen)
            raise DerivativeError(
                "grad_at(names=...)",
                "be names that pass through `tap`",
                f"'{name}'",
                f"There are {known}." if seen else "The function calls no `tap`.",
            )
