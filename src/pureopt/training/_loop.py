"""The loop around a training step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pureopt._errors import PureoptError
from pureopt._progress import progress_bar
from pureopt._tree import tree_leaves
from pureopt.training._step import Metrics, Step


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
