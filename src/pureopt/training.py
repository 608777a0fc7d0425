"""Training as a pure step on a carry, and the loop around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor
from torch.func import grad_and_value

from pureopt._errors import PureoptError, TreeError, told
from pureopt._progress import progress_bar
from pureopt._tree import check_like, check_params, tree_items, tree_leaves, tree_map
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


class Record(NamedTuple):
    """What a callback of :func:`train` is given after each step.

    Attributes:
        epoch: The epoch, from 0.
        step: How many steps this call of :func:`train` has taken, so from 1.
        end_of_epoch: Whether this was the last batch of the epoch.
        carry: The carry after the step.
        metrics: The metrics of the step, at the parameters before it. Reading one
            (``float(...)``) waits for the device.

    Example:
        >>> Record._fields
        ('epoch', 'step', 'end_of_epoch', 'carry', 'metrics')
    """

    epoch: int
    step: int
    end_of_epoch: bool
    carry: Any
    metrics: Metrics


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
        # A copy: the carry must not change when the module is trained in place.
        free = tree_map(
            lambda p: p.clone(memory_format=torch.contiguous_format), params
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
        ``init``, ``params`` and ``restart``.

    Raises:
        PureoptError: If ``transform`` is not an optimizer; at the first step, if
            ``loss_fn`` returns something else than a 0-d loss.

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
    return Step(loss_fn, transform, space)


def train(
    step: Callable[..., tuple[Any, Metrics]],
    carry: Any,
    batches: Iterable[Sequence[Any]],
    *,
    epochs: int = 1,
    callbacks: Sequence[Callable[[Record], object]] = (),
    progress: bool = False,
) -> Any:
    """Take a step for each batch, ``epochs`` times over.

    Nothing waits for the device but the callbacks that read a metric, and the progress
    bar once in 20 steps.

    A transform that searches (L-BFGS) compares losses of successive steps, so it is
    restarted whenever the tensors of a batch are other objects than those of the batch
    before. For full-batch training pass the same tensors each time: ``[(x, y)]``.

    Args:
        step: From :func:`make_step`; also ``torch.compile`` or ``torch.func.vmap`` of
            one, or any function ``(carry, *batch) -> (carry, metrics)``.
        carry: From ``step.init``, or from a previous call.
        batches: Tuples of the arguments after ``params`` (and ``buffers``): a list, or a
            ``DataLoader``. Batches are read one ahead.
        epochs: How often to go through ``batches``, at least 0.
        callbacks: Each is called with a :class:`Record` after every step. If one returns
            ``True``, training stops there.
        progress: Show a progress bar; needs tqdm (``pip install pureopt[progress]``).

    Returns:
        The carry after the last step; ``step.params(carry)`` is what to evaluate or save.

    Raises:
        PureoptError: If ``batches`` is empty, can be read only once but ``epochs > 1``,
            or yields something else than tuples or lists.
        ImportError: If ``progress`` and tqdm is not installed.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> step = po.make_step(lambda w, x: (w - x).square(), po.SGD(lr=0.25))
        >>> losses = []
        >>> def log(record):
        ...     if record.end_of_epoch:
        ...         losses.append(float(record.metrics["loss"]))
        >>> carry = step.init(torch.tensor(0.0))
        >>> batches = [(torch.tensor(1.0),)]
        >>> carry = po.train(step, carry, batches, epochs=3, callbacks=[log])
        >>> losses, step.params(carry)
        ([1.0, 0.25, 0.0625], tensor(0.8750))
    """
    _check_epochs(batches, epochs)
    source, previous, taken = _searching(step), None, 0
    with progress_bar(_total(batches, epochs), enabled=progress) as advance:
        for epoch in range(epochs):
            for batch, last in _marked(batches):
                if source is not None and not _same(batch, previous):
                    carry = source.restart(carry)
                carry, metrics = step(carry, *batch)
                previous, taken = batch, taken + 1
                advance(metrics)
                record = Record(epoch, taken, last, carry, metrics)
                if any([callback(record) is True for callback in callbacks]):  # noqa: C419
                    return carry  # (a list: every callback sees the record)
    return carry


def _searching(step: Callable[..., Any]) -> Step | None:
    """The step, below torch.compile and vmap, if its transform searches."""
    source = inspect.unwrap(step)
    if isinstance(source, Step) and source.transform.searches:
        return source
    return None


def _marked(batches: Iterable[Sequence[Any]]) -> Iterator[tuple[Sequence[Any], bool]]:
    """Pairs of a batch and whether it is the last one."""
    iterator = iter(batches)
    for batch in iterator:
        current = _batch(batch)
        for following in iterator:
            yield current, False
            current = _batch(following)
        yield current, True
        return
    raise PureoptError("train(batches=...)", "yield at least one batch", "none")


def _batch(batch: Any) -> Sequence[Any]:
    if isinstance(batch, tuple | list):
        return batch
    raise PureoptError(
        "train(batches=...)",
        "yield tuples of the arguments of the loss function",
        f"`{type(batch).__name__}`",
        "A single argument is a tuple too: `[(x,), ...]`.",
    )


def _same(batch: Any, previous: Any) -> bool:
    if previous is None:
        return False
    old, new = tree_leaves(previous), tree_leaves(batch)
    return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))


def _total(batches: Any, epochs: int) -> int | None:
    try:
        return len(batches) * epochs
    except TypeError:  # an iterable dataset has no length
        return None


def _check_epochs(batches: Any, epochs: int) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PureoptError("train(epochs=...)", "be an integer >= 0", repr(epochs))
    if epochs > 1 and isinstance(batches, Iterator):
        raise PureoptError(
            "train(batches=...)",
            "be re-iterable when `epochs` > 1",
            f"a one-shot `{type(batches).__name__}`",
            "Pass a list, a `DataLoader`, or an object with `__iter__`.",
        )


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
