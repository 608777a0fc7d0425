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

from pureopt.derivatives._exactness._numeric import is_batched
from pureopt.derivatives._per_sample._composites import (
    COMPOSITES,
    FOR_VMAP,
    UNFLATTEN,
)
from pureopt.derivatives._per_sample._rules import RULES
from pureopt.derivatives._per_sample._uses import Part, Use

_depth: Callable[[], int] = torch._C._functorch.get_dynamic_layer_stack_depth  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]

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


class Like(NamedTuple):
    """What a tap looks like in one sample.

    Attributes:
        shape: Of the output that it is added to, as the next two.
        dtype: See above.
        device: See above.
        shift: The bias that it adds by the way, and its shape in the output.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    shift: tuple[Part, tuple[int, ...]] | None

    def tap(self, leaves: list[Tensor], samples: int) -> Tensor:
        """Zero, or the bias, for so many samples; it has the memory of one number."""
        size = samples, *self.shape
        if self.shift is None:
            zero = torch.zeros((), dtype=self.dtype, device=self.device)
            return zero.expand(size)
        part, view = self.shift
        bias = leaves[part.leaf].narrow(0, part.start, part.stop - part.start)
        return bias.to(self.dtype).reshape(view).expand(size)


class Scope:
    """What one run of the loss knows and collects.

    Args:
        known: The leaves.
        leaves: How many there are.
        planned: The taps in their order, each with what it is to be added to.
        zero: What ties saved inputs to the gradient, where one is taken.
    """

    def __init__(
        self,
        known: list[Known],
        leaves: int,
        planned: list[tuple[Like, Tensor]] | None = None,
        zero: Tensor | None = None,
    ) -> None:
        self.known = known
        self.depth = _depth()
        self.planned = planned
        self.zero = zero
        self.watched: list[Tensor] = []
        self.uses: list[Use] = []
        self.shapes: list[Like] = []
        self.saved: list[Tensor] = []
        self.opaque = [False] * leaves
        self.composing = False
        self.strayed = False

    def find(self, value: Any) -> Known | None:
        """The leaf that this very object is; by ``is``, which compilers trace."""
        for known in self.known:
            if known.tensor is value:
                return known
        return None

    def save(self, value: Tensor) -> int:
        """Keep the input of an operation, and let torch see that nobody writes to it.

        Rules use a leaf from outside the gradient, so that torch itself keeps no input:
        it keeps an empty view of the same memory.
        """
        self.saved.append(value)
        if self.zero is not None:
            # Detached, or the gradient would be padded with as many zeros.
            empty = value.detach().unsqueeze(-1).narrow(-1, 0, 0)
            self.watched.append(empty * self.zero.to(value.device))
        return len(self.saved) - 1

    def value(self, tensor: Any) -> Any:
        """A leaf from outside the gradient; other tensors as they are."""
        known = self.find(tensor)
        return tensor if known is None else known.constant

    def among(self, values: list[Any]) -> list[Known]:
        """What is known of values."""
        found = [self.find(value) for value in values]
        return [known for known in found if known is not None]

    def suspect(self, values: list[Any]) -> None:
        """What may be ``w.T``, which a compiler does not show to the mode.

        It does not depend on the sample, and has the sizes of a leaf.
        """
        for value in values:
            if not isinstance(value, Tensor) or value.dim() < _MATRIX:
                continue
            if self.find(value) is not None:
                continue
            for known in self.known:
                # A `vmap` over the parameters makes batches of the leaves themselves.
                sampled = is_batched(value) and not is_batched(known.tensor)
                if not sampled and sorted(known.part.shape) == sorted(value.shape):
                    self.opaque[known.part.leaf] = True

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
        return len(self.shapes)

    def tapped(
        self, out: Tensor, bias: Known | None = None, view: tuple[int, ...] = (-1,)
    ) -> Tensor:
        """The output of an operation with its tap, which adds a bias by the way."""
        shift = None if bias is None else (bias.part, view)
        like = Like(out.shape, out.dtype, out.device, shift)
        i = len(self.shapes)
        self.shapes.append(like)
        if self.planned is not None and not self.strayed:
            if i < len(self.planned) and self.planned[i][0] == like:
                return out + self.planned[i][1]
            self.strayed = True
        return out if bias is None else out + bias.constant.to(out.dtype).reshape(view)

    def followed(self, uses: list[Use], seen: list[int]) -> bool:
        """Whether the run had these uses and no other one of these leaves."""
        hidden = any(self.opaque[i] for i in seen)
        return not (self.strayed or hidden) and self.uses == uses

    def hide(self, leaves: Iterable[int]) -> None:
        """These have a use without a rule."""
        for i in leaves:
            self.opaque[i] = True


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
        scope.hide(range(len(scope.opaque)))
    if func in FOR_VMAP and not scope.composing:
        return _composed(scope, FOR_VMAP[func], args, kwargs)
    values = _flat([*args, *kwargs.values()])
    if torch.compiler.is_compiling():
        scope.suspect(values)
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
