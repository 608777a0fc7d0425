"""One pass over a batch that records activations and the gradients at their outputs.

The loss of one sample runs under a mode that sees each torch function. Where a parameter
leaf, found by ``is``, enters an operation that has a rule, a zero *tap* is added to the
operation's output and its input is saved; one gradient with respect to all taps gives
the deltas. What the gradient per sample of a leaf is made of then stands in
:class:`Recording`: for each use of the leaf its input and its delta, with the samples in
dimension 0. A leaf that also enters an operation without a rule is *opaque*: it has no
uses, and its gradients are taken by ``vmap(grad)`` (``_opaque``). All leaves are, if the
loss applies a transform of torch.func: its derivative uses them once more, unseen.

What the mode cannot see is not silently wrong. Rules use the leaf from outside the
gradient, so that the gradient with respect to the leaf itself is zero unless something
else used it: then the results of this leaf are NaN (``guard``).

The mode is stateless and the scope it reads lies on a thread-local stack, so that
``torch.compile`` can trace it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode

from pureopt._errors import DerivativeError
from pureopt._tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._composites import COMPOSITES
from pureopt.derivatives._per_sample._rules import RULES, is_batched
from pureopt.derivatives._per_sample._uses import Part, Use, common_blocks

_depth: Callable[[], int] = torch._C._functorch.get_dynamic_layer_stack_depth  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]

_MATRIX = 2  # dimensions

# It calls `super`, which a mode that is traced cannot.
_UNFLATTEN = Tensor.unflatten


class Known(NamedTuple):
    """A tensor that is a leaf or a view of one, and the same from outside the gradient."""

    tensor: Tensor
    constant: Tensor
    part: Part


class Like(NamedTuple):
    """What a tap looks like in one sample."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Recorded(NamedTuple):
    """A use of a leaf with its numbers: samples are dimension 0.

    Attributes:
        use: What is done with ``saved`` and ``delta``: see ``_uses``.
        saved: The input of the operation; the delta again if it is not needed.
        delta: The gradient of each sample's loss at the operation's output.
    """

    use: Use
    saved: Tensor
    delta: Tensor


class Recording(NamedTuple):
    """What a pass over the batch has seen.

    Attributes:
        leaves: For each leaf of the parameters its uses; ``None`` if it is opaque. A leaf
            that is not used has none.
        guards: For each leaf a 0-d tensor to add to what is made of its uses: 0, or NaN
            if something used the leaf unseen.
    """

    leaves: list[list[Recorded] | None]
    guards: list[Tensor]


class Scope:
    """What one run of the loss knows and collects."""

    def __init__(
        self,
        known: list[Known],
        leaves: int,
        taps: list[Tensor] | None = None,
        zero: Tensor | None = None,
    ) -> None:
        self.known = known
        self.depth = _depth()
        self.taps = taps
        self.zero = zero
        self.watched: list[Tensor] = []
        self.uses: list[Use] = []
        self.shapes: list[Like] = []
        self.saved: list[Tensor] = []
        self.opaque = [False] * leaves

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
            empty = value.unsqueeze(-1).narrow(-1, 0, 0)
            self.watched.append((empty * self.zero.to(value.device)).sum())
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

    def tapped(self, out: Tensor) -> Tensor:
        """The output of an operation with its tap."""
        self.shapes.append(Like(out.shape, out.dtype, out.device))
        i = len(self.shapes) - 1
        if self.taps is None or i >= len(self.taps):
            return out
        return out + self.taps[i]

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
        if func is _UNFLATTEN:
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
    values = _flat([*args, *kwargs.values()])
    if torch.compiler.is_compiling():
        scope.suspect(values)
    found = scope.among(values)
    if not found:
        return func(*args, **kwargs)
    if func in COMPOSITES:
        return _under(scope, COMPOSITES[func], *args, **kwargs)
    out = RULES[func](scope, *args, **kwargs) if func in RULES else NotImplemented
    if out is not NotImplemented:
        return out
    out = func(*args, **kwargs)
    # Without a tensor it was a question, such as that for the shape; `x[i] = w` has the
    # result `None`.
    if out is None or any(isinstance(value, Tensor) for value in _flat([out])):
        scope.hide([known.part.leaf for known in found])
    return out


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


def _under(scope: Scope, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    _SCOPES.stack.append(scope)
    try:
        with _Recorder():
            return f(*args, **kwargs)
    finally:
        _SCOPES.stack.pop()


class Plan(NamedTuple):
    """What is known of a loss before any number."""

    uses: list[Use]
    shapes: list[Like]
    opaque: list[bool]


def discover(
    where: str, loss: Callable[..., Any], params: Any, batch: tuple[Any, ...]
) -> Plan:
    """Run the first sample, as a batch of one, for the uses and the shapes of taps."""
    leaves, structure = tree_flatten(params)
    first = tree_map(lambda leaf: leaf[:1], batch)

    def look(skip: list[bool]) -> Plan:
        plans: list[Plan] = []

        def one(*sample: Any) -> Tensor:
            # Views, so that no leaf is another one, or what the loss closes over.
            views = [leaf.view_as(leaf) for leaf in leaves]
            known = _known(views, views, skip)
            scope = Scope(known, len(leaves))
            value = _under(scope, loss, tree_unflatten(structure, views), *sample)
            plans.append(Plan(scope.uses, scope.shapes, scope.opaque))
            return _checks.scalar(where, value)

        _checks.call(where, vmap(one), *first)
        return plans[0]

    plan = look([False] * len(leaves))
    opaque = [
        hidden or len(common_blocks([u for u in plan.uses if u.part.leaf == i])) > 1
        for i, hidden in enumerate(plan.opaque)
    ]
    # Once more, so that nothing is tapped for those that are opaque.
    return look(opaque)._replace(opaque=opaque) if any(opaque) else plan


def _known(
    tensors: list[Tensor], constants: list[Tensor], skip: list[bool]
) -> list[Known]:
    return [
        Known(tensor, constant, Part(i, tuple(tensor.shape), 0, (*tensor.shape, 1)[0]))
        for i, (tensor, constant) in enumerate(zip(tensors, constants, strict=True))
        if not skip[i]
    ]


def record(
    where: str, loss: Callable[..., Any], params: Any, batch: tuple[Any, ...]
) -> Recording:
    """The activations and deltas of each leaf, for every sample of the batch.

    Args:
        where: The public call, for messages.
        loss: ``loss(params, *sample) -> scalar``, of one sample.
        params: The parameters.
        batch: Trees of tensors with the samples in dimension 0.

    Raises:
        DerivativeError: If the loss is not a scalar, or not differentiable sample by
            sample.
    """
    plan = discover(where, loss, params, batch)
    leaves, structure = tree_flatten(params)
    samples = tree_leaves(batch)[0].shape[0]
    seen = [i for i in range(len(leaves)) if not plan.opaque[i]]

    def total(
        taps: list[Tensor], tracked: list[Tensor], zero: Tensor
    ) -> tuple[Tensor, Any]:
        inner = list(leaves)
        for i, leaf in zip(seen, tracked, strict=True):
            inner[i] = leaf

        def one(taps: list[Tensor], *sample: Any) -> tuple[Tensor, list[Tensor]]:
            scope = Scope(_known(inner, leaves, plan.opaque), len(leaves), taps, zero)
            value = _under(scope, loss, tree_unflatten(structure, inner), *sample)
            if scope.uses != plan.uses:
                raise DerivativeError(
                    where,
                    "do the same operations each time it is called",
                    f"{len(plan.uses)} uses of parameters, then {len(scope.uses)}",
                )
            value = _checks.scalar(where, value)
            nothing = (watched.to(value.device) for watched in scope.watched)
            return sum(nothing, value), scope.saved

        values, saved = vmap(one)(taps, *batch)
        return values.sum(), saved

    recorded: list[list[Recorded] | None] = [None for _ in leaves]
    guards = [leaf.new_zeros(()) for leaf in leaves]
    if not seen:
        return Recording(recorded, guards)
    taps = [
        torch.zeros((), dtype=like.dtype, device=like.device).expand(
            samples, *like.shape
        )
        for like in plan.shapes
    ]
    (deltas, hidden, _), saved = _checks.call(
        where,
        grad(total, argnums=(0, 1, 2), has_aux=True),
        taps,
        [leaves[i] for i in seen],
        leaves[0].new_zeros(()),
    )
    for i, leak in zip(seen, hidden, strict=True):
        recorded[i] = []
        guards[i] = torch.where((leak == 0).all(), 0.0, torch.nan).to(leak.dtype)
    for use in plan.uses:
        uses = recorded[use.part.leaf]
        if uses is not None:
            delta = deltas[use.tap]
            kept = saved[use.slot] if use.slot >= 0 else delta
            uses.append(Recorded(use, kept, delta))
    return Recording(recorded, guards)
