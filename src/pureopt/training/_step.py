"""A training step as a pure function of a carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor
from torch.func import grad_and_value

from pureopt._errors import PureoptError, TreeError, told
from pureopt._tree import check_like, check_params, tree_items, tree_map
from pureopt._typing import State
from pureopt.constraints import Space
from pureopt.transforms import Additive, Transform

Metrics: TypeAlias = dict[str, Tensor]
"""What a step reports: ``"loss"``, and what the loss function adds."""


class Carry(NamedTuple):
    """What travels from step to step: a plain tree of tensors, ready to be saved.

    Attributes:
        free: The unconstrained parameters: what is optimized.
        static: The data of the constraints that depend on the point; ``()`` without.
        buffers: The model's buffers; ``()`` if the loss function takes none.
        state: The state of the transform.

    Example:
        >>> Carry._fields
        ('free', 'static', 'buffers', 'state')
    """

    free: Any
    static: Any
    buffers: Any
    state: State


class Aux(NamedTuple):
    """What a loss function returns beside the loss.

    Attributes:
        buffers: The new buffers; ``()`` if the loss function takes none.
        metrics: Tensors to report, by name.

    Example:
        >>> import torch
        >>> Aux(metrics={"accuracy": torch.tensor(0.5)}).buffers
        ()
    """

    buffers: Any = ()
    metrics: Mapping[str, Tensor] = {}


@final
@dataclass(frozen=True, eq=False)
class Step:
    """One training step, a pure function ``(carry, *batch) -> (carry, metrics)``.

    Made by :func:`make_step`. It can be compiled, vmapped over an ensemble of carries,
    and differentiated through.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> step = po.make_step(lambda w, x: (w * x).square(), po.SGD(lr=0.5))
        >>> step(step.init(torch.tensor(1.0)), torch.tensor(2.0))[0].free
        tensor(-3.)
    """

    # torch.func.vmap asks for the name of what it maps; without one it takes the `repr`,
    # which torch.compile cannot trace.
    __name__ = "step"

    loss_fn: Callable[..., Any]
    transform: Transform
    space: Space | None = None

    def init(self, params: Any, buffers: Any = None, *, static: Any = None) -> Carry:
        """The carry before the first step.

        Args:
            params: The parameters, on the constraints' sets where there is a space
                (:func:`pureopt.constrain` checks that; here others become NaN);
                detached, as :func:`pureopt.functionalize` returns them.
            buffers: The buffers of the model. If given, even empty, the loss function is
                called with them.
            static: The static data of the constraints; that of the space by default.
                An ensemble has the space of one member, and passes each member's own
                static inside ``vmap``: that of ``constrain(stacked_params, spec)``.

        Raises:
            TreeError: If a leaf is not a floating tensor, or is a ``Parameter``.
            PureoptError: If ``static`` is given although there is no space.
        """
        _check_detached(params)
        if self.space is None:
            if static is not None:
                raise PureoptError(
                    "Step.init(static=...)",
                    "be left out without a space",
                    f"`{type(static).__name__}`",
                    "Write `make_step(loss_fn, transform, space=space)`.",
                )
            static = ()
        else:
            static = self.space.static if static is None else static
            params = self.space.right_inverse(params, static)
        # Copies: the carry must not change when the module is trained in place, and a
        # compiled step must not see that its static is at first that of the space.
        free, static = tree_map(
            lambda p: p.clone(memory_format=torch.contiguous_format), (params, static)
        )
        state = self.transform.init(free)
        return Carry(free, static, () if buffers is None else buffers, state)

    def __call__(self, carry: Carry, *batch: Any) -> tuple[Carry, Metrics]:
        _check_carry("step(carry)", carry)

        def objective(free: Any) -> tuple[Tensor, Aux]:
            return self._loss(self._forward(free, carry.static), carry.buffers, batch)

        grads, (loss, aux) = grad_and_value(objective, has_aux=True)(carry.free)
        free, state = self.transform.step(carry.free, carry.state, grads, value=loss)
        metrics = {"loss": loss, **aux.metrics}
        return Carry(free, carry.static, aux.buffers, state), metrics

    def params(self, carry: Carry) -> Any:
        """What to evaluate or save: the answer so far, on the constraints' sets."""
        _check_carry("Step.params(carry)", carry)
        free = self.transform.eval_params(carry.free, carry.state)
        return self._forward(free, carry.static)

    def restart(self, carry: Carry) -> Carry:
        """The carry to go on with when the loss function has changed (new data)."""
        return carry._replace(state=self.transform.restart(carry.state))

    def rebase(self, carry: Carry) -> Carry:
        """The same parameters in charts around them, to go on with.

        Moves the charts of the space (:meth:`pureopt.Space.rebind`) and carries the
        state of the transform over (:meth:`pureopt.Transform.rebase`): momentum and
        first moments are transported, second moments begin anew. A search begins anew
        at the answer so far. Pure, like a step; call it every so many steps.

        Raises:
            PureoptError: If the step has no space.
        """
        _check_carry("Step.rebase(carry)", carry)
        if self.space is None:
            raise PureoptError(
                "Step.rebase(carry)",
                "be called on a step with a space",
                "no constraint whose chart could move",
                "Write `make_step(loss_fn, transform, space=space)`.",
            )
        free = carry.free
        if self.transform.searches:
            # The answer is the point to go on from; the next trial is only a guess.
            free = self.transform.eval_params(free, carry.state)
        free, static, transport = self.space.rebind(free, carry.static)
        state = self.transform.rebase(carry.state, free, transport)
        return carry._replace(free=free, static=static, state=state)

    def _forward(self, free: Any, static: Any) -> Any:
        return free if self.space is None else self.space.forward(free, static)

    def _loss(self, params: Any, buffers: Any, batch: Any) -> tuple[Tensor, Aux]:
        if _is_absent(buffers):
            out = self.loss_fn(params, *batch)
            out = out if isinstance(out, tuple) else (out, Aux())
            return _checked(out)
        loss, aux = _checked(self.loss_fn(params, buffers, *batch))
        check_like(
            "make_step(loss_fn=...) -> Aux(buffers=...)",
            aux.buffers,
            buffers,
            "buffers",
        )
        return loss, aux


def make_step(
    loss_fn: Callable[..., Any], transform: Transform, *, space: Space | None = None
) -> Step:
    """A training step: evaluate the loss and its gradient, then step.

    Args:
        loss_fn: ``loss_fn(params, *batch) -> loss``, a 0-d tensor, or with an
            :class:`Aux`: ``(loss, Aux(metrics=...))``. If :meth:`Step.init` is given
            buffers, ``loss_fn(params, buffers, *batch) -> (loss, Aux(buffers, ...))``.
        transform: The optimizer.
        space: Constraints on the parameters, from :func:`pureopt.constrain`.
            ``loss_fn`` receives parameters that satisfy them.

    Returns:
        A pure function ``step(carry, *batch) -> (carry, metrics)`` with the methods
        ``init``, ``params``, ``restart`` and ``rebase``.

    Raises:
        PureoptError: If ``transform`` is not an optimizer or ``space`` no space; at the
            first step, if ``loss_fn`` returns something else than a 0-d loss.

    Example:
        Two steps of least squares on ``3 = w * 2``, by Newton's learning rate:

        >>> import torch
        >>> import pureopt as po
        >>> def loss_fn(w, x, y):
        ...     return (w * x - y).square() / 2
        >>> step = po.make_step(loss_fn, po.SGD(lr=0.25))
        >>> carry = step.init(torch.tensor(0.0))
        >>> batch = torch.tensor(2.0), torch.tensor(3.0)
        >>> carry, metrics = step(carry, *batch)
        >>> step.params(carry), metrics["loss"]
        (tensor(1.5000), tensor(4.5000))
        >>> step(carry, *batch)[1]["loss"]
        tensor(0.)
    """
    only_gradients = isinstance(transform, Additive) and transform.emits == "gradients"
    if not isinstance(transform, Transform) or only_gradients:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PureoptError(
            "make_step(transform=...)",
            "be an optimizer",
            told(transform),
            "Pass for example `AdamW(lr=1e-3)`, or append it: `clip >> AdamW(lr=1e-3)`.",
        )
    if not (space is None or isinstance(space, Space)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PureoptError(
            "make_step(space=...)",
            "be a `Space`",
            told(space),
            "Make one from feasible parameters: `pureopt.constrain(params, spec)`.",
        )
    return Step(loss_fn, transform, space)


def _check_carry(where: str, carry: object) -> None:
    if not isinstance(carry, Carry):
        raise PureoptError(
            where, "be a `Carry`", told(carry), "Begin with `step.init(params)`."
        )


def _check_detached(params: Any) -> None:
    check_params("Step.init(params=...)", params)
    for path, leaf in tree_items(params):
        if isinstance(leaf, torch.nn.Parameter):
            raise TreeError(
                "Step.init(params=...)",
                "hold plain tensors",
                f"a `Parameter` at '{path}'" if path else "a `Parameter`",
                "Autograd would record every step: take the params of "
                "`functionalize(module)`, or detach them.",
            )


def _is_absent(buffers: Any) -> bool:
    return isinstance(buffers, tuple) and not buffers


def _checked(out: Any) -> tuple[Tensor, Aux]:
    where = "make_step(loss_fn=...)"
    hint = "With buffers it returns `(loss, Aux(buffers, metrics))`."
    if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[1], Aux):  # noqa: PLR2004
        raise PureoptError(where, "return a loss and an `Aux`", told(out), hint)
    loss, aux = out
    if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
        hint = "Reduce it, for example with `.mean()`."
        raise PureoptError(where, "return a 0-d floating loss", told(loss), hint)
    for name, metric in aux.metrics.items():
        if not isinstance(metric, Tensor) or name == "loss":
            raise TreeError(
                f"{where} -> Aux(metrics=...)",
                "hold tensors, under other names than 'loss'",
                f"{told(metric)} at '{name}'",
            )
    return loss, aux
