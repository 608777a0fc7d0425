"""A progress bar that reads the device only now and then."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor

Advance: TypeAlias = Callable[[Mapping[str, Tensor]], None]
"""Count one step, whose metrics may be shown."""

_EVERY = 20
"""Steps between two updates: each one waits for the device to read the metrics."""


@contextmanager
def progress_bar(
    total: int | None, *, enabled: bool, every: int = _EVERY, unit: str = "step"
) -> Generator[Advance]:
    """A function to call once a step; it draws a bar where ``enabled``.

    Args:
        total: The number of steps, or ``None`` if unknown.
        enabled: Whether to draw; otherwise nothing is imported, shown or read.
        every: Steps between two updates of the bar and reads of the metrics.
        unit: What is counted.

    Raises:
        ImportError: If ``enabled`` and tqdm is not installed.
    """
    if not enabled:
        yield _ignore
        return
    with _tqdm()(total=total, unit=unit) as bar:
        pending = 0
        shown: Mapping[str, Tensor] = {}

        def advance(metrics: Mapping[str, Tensor]) -> None:
            nonlocal pending, shown
            pending, shown = pending + 1, metrics
            if pending == every:
                _draw(bar, pending, shown)
                pending = 0

        try:
            yield advance
        finally:
            if pending:
                _draw(bar, pending, shown)


def _ignore(metrics: Mapping[str, Tensor]) -> None:
    del metrics


def _draw(bar: Any, steps: int, metrics: Mapping[str, Tensor]) -> None:
    # A metric with lanes shows their mean.
    bar.set_postfix(
        {k: f"{float(v.double().mean()):.4g}" for k, v in metrics.items()},
        refresh=False,
    )
    bar.update(steps)


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415
    except ImportError:
        raise ImportError(
            "`progress=True` needs tqdm: run `pip install 'pureopt[progress]'`."
        ) from None
    return tqdm
