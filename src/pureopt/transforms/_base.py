"""The contract of every optimizer, and how they compose."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, final

import torch
from torch import Tensor

from pureopt._errors import (
    CompositionError,
    HyperparameterError,
    PureoptError,
    TreeError,
    told,
)
from pureopt._tree import check_like, check_params, tree_leaves, tree_map
from pureopt._typing import Hyper, P, Scalar, State
from pureopt.constraints import Transport


class Transform(ABC):
    """An optimizer as a pure function of ``(params, state, grads)``.

    The ``params`` that :meth:`step` returns are where to evaluate next;
    :meth:`eval_params` is the answer so far. For Adam the two are the same; for L-BFGS
    they are the trial point of its line search and the accepted iterate; for EMA the
    training point and the average.

    Example:
        >>> import torch
        >>> from pureopt import SGD
        >>> sgd, params = SGD(lr=0.5), {"w": torch.tensor(2.0)}
        >>> state = sgd.init(params)
        >>> params, state = sgd.step(params, state, {"w": torch.tensor(1.0)})
        >>> params["w"]
        tensor(1.5000)
    """

    @property
    def searches(self) -> bool:
        """Whether steps are searched by value, so that gradients must reach it unchanged."""
        return False

    @abstractmethod
    def init(self, params: Any) -> State:
        """The state before the first step.

        Args:
            params: A tree of floating tensors.

        Raises:
            TreeError: If a leaf is not a floating tensor, or there is none.
        """

    @abstractmethod
    def step(
        self, params: P, state: State, grads: P, *, value: Tensor | None = None
    ) -> tuple[P, State]:
        """One step: where to evaluate next, and the new state. Inputs are not modified.

        Args:
            params: The point at which ``grads`` and ``value`` were taken.
            state: From :meth:`init` or the previous step.
            grads: The gradient at ``params``: same tree, same shapes.
            value: The loss at ``params``, a 0-d tensor; needed by transforms that search.

        Raises:
            TreeError: If ``grads`` does not match ``params``; names the first leaf.
        """

    def eval_params(self, params: P, state: State) -> P:  # noqa: ARG002
        """The answer so far: what to evaluate, save or report."""
        return params

    def restart(self, state: State) -> State:
        """The state to go on with when the objective has changed (new data)."""
        return state

    def rebase(self, state: State, params: Any, transport: Transport) -> State:  # noqa: ARG002
        """The state to go on with when the coordinates of the parameters have changed.

        A fresh one, unless a transform can carry over what it knows. It has the
        structure, shapes and dtypes of ``state``.

        Args:
            state: From :meth:`init` or the previous step.
            params: The parameters in the new coordinates.
            transport: The change of coordinates, from :meth:`pureopt.Space.rebind`.
        """
        return self.init(params)

    def __rshift__(self, other: Transform) -> Transform:
        """``a >> b``: the gradients that ``a`` emits go to ``b``."""
        return chain(self, other)


class Additive(Transform):
    """A transform whose step is an addition: ``params + updates``.

    A link ``emits`` either ``"gradients"`` (clipping), to be placed left of an
    optimizer, or ``"deltas"`` (SGD, Adam), to be added to the parameters.

    Example:
        >>> from pureopt import SGD, ClipByGlobalNorm
        >>> SGD(lr=0.1).emits, ClipByGlobalNorm(1.0).emits
        ('deltas', 'gradients')
    """

    @property
    def emits(self) -> Literal["gradients", "deltas"]:
        """What :meth:`update` returns."""
        return "deltas"

    @abstractmethod
    def update(
        self, params: P, state: State, grads: P, *, value: Tensor | None = None
    ) -> tuple[P, State]:
        """The updates and the new state; arguments as in :meth:`Transform.step`."""

    @final
    def step(
        self, params: P, state: State, grads: P, *, value: Tensor | None = None
    ) -> tuple[P, State]:
        """``params + updates``, added in the wider dtype and cast to the leaf's.

        Raises:
            CompositionError: If this transform only emits gradients.
            TreeError: If ``grads`` does not match ``params``; names the first leaf.
        """
        name = type(self).__name__
        if self.emits == "gradients":
            raise CompositionError(
                f"{name}.step(...)",
                "end in an optimizer",
                "a transform that emits gradients",
                f"Append one: `{name}(...) >> SGD(lr)`.",
            )
        check_like(f"{name}.step(grads=...)", grads, params)
        updates, state = self.update(params, state, grads, value=value)
        return tree_map(lambda p, u: (p + u).to(p.dtype), params, updates), state


def chain(*transforms: Transform) -> Transform:
    """Compose transforms: ``chain(a, b, c)`` is ``a >> b >> c``.

    Raises:
        CompositionError: If a link left of the last one does not emit gradients, or if
            the last one searches and so needs the gradients unchanged.

    Example:
        >>> import torch
        >>> from pureopt import SGD, ClipByGlobalNorm
        >>> clipped = chain(ClipByGlobalNorm(1.0), SGD(lr=1.0))
        >>> params = torch.zeros(2)
        >>> clipped.step(params, clipped.init(params), torch.tensor([3.0, 4.0]))[0]
        tensor([-0.6000, -0.8000])
    """
    links = tuple(link for t in transforms for link in _links(t))
    if not links:
        raise CompositionError("chain(...)", "be given a transform", "none")
    for left, right in pairwise(links):
        _check_fit(left, right)
    if len(links) == 1:
        return links[0]
    if isinstance(links[-1], Additive):
        return AdditiveChain(links)
    return Chain(links)


def _links(transform: Transform) -> tuple[Transform, ...]:
    if not isinstance(transform, Transform):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CompositionError("a >> b", "compose transforms", told(transform))
    if isinstance(transform, AdditiveChain | Chain):
        return transform.links
    return (transform,)


def _check_fit(left: Transform, right: Transform) -> None:
    a, b = type(left).__name__, type(right).__name__
    where = f"{a}(...) >> {b}(...)"
    if right.searches:
        raise CompositionError(
            where,
            f"leave nothing left of {b}",
            f"`{a}`",
            "A rescaled gradient no longer belongs to the value that the line search "
            "reads: put it into the objective.",
        )
    if not isinstance(left, Additive) or left.emits != "gradients":
        both = isinstance(right, Additive) and right.emits == "gradients"
        raise CompositionError(
            where,
            "have only transforms that emit gradients left of the optimizer",
            f"`{a}`, which is an optimizer",
            f"Write `{b}(...) >> {a}(...)`."
            if both
            else "Keep one optimizer; give different leaves different ones with separate trees.",
        )


def _update_links(
    links: tuple[Additive, ...],
    params: P,
    state: tuple[State, ...],
    grads: P,
    value: Tensor | None,
) -> tuple[P, tuple[State, ...]]:
    states: list[State] = []
    for link, link_state in zip(links, state, strict=True):
        grads, new_state = link.update(params, link_state, grads, value=value)
        states.append(new_state)
    return grads, tuple(states)


def _restart_links(
    links: tuple[Transform, ...], state: tuple[State, ...]
) -> tuple[State, ...]:
    return tuple(link.restart(s) for link, s in zip(links, state, strict=True))


def _rebase_links(
    links: tuple[Transform, ...],
    state: tuple[State, ...],
    params: Any,
    transport: Transport,
) -> tuple[State, ...]:
    return tuple(
        link.rebase(s, params, transport) for link, s in zip(links, state, strict=True)
    )


@final
@dataclass(frozen=True, eq=False)
class AdditiveChain(Additive):
    """``a >> b`` where every link is additive; its state is the tuple of theirs."""

    links: tuple[Any, ...]

    @property
    def emits(self) -> Literal["gradients", "deltas"]:
        """What the last link emits."""
        return self.links[-1].emits

    def init(self, params: Any) -> State:
        """The states of the links."""
        return tuple(link.init(params) for link in self.links)

    def update(
        self, params: P, state: State, grads: P, *, value: Tensor | None = None
    ) -> tuple[P, State]:
        """Hand the gradients from link to link."""
        return _update_links(self.links, params, state, grads, value)

    def restart(self, state: State) -> State:
        """The restarted states of the links."""
        return _restart_links(self.links, state)

    def rebase(self, state: State, params: Any, transport: Transport) -> State:
        """The rebased states of the links."""
        return _rebase_links(self.links, state, params, transport)


@final
@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """``a >> b`` where the last link moves the parameters by other means than adding."""

    links: tuple[Any, ...]

    def init(self, params: Any) -> State:
        """The states of the links."""
        return tuple(link.init(params) for link in self.links)

    def step(
        self, params: P, state: State, grads: P, *, value: Tensor | None = None
    ) -> tuple[P, State]:
        """Hand the gradients from link to link; the last one steps."""
        check_like("Chain.step(grads=...)", grads, params)
        grads, states = _update_links(self.links[:-1], params, state[:-1], grads, value)
        params, last = self.links[-1].step(params, state[-1], grads, value=value)
        return params, (*states, last)

    def eval_params(self, params: P, state: State) -> P:
        """The answer of the last link."""
        return self.links[-1].eval_params(params, state[-1])

    def restart(self, state: State) -> State:
        """The restarted states of the links."""
        return _restart_links(self.links, state)

    def rebase(self, state: State, params: Any, transport: Transport) -> State:
        """The rebased states of the links."""
        return _rebase_links(self.links, state, params, transport)


def check_hyper(
    where: str,
    value: Hyper,
    *,
    low: float = 0.0,
    high: float = math.inf,
    schedule: bool = True,
) -> None:
    """Raise unless ``value`` is a number in ``[low, high)``, a 0-d floating tensor, or a schedule.

    Numbers in tensors are not read: that would wait for the device. With
    ``schedule=False`` a callable is refused.

    Raises:
        HyperparameterError: Says the range and what was passed.
    """
    if isinstance(value, Tensor):
        if value.dim() or not value.is_floating_point():
            raise HyperparameterError(
                where,
                "be a 0-d floating-point tensor",
                f"shape {tuple(value.shape)}, dtype {value.dtype}",
                "Sweep many values with `torch.func.vmap`." if value.dim() else "",
            )
    elif schedule and isinstance(value, Callable):
        return
    elif isinstance(value, bool) or not isinstance(value, int | float):
        kinds = "{}, a 0-d tensor or a schedule" if schedule else "{} or a 0-d tensor"
        rule = f"be {kinds.format('a number')}"
        raise HyperparameterError(where, rule, f"`{type(value).__name__}`")
    elif not low <= value < high or not math.isfinite(value):
        bound = "finite and >= 0" if high == math.inf else f"in [{low:g}, {high:g})"
        raise HyperparameterError(where, f"be {bound}", repr(value))


def check_state(where: str, state: Any, kind: type, params: Any, *trees: str) -> None:
    """Raise unless the state is one of ``kind`` whose fields ``trees`` match ``params``.

    Raises:
        TreeError: Says what it is, or names the first leaf that differs.
    """
    if not isinstance(state, kind):
        raise TreeError(
            where,
            f"be the `{kind.__name__}` that `init` returns",
            told(state),
            "Begin with `state = optimizer.init(params)`.",
        )
    for name in trees:
        check_like(f"{where}.{name}", getattr(state, name), params)


def check_value(where: str, value: Tensor | None) -> Tensor:
    """The loss of a transform that needs one.

    Raises:
        TreeError: If it is missing or not a 0-d floating tensor.
    """
    rule = "be the loss at `params`, a 0-d floating tensor"
    if value is None:
        hint = (
            "The search compares values: pass `value=loss` "
            "(`torch.func.grad_and_value` returns it)."
        )
        raise TreeError(where, rule, "None", hint)
    if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TreeError(where, rule, f"`{type(value).__name__}`")
    if value.dim() or not value.is_floating_point():
        shape = f"shape {tuple(value.shape)}, dtype {value.dtype}"
        raise TreeError(where, rule, shape, "Reduce it, for example with `.mean()`.")
    return value


def resolve(hyper: Hyper, step: Tensor) -> Scalar:
    """The value of a hyper-parameter at this step."""
    if isinstance(hyper, Tensor) or not callable(hyper):
        return hyper
    value = hyper(step)
    rule = "return a 0-d floating-point tensor"
    if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = "Compute with torch functions of `step`, not with Python numbers."
        raise PureoptError("schedule(step)", rule, told(value), hint)
    if value.dim() or not value.is_floating_point():
        got = f"shape {tuple(value.shape)}, dtype {value.dtype}"
        raise PureoptError("schedule(step)", rule, got)
    return value


def working_dtype(leaf: Tensor) -> torch.dtype:
    """Float32 for low-precision leaves, else the leaf's own dtype."""
    return torch.promote_types(leaf.dtype, torch.float32)


def zero_step(params: Any) -> Tensor:
    """A fresh 0-d int64 counter on the device of the first leaf."""
    check_params("init(params=...)", params)
    # From a leaf: under vmap the counter then has a lane of its own memory, where
    # `torch.zeros` would be expanded from one number.
    return tree_leaves(params)[0].new_zeros((), dtype=torch.int64)
