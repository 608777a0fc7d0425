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
else used it: then the results of this leaf are NaN (``leaks``).

Where the taps are is known before they are: from a run of the first sample, or from the
plan of the call before, as long as the run follows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from pureopt._errors import DerivativeError
from pureopt._tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._scope import Known, Like, Scope, under
from pureopt.derivatives._per_sample._uses import Part, Use, common_blocks


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
        leaks: For each leaf whether something used it unseen; ``None`` if it is opaque.
    """

    leaves: list[list[Recorded] | None]
    leaks: list[Tensor | None]


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
            value = under(scope, loss, tree_unflatten(structure, views), *sample)
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


class Plans:
    """The plan of the last call of an operator, which saves the first sample's run.

    It holds no number, and is followed as long as the loss does: see :func:`record`.
    """

    def __init__(self) -> None:
        self._last: tuple[Any, Plan] | None = None

    def recall(self, key: Any) -> Plan | None:
        """The plan of the last call, if it was with tensors like these."""
        if torch.compiler.is_compiling() or self._last is None:
            return None
        return self._last[1] if self._last[0] == key else None

    def keep(self, key: Any, plan: Plan) -> None:
        """For the next call."""
        if not torch.compiler.is_compiling():
            self._last = key, plan


class _Strayed(Exception):  # noqa: N818
    """The loss did not follow the plan."""


def record(
    where: str,
    loss: Callable[..., Any],
    params: Any,
    batch: tuple[Any, ...],
    plans: Plans,
) -> Recording:
    """The activations and deltas of each leaf, for every sample of the batch.

    Args:
        where: The public call, for messages.
        loss: ``loss(params, *sample) -> scalar``, of one sample.
        params: The parameters.
        batch: Trees of tensors with the samples in dimension 0.
        plans: What is known from the call before.

    Raises:
        DerivativeError: If the loss is not a scalar, or not differentiable sample by
            sample.
    """
    key = _likeness(params, batch)
    plan = plans.recall(key)
    if plan is not None:
        try:
            return _followed(where, loss, params, batch, plan)
        except _Strayed:
            pass
    plan = discover(where, loss, params, batch)
    try:
        recording = _followed(where, loss, params, batch, plan)
    except _Strayed:
        raise DerivativeError(
            where,
            "do the same operations each time it is called",
            "other ones at the second call",
        ) from None
    plans.keep(key, plan)
    return recording


def _likeness(params: Any, batch: tuple[Any, ...]) -> Any:
    """Structure, shapes, dtypes and devices."""
    (leaves, structure), (data, form) = tree_flatten(params), tree_flatten(batch)
    likes = [(x.shape, x.dtype, x.device) for x in leaves]
    likes += [(x.shape[1:], x.dtype, x.device) for x in data]
    return structure, form, likes


def _followed(
    where: str,
    loss: Callable[..., Any],
    params: Any,
    batch: tuple[Any, ...],
    plan: Plan,
) -> Recording:
    """The recording, by one gradient with respect to all taps."""
    leaves, structure = tree_flatten(params)
    samples = tree_leaves(batch)[0].shape[0]
    seen = [i for i in range(len(leaves)) if not plan.opaque[i]]

    def total(
        taps: list[Tensor], tracked: list[Tensor], zero: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        inner = list(leaves)
        for i, leaf in zip(seen, tracked, strict=True):
            inner[i] = leaf

        def one(taps: list[Tensor], *sample: Any) -> tuple[Tensor, Any, Any]:
            known = _known(inner, leaves, plan.opaque)
            planned = list(zip(plan.shapes, taps, strict=True))
            scope = Scope(known, len(leaves), planned, zero)
            value = under(scope, loss, tree_unflatten(structure, inner), *sample)
            if not scope.followed(plan.uses, seen):
                raise _Strayed
            return _checks.scalar(where, value), scope.saved, scope.watched

        values, saved, watched = vmap(one)(taps, *batch)
        nothing = [empty.reshape(-1).to(values.device) for empty in watched]
        return torch.cat([values, *nothing]).sum(), saved

    recorded: list[list[Recorded] | None] = [None for _ in leaves]
    leaks: list[Tensor | None] = [None for _ in leaves]
    if not seen:
        return Recording(recorded, leaks)

    def differentiated(params: Any, batch: tuple[Any, ...]) -> Any:
        del params, batch  # only to see that they are not written to
        taps = [like.tap(leaves, samples) for like in plan.shapes]
        tracked, zero = [leaves[i] for i in seen], leaves[0].new_zeros(())
        return grad(total, argnums=(0, 1, 2), has_aux=True)(taps, tracked, zero)

    (deltas, hidden, _), saved = _checks.call(where, differentiated, params, batch)
    for i, leak in zip(seen, hidden, strict=True):
        recorded[i] = []
        leaks[i] = leak.any()
    for use in plan.uses:
        uses = recorded[use.part.leaf]
        if uses is not None:
            delta = deltas[use.tap]
            kept = saved[use.slot] if use.slot >= 0 else delta
            uses.append(Recorded(use, kept, delta))
    return Recording(recorded, leaks)
