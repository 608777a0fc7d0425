"""Where rules come from: this package's own, and those of its users."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt._errors import DerivativeError, told
from pureopt.derivatives._jets._algebra import (
    elementwise,
    lift,
    like,
    linear,
    univariate,
)
from pureopt.derivatives._jets._jet import RULES, WRITTEN_IN_PYTHON, Jet, Rule

R = TypeVar("R", bound=Callable[..., Any])

_HOMES = (torch, Tensor, torch.special, torch.linalg, F)


def spellings(*names: str) -> list[Callable[..., Any]]:
    """Every function of torch that has one of these names, methods included.

    ``"linalg.norm"`` is looked up in ``torch.linalg`` alone.
    """
    found = []
    for name in names:
        home, _, last = name.rpartition(".")
        homes = [getattr(torch, home)] if home else _HOMES
        found += [getattr(h, last) for h in homes if hasattr(h, last)]
    return found


def rule(*names: str) -> Callable[[R], R]:
    """Make the decorated function the rule of every spelling of these names."""

    def decorate(function: R) -> R:
        for op in spellings(*names):
            RULES[op] = function
        return function

    return decorate


def univariate_rule(*names: str) -> Callable[[R], Rule]:
    """As :func:`rule`, for an elementwise function of one variable."""

    def decorate(function: R) -> Rule:
        return rule(*names)(univariate(function))

    return decorate


def linear_in_first(ops: Iterable[Callable[..., Any]]) -> None:
    """The rule of functions that are linear in their first argument, for fixed others."""
    for op in ops:
        RULES[op] = _linear_rule(op)


def _linear_rule(op: Callable[..., Any]) -> Rule:
    def apply(x: Jet, *args: Any, **kwargs: Any) -> Any:
        return linear(lambda c: op(c, *args, **kwargs), x)

    return apply


def views_of_first(ops: Iterable[Callable[..., Any]]) -> None:
    """As :func:`linear_in_first`, where the result may share memory with the argument."""
    for op in ops:
        RULES[op] = sharing(_linear_rule(op))


def sharing(rule: Rule) -> Rule:
    """The rule, after which neither argument nor result can be written to in place."""

    def apply(x: Any, *args: Any, **kwargs: Any) -> Any:
        y = rule(x, *args, **kwargs)
        for jet in (x, *(y if isinstance(y, tuple | list) else (y,))):
            if isinstance(jet, Jet):
                jet.locked = True
        return y

    return apply


def register_jet(op: Callable[..., Any], rule: Callable[..., Any]) -> None:
    """Teach :func:`jet` a function by a composition.

    Args:
        op: A function that lets others stand in for tensors: one of torch, an operator of
            ``torch.ops``, or a function made by ``torch.overrides.wrap_torch_function``.
        rule: Takes the arguments of ``op``, of which those that depend on the variable
            are jets, and returns what ``op`` would return. It is written with functions
            that have rules, which call for call act on power series. It replaces a rule
            that was there.

    Raises:
        DerivativeError: If ``op`` or ``rule`` cannot be called.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> def chord(angle):
        ...     return 2 * torch.sin(angle / 2)
        >>> dispatcher = lambda angle: (angle,)
        >>> chord = torch.overrides.wrap_torch_function(dispatcher)(chord)
        >>> po.derivatives.register_jet(chord, lambda angle: 2 * torch.sin(angle / 2))
        >>> po.derivatives.nth_derivative(chord, 3)(torch.tensor(0.0))
        tensor(-0.2500)
    """
    _check("register_jet(op=...)", op)
    _check("register_jet(rule=...)", rule)
    _learn(op, rule)


def register_jet_derivative(
    op: Callable[..., Any], derivative: Callable[..., Any]
) -> None:
    r"""Teach :func:`jet` an elementwise function of one variable by its derivative.

    .. math:: y = \mathrm{op}(x), \qquad \frac{dy}{dx} = \mathrm{derivative}(x, y)

    Args:
        op: As for :func:`register_jet`; further arguments are constants.
        derivative: ``derivative(x, y, *args, **kwargs)`` with jets ``x`` and ``y``, written with
            functions that have rules.

    Raises:
        DerivativeError: If ``op`` or ``derivative`` cannot be called.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> j0 = torch.special.spherical_bessel_j0  # sin(x) / x
        >>> po.derivatives.register_jet_derivative(j0, lambda x, y: (x.cos() - y) / x)
        >>> x = torch.tensor(1.0)
        >>> po.derivatives.nth_derivative(j0, 2)(x)
        tensor(-0.2391)
    """
    _check("register_jet_derivative(op=...)", op)
    _check("register_jet_derivative(derivative=...)", derivative)

    def apply(x: Jet, *args: Any, **kwargs: Any) -> Jet:
        def slope(u: Jet, y: Jet) -> Jet:
            # Read late: it may be a constant or a view, which is written to by then.
            found = lift(u, derivative(u, y, *args, **kwargs))
            return like(found, found.value.clone(), found.terms)

        return elementwise(x, op(x.value, *args, **kwargs), slope)

    _learn(op, univariate(apply))


def _learn(op: Callable[..., Any], rule: Rule) -> None:
    """Put the rule where eager and compiled calls find it."""
    RULES.update(dict.fromkeys(_spelled(op), rule))
    if isinstance(op, types.FunctionType):
        WRITTEN_IN_PYTHON.insert(0, (op, rule))


def _spelled(op: Any) -> list[Callable[..., Any]]:
    """What a call of ``op`` may arrive as: an operator has a name and overloads."""
    overload = getattr(op, "_opoverload", op)  # of `torch.library.custom_op`
    packet = getattr(overload, "overloadpacket", overload)
    if not isinstance(packet, torch._ops.OpOverloadPacket):  # noqa: SLF001
        return [op]
    chosen = [overload] if overload is not packet else []
    every = [getattr(packet, name) for name in packet.overloads()]
    return [op, packet, *(chosen or every)]


def _check(where: str, value: object) -> None:
    if not callable(value):
        raise DerivativeError(where, "be a function", told(value))
