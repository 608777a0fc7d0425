"""A module called with other values in the place of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pureopt._stand_in import StandIn


def called_with(
    module: nn.Module,
    values: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The output; in ``values`` is left what stands in the slots after the call."""
    if any(isinstance(value, StandIn) for value in values.values()):
        with _standing_in(module, values):  # torch takes tensors only
            return module(*args, **kwargs)
    # Each slot has its own entry, so torch need not look for tied tensors.
    return torch.func.functional_call(module, values, args, kwargs, tie_weights=False)


@contextmanager
def _standing_in(
    module: nn.Module, values: dict[str, Any]
) -> Generator[None, None, None]:
    owners = dict(module.named_modules(remove_duplicate=False))

    def swapped(slot: str, value: Any) -> Any:
        path, _, name = slot.rpartition(".")
        owner: Any = owners[path]
        store = owner._parameters if name in owner._parameters else owner._buffers  # noqa: SLF001
        before, store[name] = store[name], value
        return before

    before = {slot: swapped(slot, value) for slot, value in values.items()}
    try:
        yield
    finally:
        values.update({slot: swapped(slot, value) for slot, value in before.items()})
