"""The jet: a truncated power series of tensors that stands in for a tensor."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt._stand_in import StandIn
from pureopt.derivatives._exactness._vector_norms import REMEMBERED
from pureopt.derivatives._jets._later import Coefficient, Later, found

Rule: TypeAlias = Callable[..., Any]

RULES: dict[Callable[..., Any], Rule] = {}
"""What to do in the place of each torch function when an argument is a jet."""


WRITTEN_IN_PYTHON: list[tuple[Callable[..., Any], Rule]] = []
"""The rules of methods of tensors and of users' functions in Python, newest first.

The compiler finds these by identity, not in a dict.
"""


class _Passes(threading.local):
    """The calls whose functions are being evaluated, and whether with gradients."""

    def __init__(self) -> None:
        self.open: list[tuple[str, bool]] = []


PASSES = _Passes()


# The functions that are written in C++: those in Python pass their arguments on by place.
_OF_TORCH = (types.BuiltinFunctionType, types.MethodDescriptorType)
_SEQUENCES = (list, tuple)
_NUMPYS = {"axis": "dim", "keepdims": "keepdim"}


def _named_as_in_rules(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Torch also takes numpy's names, and its first argument by the name ``input``."""
    named = {_NUMPYS.get(name, name): value for name, value in kwargs.items()}
    if not args and "input" in named and "condition" not in named:
        args = (named.pop("input"),)
    return args, named


def _own(x: Any) -> Any:
    """A list, or those in a tuple, which the program may change before they are read."""
    if isinstance(x, list):
        return [*map(_own, x)]
    if type(x) is tuple and any(isinstance(part, list) for part in x):
        return tuple(map(_own, x))
    return x


def _by_identity(func: Callable[..., Any]) -> Rule | None:
    for known, rule in WRITTEN_IN_PYTHON:
        if func is known:
            return rule
    return None


class Jet(StandIn):
    r"""A power series :math:`x(t) = x_0 + x_1 t + \dots + x_K t^K` in the place of a tensor.

    Inside :func:`jet`, the function sees its arguments as jets: every torch function
    and method that has a rule takes and returns them, and so do operators and indexing.
    ``shape``, ``dtype``, ``device``, ``dim()`` and ``size()`` are those of the value, and
    comparisons compare values. Rules are written with jets; other programs need not know
    of them.

    Attributes:
        value: The coefficient of order zero, a tensor.
        terms: The coefficients of order 1 to K, as :meth:`coefficient` gives them: each is
            a tensor of the shape of ``value``, or ``None`` where it is known to be zero.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> def f(x):
        ...     return x.exp() if isinstance(x, po.derivatives.Jet) else 0 * x
        >>> po.derivatives.jet(f, torch.tensor(0.0), (torch.tensor(1.0),))
        (tensor(1.), (tensor(1.),))
    """

    # With `summed`, several series that share their value are carried at once, along a
    # new first dimension of the coefficients, but for the coefficient of that order,
    # which is the sum over the directions. Only sums of such terms enter it, which is
    # what makes Laplacians cheap.
    # `locked` is an argument of the function, a view, or what has one: numbers that other
    # tensors share cannot be written to.
    __slots__ = ("__weakref__", "locked", "summed", "terms", "value")

    def __init__(
        self,
        value: Tensor,
        terms: Iterable[Coefficient | Later],
        summed: int | None = None,
    ) -> None:
        self.value = value
        self.terms = tuple(terms)
        self.summed = summed
        self.locked = False

    def frozen(self) -> Jet:
        """What this jet is now, whatever is written to it later."""
        return Jet(self.value, self.terms, self.summed)

    def __copy__(self) -> Jet:
        """Of a tensor a second name of the same numbers."""
        copy = self.frozen()
        self.locked = copy.locked = True
        return copy

    def write(self, new: Jet, name: str) -> Jet:
        """What an operation in place does: this very jet becomes another one.

        Raises:
            DerivativeError: If it is locked, or the other one has another shape or dtype.
        """
        if self.locked:
            raise DerivativeError(
                "jet(f=...)",
                "not write in place to an argument, a view, or what has a view",
                name,
                "Compute a new tensor: `x = x + y` in place of `x += y`.",
            )
        if (new.shape, new.dtype) != (self.shape, self.dtype):
            raise DerivativeError(
                "jet(f=...)",
                "keep shape and dtype of what it writes to",
                f"{name} of {tuple(new.shape)} and {new.dtype} into "
                f"{tuple(self.shape)} and {self.dtype}",
            )
        REMEMBERED.forget(self)
        self.value, self.terms = new.value, new.terms
        return self

    def coefficient(self, k: int, part: slice | None = None) -> Coefficient:
        """The coefficient of order ``k``, or these directions of it."""
        if not k:
            return self.value
        c = self.terms[k - 1]
        return c if c is None else found(c, part)

    @property
    def coefficients(self) -> tuple[Coefficient, ...]:
        """Those of order 1 to K."""
        return tuple([c if c is None else found(c) for c in self.terms])

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not torch.is_grad_enabled() and any(graded for _, graded in PASSES.open):
            # Taylor mode goes through `torch.no_grad`, in which torch runs the `forward` of
            # an `autograd.Function`. So do gradients of its coefficients.
            with torch.enable_grad():
                return cls.__torch_function__(func, types, args, kwargs)
        rule = _by_identity(func) or RULES.get(func)
        if rule is None:
            raise missing(func)
        for x in args:  # `any(...)` would make a generator in each call
            if isinstance(x, _SEQUENCES):
                args = tuple(map(_own, args))
                break
        if not kwargs:
            return rule(*args)
        kwargs = {name: _own(value) for name, value in kwargs.items()}
        if kwargs.get("out") is not None:
            raise DerivativeError(
                "jet(f=...)",
                "not write in place",
                f"`{name_of(func)}` with `out=`",
                "Use the result of the call.",
            )
        if kwargs.pop("inplace", False):
            return args[0].write(rule(*args, **kwargs), f"`{name_of(func)}(inplace)`")
        if isinstance(func, _OF_TORCH):
            args, kwargs = _named_as_in_rules(args, kwargs)
        return rule(*args, **kwargs)

    @property
    def order(self) -> int:
        """The order K at which the series ends."""
        return len(self.terms)

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the value."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """The device of the value."""
        return self.value.device

    @property
    def ndim(self) -> int:
        """The number of dimensions of the value."""
        return self.value.ndim

    @property
    def layout(self) -> torch.layout:
        """The layout of the value."""
        return self.value.layout

    is_nested = False
    is_cuda = property(lambda self: self.value.is_cuda)
    is_sparse = False
    requires_grad = False

    def __len__(self) -> int:
        if not self.ndim:  # also what `torch.tensor([x, y])` asks for
            raise DerivativeError(
                "jet(f=...)",
                "keep its numbers in tensors",
                "a 0-d tensor in the place of a number or of a sequence",
                "Join tensors with `torch.stack([x, y])`, not `torch.tensor([x, y])`.",
            )
        return len(self.value)

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __bool__(self) -> bool:
        return bool(self.value)

    def __repr__(self) -> str:
        shape, dtype = tuple(self.shape), self.dtype
        return f"Jet(shape={shape}, dtype={dtype}, order={self.order})"


def missing(func: Callable[..., Any]) -> DerivativeError:
    """The error for a function without a rule."""
    name = name_of(func)
    return DerivativeError(
        "jet(f=...)",
        "call functions that have a rule for power series",
        f"`{name}`",
        f"Register one: `pureopt.derivatives.register_jet({name}, rule)`, where `rule` "
        "takes the same arguments and is written with functions that have one.",
    )


def name_of(func: Callable[..., Any]) -> str:
    """How a program writes this function."""
    if torch.compiler.is_compiling():  # the look-up of the module cannot be traced
        return func.__name__
    name = torch.overrides.resolve_name(func) or getattr(func, "__name__", repr(func))
    operators = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)  # noqa: SLF001
    return f"torch.ops.{name}" if isinstance(func, operators) else name
