"""A copy of a module that keeps everything but the numbers of its tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pureopt._errors import PureoptError

_WHERE = "functionalize(module=...)"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks",
          "_backward_hooks")  # fmt: skip


def make_skeleton(module: nn.Module) -> nn.Module:
    """Copy the module, its parameters and buffers replaced by stand-ins of no memory.

    ``apply`` puts tensors into every slot for the time of a call. A read past the slots
    gives NaN, where the module's own tensors would give stale numbers in silence.

    Raises:
        PureoptError: If the module cannot be copied, or keeps one of its parameters in
            a container that has no slots.
    """
    leaves = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    memo: dict[int, Any] = {id(t): _stand_in(t) for t in leaves.values()}
    tensors = set(leaves.values())
    for name, sub in module.named_modules():
        _check_slots(name, sub, tensors)
        memo.update(_shared(sub))
    try:
        return copy.deepcopy(module, memo)
    except (TypeError, RuntimeError) as error:
        raise PureoptError(
            _WHERE,
            "be copyable with `copy.deepcopy`",
            f"{type(error).__name__}: {error}",
            "Keep open files, locks and generators outside the module.",
        ) from error


def _stand_in(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() or tensor.is_complex():
        number: float = float("nan")
    else:
        number = 0 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
    one = torch.full((), number, dtype=tensor.dtype, device=tensor.device)
    blank = one.expand(tensor.shape)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(blank, requires_grad=tensor.requires_grad)
    return blank


def _shared(sub: nn.Module) -> dict[int, Any]:
    """What the copy shares: hooks of others, and tensors that hooks compute anew.

    A recorder whose method is a hook must go on recording in the original.
    """
    hooks = [
        hook
        for kind in _HOOKS
        for hook in vars(sub).get(kind, {}).values()
        if not isinstance(getattr(hook, "__self__", None), nn.Module)
    ]
    shared: dict[int, Any] = {id(hook): hook for hook in hooks}
    for value in vars(sub).values():
        if isinstance(value, Tensor) and not value.is_leaf:
            shared[id(value)] = value.detach()
    return shared


def _check_slots(name: str, sub: nn.Module, leaves: set[Tensor]) -> None:
    for attribute, value in vars(sub).items():
        if attribute in {"_parameters", "_buffers", "_flat_weights"}:
            continue  # `_flat_weights`: recurrent modules refresh it themselves
        held = list(value.values()) if isinstance(value, dict) else value
        held = held if isinstance(held, list | tuple) else [value]
        if any(isinstance(item, Tensor) and item in leaves for item in held):
            path = f"{name}.{attribute}" if name else attribute
            raise PureoptError(
                _WHERE,
                "register its parameters and buffers",
                f"a second reference to one in the plain attribute '{path}'",
                "Use `nn.ParameterList` or `nn.ParameterDict`, or drop it.",
            )


def slots(skeleton: nn.Module, kind: str) -> Iterator[tuple[str, str]]:
    """Each (slot, leaf) by dotted name, every slot once; ``kind`` is ``"_parameters"``.

    A tied tensor has several slots and one leaf, a shared submodule each slot once.
    """
    first: dict[Tensor, str] = {}
    for name, sub in skeleton.named_modules():
        for attribute, tensor in getattr(sub, kind).items():
            if tensor is not None:
                slot = f"{name}.{attribute}" if name else attribute
                yield slot, first.setdefault(tensor, slot)


def absent_buffers(skeleton: nn.Module) -> list[tuple[nn.Module, str]]:
    """The buffers registered as ``None``: owner and attribute."""
    return [
        (sub, attribute)
        for sub in skeleton.modules()
        for attribute, tensor in sub._buffers.items()  # noqa: SLF001
        if tensor is None
    ]
