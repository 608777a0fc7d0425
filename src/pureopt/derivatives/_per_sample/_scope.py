"""What one run of a loss knows of its parameters, and the mode that collects it.

The mode is stateless and the scope it reads lies on a thread-local stack, so that
``torch.compile`` can trace it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pureopt._errors import DerivativeError
from pureopt._stand_in import StandIn
from pureopt.derivatives._complaints import WRITES_ON_THE_WAY
from pureopt.derivatives._exactness._numeric import innermost, is_batched
from pureopt.derivatives._per_sample._composites import (
    COMPOSITES,
    FOR_VMAP,
    UNFLATTEN,
)
from pureopt.derivatives._per_sample._rules import RULES
from pureopt.derivatives._per_sample._uses import Part, Use

_FUNCTORCH: Any = vars(torch._C)["_functorch"]  # noqa: SLF001
_depth: Callable[[], int] = _FUNCTORCH.get_dynamic_layer_stack_depth

_MATRIX = 2  # dimensions

# What is asked of a tensor without using it; most calls that a mode sees are these.
_ATTRIBUTES: tuple[Any, ...] = (
    *(Tensor.shape, Tensor.dtype, Tensor.device, Tensor.ndim),
    Tensor._version,  # noqa: SLF001
)
_QUESTIONS: set[Callable[..., Any]] = {
    *(attribute.__get__ for attribute in _ATTRIBUTES),
    *(Tensor.dim, Tensor.size, Tensor.numel),
    *(Tensor.is_floating_point, Tensor.is_inference),
}


class Known(NamedTuple):
    """A tensor that is a leaf or a view of one, and the same from outside the gradient."""

    tensor: Tensor
    constant: Tensor
    part: Part


class Hidden(Exception):  # noqa: N818
    """Every leaf has a use without a rule: the run has nothing left to record."""


class Scope:
    """What one run of the loss knows and collects.

    Args:
        known: The leaves.
        leaves: How many there are.
        lane: This sample's zero, which the gradient knows.
    """

    def __init__(self, known: list[Known], leaves: int, lane: Tensor) -> None:
        self.known = known
        self.depth = _depth()
        self.lane = lane
        self.tie = lane
        self.uses: list[Use] = []
        self.taps: list[Tensor] = []
        self.saved: list[Tensor] = []
        self.versions: list[tuple[Tensor, int]] = []
        self.opaque = [False] * leaves
        self.shown: list[Tensor] = []
        self.composing = False

    def find(self, value: Any) -> Known | None:
        """The leaf that this very object is; by ``is``, which compilers trace."""
        for known in self.known:
            if known.tensor is value:
                return known
        return None

    def save(self, value: Tensor) -> int:
        """Keep the input of an operation, and see to it that nobody writes to it.

        Rules use a leaf from outside the gradient, so that torch itself keeps no input.
        """
        self.saved.append(value)
        if torch.compiler.is_compiling():
            # No versions are counted: torch keeps an empty view of the same memory.
            # Detached, or the gradient would be padded with as many zeros.
            empty = value.detach().unsqueeze(-1).narrow(-1, 0, 0)
            nothing = (empty * self.lane.to(value.device)).sum()
            self.tie = self.tie + nothing.to(self.lane)
        else:
            bottom = innermost(value)
            if not bottom.is_inference():
                self.versions.append((bottom, bottom._version))  # noqa: SLF001
        return len(self.saved) - 1

    def check(self, where: str) -> None:
        """Raise if something was written to what is saved.

        Raises:
            DerivativeError: If so.
        """
        for tensor, version in self.versions:
            if tensor._version != version:  # noqa: SLF001
                raise DerivativeError(where, *WRITES_ON_THE_WAY)

    def value(self, tensor: Any) -> Any:
        """A leaf from outside the gradient; other tensors as they are."""
        known = self.find(tensor)
        return tensor if known is None else known.constant

    def among(self, values: list[Any]) -> list[Known]:
        """What is known of values."""
        found = [self.find(value) for value in values]
        return [known for known in found if known is not None]

    def suspect(self, values: list[Any]) -> None:
        """What is made of leaves in ways that a compiler does not show to the mode.

        It has a gradient and does not depend on the sample. Which leaf it is made of is
        known of ``w.T`` alone; ``F.pad(w)``, weight norms and the rows that a loop goes
        over may be made of any.
        """
        for value in values:
            if not self.is_of_leaves(value) or self.find(value) is not None:
                continue
            if any(value is shown for shown in self.shown):
                continue
            turned = [k.part.leaf for k in self.known if _is_turned(value, k.tensor)]
            self.hide(turned or range(len(self.opaque)))

    def is_of_leaves(self, value: Any) -> bool:
        """Whether it may be made of leaves alone; compilers know what has a gradient.

        A ``vmap`` over the parameters makes batches of the leaves themselves. What
        autograd calls a leaf, such as a parameter that is closed over, is made of nothing.
        """
        return (
            isinstance(value, Tensor)
            and value.requires_grad
            and not value.is_leaf
            and (not is_batched(value) or any(is_batched(k.tensor) for k in self.known))
        )

    def show(self, out: Any, values: list[Any]) -> None:
        """What an operation that was seen has made, of leaves alone, is not suspect."""
        if any(self.find(v) is not None or self.is_of_leaves(v) for v in values):
            self.shown += [v for v in _flat([out]) if isinstance(v, Tensor)]

    def learn(self, tensor: Tensor, constant: Tensor, part: Part) -> Tensor:
        """From now on this view of a leaf is known."""
        self.known.append(Known(tensor, constant, part))
        return tensor

    def add(self, use: Use) -> None:
        """Note a use at the tap that comes next."""
        self.uses.append(use)

    @property
    def tap(self) -> int:
        """The number of the tap that comes next."""
        return len(self.taps)

    def tapped(
        self, out: Tensor, bias: Known | None = None, view: tuple[int, ...] = (-1,)
    ) -> Tensor:
        """The output of an operation with its tap, which adds a bias by the way.

        The tap has the memory of one number, or of the bias, for each sample. Nobody
        else has it, so that what is written to the output leaves its gradient alone.
        """
        tap = self.lane.to(out.device, out.dtype)
        if bias is not None:
            tap = bias.constant.to(out.dtype).reshape(view) + tap
        tap = tap.expand(out.shape)
        self.taps.append(tap)
        return out + tap

    def hide(self, leaves: Iterable[int]) -> None:
        """These have a use without a rule."""
        for i in leaves:
            self.opaque[i] = True

    def give_up(self) -> None:
        """All leaves have.

        Raises:
            Hidden: Where it is worth it: compilers drop what nobody needs.
        """
        self.hide(range(len(self.opaque)))
        self.known = []
        if not torch.compiler.is_compiling():
            raise Hidden


def _is_turned(value: Tensor, leaf: Tensor) -> bool:
    """Whether this may be ``leaf.T``."""
    return (
        value.dim() >= _MATRIX
        and value.shape == leaf.shape[::-1]
        and value.stride() == leaf.stride()[::-1]
    )


class _Scopes(threading.local):
    def __init__(self) -> None:
        self.stack: list[Scope] = []


_SCOPES = _Scopes()


class _Recorder(TorchFunctionMode):
    """Stateless, so that it can be traced."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _QUESTIONS:
            return func(*args, **(kwargs or {}))
        if func is UNFLATTEN:
            func = torch.unflatten
        # A recorder around this one finds its own scope when the operation runs.
        scope = _SCOPES.stack.pop()
        try:
            if any(issubclass(kind, StandIn) for kind in types):
                scope.give_up()  # A rule of a power series uses what is in it, unseen.
            return _seen(scope, func, args, kwargs or {})
        finally:
            _SCOPES.stack.append(scope)


def _seen(
    scope: Scope,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The result of an operation, by its rule if a leaf enters it."""
    if _depth() != scope.depth or func in _SEES_ALL:
        scope.give_up()
    if func in FOR_VMAP and not scope.composing:
        return _composed(scope, FOR_VMAP[func], args, kwargs)
    if not torch.is_grad_enabled():
        # Nothing has a gradient here, nor has a view that is used where others do.
        return func(*args, **kwargs)
    values = _flat([*args, *kwargs.values()])
    if not torch.compiler.is_compiling():
        return _by_rule(scope, func, args, kwargs, values)
    scope.suspect(values)
    out = _by_rule(scope, func, args, kwargs, values)
    scope.show(out, values)
    return out


def _by_rule(
    scope: Scope,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: list[Any],
) -> Any:
    found = scope.among(values)
    if not found:
        return func(*args, **kwargs)
    if func in COMPOSITES:
        return under(scope, COMPOSITES[func], *args, **kwargs)
    out = RULES[func](scope, *args, **kwargs) if func in RULES else NotImplemented
    if out is not NotImplemented:
        return out
    out = func(*args, **kwargs)
    # Without a tensor it was a question, such as that for the shape; `x[i] = w` has the
    # result `None`.
    if out is None or any(isinstance(value, Tensor) for value in _flat([out])):
        scope.hide([known.part.leaf for known in found])
    return out


def _composed(
    scope: Scope,
    composition: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A composition for ``vmap``, of what has a leaf in it or none."""
    # What it does not know it leaves to torch, which is not to come back here.
    scope.composing = True
    try:
        return under(scope, composition, *args, **kwargs)
    finally:
        scope.composing = False


# What differentiates by itself what was computed before.
_SEES_ALL = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}


def _flat(values: Iterable[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        if isinstance(value, tuple | list):
            flat.extend(_flat(value))
        elif isinstance(value, dict):
            flat.extend(_flat(value.values()))
        else:
            flat.append(value)
    return flat


def under(scope: Scope, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function under the mode, with this scope."""
    _SCOPES.stack.append(scope)
    try:
        with _Recorder():
            return f(*args, **kwargs)
    finally:
        _SCOPES.stack.pop()
