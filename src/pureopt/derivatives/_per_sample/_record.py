"""One pass over a batch that records activations and the gradients at their outputs.

The loss of one sample runs under a mode that sees each torch function. Where a parameter
leaf, found by ``is``, enters an operation that has a rule, a zero *tap* is added to the
operation's output and its input is saved; one gradient with respect to all taps gives
the deltas. What the gradient per sample of a leaf is made of then stands in
:class:`Recording`: for each use of the leaf its input and its delta, with the samples in
dimension 0. A leaf that also enters an operation without a rule is *opaque*: it has no
uses, and its gradients are taken by ``vmap(grad)`` (``_opaque``). All leaves are, if the
loss applies a transform of torch.func or Taylor mode: there they are used once more,
unseen.

What the mode cannot see is not silently wrong. Rules use the leaf from outside the
gradient, so that the gradient with respect to the leaf itself is zero unless something
else used it: then the results of this leaf are NaN (``leaks``).

Taps are made where they are needed, of a zero for each sample that the gradient knows
from the start (the *lane*), so that the loss runs once. Since nobody knows them before,
torch.func cannot take the gradients for them: they are taken inside its transform.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.eager_transforms import _autograd_grad
from torch.func import vjp, vmap

from pureopt._tree import tree_flatten, tree_leaves, tree_unflatten
from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._scope import Hidden, Known, Scope, under
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
        leaks: For each leaf whether something used it unseen; ``None`` if it is opaque,
            or nothing can have.
    """

    leaves: list[list[Recorded] | None]
    leaks: list[Tensor | None]

    @property
    def opaque(self) -> list[bool]:
        """Of each leaf, whether it has a use without a rule."""
        return [uses is None for uses in self.leaves]


class _Notes(NamedTuple):
    """What a run of the loss tells besides numbers.

    Attributes:
        uses: Those of ``seen``.
        seen: The leaves all of whose uses have rules and can be added up.
    """

    uses: list[Use]
    seen: list[int]

    @property
    def taps(self) -> list[int]:
        """Those whose gradients are needed."""
        return sorted({use.tap for use in self.uses})


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
    leaves, structure = tree_flatten(params)
    lane = leaves[0].new_zeros(tree_leaves(batch)[0].shape[0])
    runs: list[_Notes] = []

    def total(lane: Tensor, tracked: list[Tensor]) -> tuple[Tensor, Any]:
        def one(lane: Tensor, *sample: Any) -> tuple[Tensor, Any, Any]:
            scope = Scope(_known(tracked, leaves), len(leaves), lane)
            value = under(scope, loss, tree_unflatten(structure, tracked), *sample)
            value = _checks.scalar(where, value)
            if torch.compiler.is_compiling():
                scope.suspect([value])
            scope.check(where)
            runs.append(_notes(scope))
            return value + scope.tie.to(value), scope.saved, scope.taps

        values, saved, taps = vmap(one)(lane, *batch)
        notes, summed = runs[-1], values.sum()
        used = [taps[i] for i in notes.taps]
        left = {i: tracked[i] for i in notes.seen}
        return summed, (_pulled_back(summed, used, left, lane), saved)

    def run(params: Any, batch: Any) -> Any:
        del params, batch  # only to see that they are not written to
        # Torch's types know the result without `aux` only.
        return vjp(total, lane, leaves, has_aux=True)[-1]

    try:
        (deltas, leaks), saved = _checks.call(where, run, params, batch)
    except Hidden:
        return Recording([None for _ in leaves], [None for _ in leaves])
    return _recording(len(leaves), runs[-1], deltas, leaks, saved)


def _known(tensors: list[Tensor], constants: list[Tensor]) -> list[Known]:
    return [
        Known(tensor, constant, Part(i, tuple(tensor.shape), 0, (*tensor.shape, 1)[0]))
        for i, (tensor, constant) in enumerate(zip(tensors, constants, strict=True))
    ]


def _notes(scope: Scope) -> _Notes:
    of_leaf = [
        [use for use in scope.uses if use.part.leaf == i]
        for i in range(len(scope.opaque))
    ]
    seen = [
        i
        for i, uses in enumerate(of_leaf)
        if not scope.opaque[i] and len(common_blocks(uses)) <= 1
    ]
    return _Notes([use for use in scope.uses if use.part.leaf in seen], seen)


def _pulled_back(
    value: Tensor, taps: list[Tensor], leaves: dict[int, Tensor], lane: Tensor
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The gradients at the taps, and of leaves that have one whether it is not zero."""
    inputs = [*taps, *leaves.values()]
    if not inputs:
        return [], {}
    if torch.compiler.is_compiling():
        # The one that compilers know. By the lane, torch sees writes to what is saved.
        found = _autograd_grad((value,), (*inputs, lane))
    else:
        # Nothing is made for leaves that nobody used unseen, which are all of them.
        found = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    grads: list[Tensor | None] = [*found]
    pairs = zip(taps, grads, strict=False)
    deltas = [torch.zeros_like(tap) if g is None else g for tap, g in pairs]
    unseen = zip(leaves, grads[len(taps) :], strict=False)
    return deltas, {i: g.any() for i, g in unseen if g is not None}


def _recording(
    leaves: int,
    notes: _Notes,
    deltas: list[Tensor],
    leaks: dict[int, Tensor],
    saved: list[Tensor],
) -> Recording:
    """What belongs to each leaf."""
    recorded: list[list[Recorded] | None] = [None for _ in range(leaves)]
    for i in notes.seen:
        recorded[i] = []
    at = dict(zip(notes.taps, deltas, strict=True))
    for use in notes.uses:
        uses, delta = recorded[use.part.leaf], at[use.tap]
        if uses is not None:
            kept = saved[use.slot] if use.slot >= 0 else delta
            uses.append(Recorded(use, kept, delta))
    return Recording(recorded, [leaks.get(i) for i in range(leaves)])
