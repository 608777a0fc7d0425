"""``functionalize`` and ``stack``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pureopt import _random
from pureopt._errors import PureoptError, TreeError, told
from pureopt._functional._call import called_with
from pureopt._functional._dropout import RNG, has_dropout, key_dropouts
from pureopt._functional._purity import (
    NoRandom,
    check_module,
    check_unwritten,
    versions,
)
from pureopt._functional._skeleton import absent_buffers, make_skeleton, slots
from pureopt._stand_in import StandIn
from pureopt._tree import check_like


class Functional(NamedTuple):
    """A module as a function and data: ``apply, params, buffers = functionalize(m)``.

    Attributes:
        apply: ``apply(params, buffers, *args, **kwargs) -> (output, new_buffers)``.
        params: ``{dotted name: tensor}`` in the order of ``module.parameters()``.
        buffers: ``{dotted name: tensor}``; with dropout also the key ``"rng"``.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> po.functionalize(torch.nn.Linear(2, 1)).params["weight"].shape
        torch.Size([1, 2])
    """

    apply: Callable[..., tuple[Any, dict[str, Tensor]]]
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]


def functionalize(
    module: nn.Module, *, key: Int[Tensor, ""] | None = None
) -> Functional:
    """Turn a module into a pure function of its parameters and buffers.

    ``apply(params, buffers, *args, **kwargs)`` returns what the module returns, and the
    buffers as the module would have left them: the running statistics of batch norm,
    the next key of dropout. It writes neither to its arguments nor to the module, whose
    tensors are copied, and runs under ``torch.func`` and ``torch.compile``.

    - The module is taken as it stands: train or eval mode, hooks and parametrizations
      (whose parameters are their ``original``) are those of this moment. Both modes
      have the same keys, so that leaves trained in one can be evaluated in the other.
    - A tied parameter, and a submodule that has two names, is one leaf under its first
      name; its gradient is the sum over its uses.
    - A module with dropout has a buffer ``"rng"``, a key that each call in train mode
      advances: the same buffers give the same masks, lanes of keys different ones.
      ``inplace`` of dropout is ignored.
    - The new running statistics of batch norm carry no derivative, as in torch: its
      kernel writes them as data. Inside ``vmap``, each lane whose parameters or input
      differ needs its own buffers (``in_dims`` 0), as :func:`stack` makes them.
    - Other random calls in train mode raise, because they would move torch's global
      generator. Those of NumPy and Python, those in eval mode, and ``rand_like`` and
      its kind inside ``torch.compile``, are not seen.
    - Tensors in plain attributes are constants, and what ``forward`` stores in plain
      attributes is not returned. Writes in place to parameters or input are not seen
      inside ``vmap`` and ``torch.compile``.
    - A call holds the copy of the module that belongs to ``apply``: two threads need
      two of them.

    Args:
        module: Any module whose parameters are floating or complex.
        key: The first key of the dropout masks; by default ``pureopt.random.key(0)``.

    Raises:
        PureoptError: If the module cannot be pure: it is compiled, scripted, wrapped for
            data parallelism or not copyable, has uninitialized parameters, or draws
            random numbers inside a fused kernel. ``apply`` raises it if ``forward``
            draws random numbers, or writes in place to a parameter or to its input.
        TreeError: If a parameter is of integer dtype. ``apply`` raises it if a key of
            ``params`` or ``buffers`` is missing or unknown, or a shape differs.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        >>> apply, params, buffers = po.functionalize(module)
        >>> list(params)
        ['0.weight', '0.bias', '1.weight', '1.bias']
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
        >>> y, new = apply(params, buffers, x)
        >>> int(buffers["1.num_batches_tracked"]), int(new["1.num_batches_tracked"])
        (0, 1)
        >>> bool((y == module(x)).all())
        True
    """
    check_module(module)
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
    if has_dropout(module):
        tensors = [*params.values(), *buffers.values()]
        buffers[RNG] = _first_key(key, tensors[0].device if tensors else None)
    return Functional(_make_apply(module, buffers), params, buffers)


def _first_key(key: Tensor | None, device: torch.device | None) -> Tensor:
    if key is None:
        return _random.key(0, device=device)
    if not isinstance(key, Tensor) or key.dtype != torch.int64 or key.dim():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PureoptError(
            "functionalize(key=...)",
            "be a 0-d int64 tensor",
            told(key),
            "Make one with `pureopt.random.key(seed)`.",
        )
    return key.detach().clone().to(device=device)


def stack(
    modules: Iterable[nn.Module], *, key: Int[Tensor, ""] | None = None
) -> Functional:
    """The triple of :func:`functionalize` for an ensemble: dimension 0 is the member.

    ``apply`` is that of one member, for
    ``torch.func.vmap(apply, in_dims=(0, 0, None))(params, buffers, x)``. Each member has
    its own buffers and its own dropout key.

    Args:
        modules: Members of one architecture, all in the same mode.
        key: Split into the first dropout keys; by default ``pureopt.random.key(0)``.

    Raises:
        PureoptError: If there is no member, or one cannot be pure.
        TreeError: If two members differ in more than the numbers in their tensors;
            names the first difference.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> members = [torch.nn.Linear(3, 1) for _ in range(4)]
        >>> apply, params, buffers = po.stack(members)
        >>> params["weight"].shape
        torch.Size([4, 1, 3])
        >>> x = torch.ones(5, 3)
        >>> y, _ = torch.func.vmap(apply, in_dims=(0, 0, None))(params, buffers, x)
        >>> bool(torch.allclose(y[2], members[2](x)))
        True
    """
    if not isinstance(modules, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PureoptError(
            "stack(modules=...)",
            "be a sequence of modules",
            f"`{type(modules).__name__}`",
            "Write `stack([one, two, ...])`; for one module, `functionalize(module)`.",
        )
    modules = list(modules)
    if not modules:
        raise PureoptError("stack(modules=...)", "hold at least one module", "none")
    for module in modules:
        check_module(module)
    for i, module in enumerate(modules[1:], start=1):
        _check_alike(i, module, modules[0])
    apply, _, buffers = functionalize(modules[0], key=key)
    new_params = _stacked([dict(module.named_parameters()) for module in modules])
    new_buffers = _stacked([dict(module.named_buffers()) for module in modules])
    if has_dropout(modules[0]):
        new_buffers[RNG] = _random.split(buffers[RNG], len(modules))
    return Functional(apply, new_params, new_buffers)


def _stacked(members: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([member[name].detach() for member in members])
        for name in members[0]
    }


def _check_alike(i: int, module: nn.Module, first: nn.Module) -> None:
    have, want = _architecture(module), _architecture(first)
    for path in [*want, *have]:
        if have.get(path) != want.get(path):
            told, other = have.get(path, "nothing"), want.get(path, "nothing")
            raise TreeError(
                f"stack(modules[{i}])",
                "differ from `modules[0]` only in the numbers of its tensors",
                f"{told} at '{path}', where `modules[0]` has {other}",
            )


def _architecture(module: nn.Module) -> dict[str, str]:
    """What is alike in all members, in words, by path."""
    words: dict[str, str] = {}
    for name, sub in module.named_modules():
        mode = "train" if sub.training else "eval"
        # The words of other authors may show values, which members do not share.
        torchs = type(sub).__module__.startswith("torch.")
        config = sub.extra_repr() if torchs else ""
        words[name] = f"`{type(sub).__name__}({config})` in {mode} mode"
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for kind in ("_parameters", "_buffers"):
        for slot, leaf in slots(module, kind):
            t = tensors[leaf]
            words[slot] = f"a tensor {tuple(t.shape)} of {t.dtype} on {t.device}"
            words[slot] += "" if slot == leaf else f" tied to '{leaf}'"
    return words


def _make_apply(
    module: nn.Module, buffers: dict[str, Tensor]
) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    skeleton = make_skeleton(module)
    like_params: dict[str, Tensor] = dict(skeleton.named_parameters())
    param_slots = list(slots(skeleton, "_parameters"))
    buffer_slots = list(slots(skeleton, "_buffers"))
    absent = absent_buffers(skeleton)
    like_buffers = {name: t.to("meta") for name, t in buffers.items()}
    key_slots = key_dropouts(skeleton)
    guard = NoRandom if any(m.training for m in skeleton.modules()) else nullcontext

    def apply(
        params: dict[str, Tensor], buffers: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Tensor]]:
        """The output of the module and its new buffers."""
        _check_params(params, like_params)
        _check_buffers(buffers, like_buffers)
        # `forward` may write to buffers in place: that is what they are for.
        new = {name: buffers[name].clone() for name in like_buffers}
        values = {slot: params[leaf] for slot, leaf in param_slots}
        values.update({slot: new[leaf] for slot, leaf in buffer_slots})
        if key_slots:
            keys = _random.split(new[RNG], len(key_slots) + 1)
            new[RNG] = keys[-1]
            values.update({slot: keys[i] for i, slot in enumerate(key_slots)})
        compiling = torch.compiler.is_compiling()
        before = [] if compiling else versions(params, (args, kwargs))
        with guard():
            output = called_with(skeleton, values, args, kwargs)
        check_unwritten(before)
        _check_absent(absent)
        return output, _written(new, values, param_slots, buffer_slots, params)

    return apply


def _check_params(params: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    if (
        isinstance(params, dict)  # pyright: ignore[reportUnnecessaryIsInstance]
        and params.keys() == like.keys()
        and all(getattr(params[k], "shape", None) == t.shape for k, t in like.items())
    ):
        return
    check_like("apply(params=...)", params, like, "the module's parameters")


def _check_buffers(buffers: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    if (
        isinstance(buffers, dict)  # pyright: ignore[reportUnnecessaryIsInstance]
        and buffers.keys() == like.keys()
        and all(isinstance(b, Tensor | StandIn) for b in buffers.values())  # pyright: ignore[reportUnnecessaryIsInstance]
    ):
        return  # a buffer may have grown
    check_like("apply(buffers=...)", buffers, like, "the module's buffers")


def _check_absent(absent: list[tuple[nn.Module, str]]) -> None:
    for owner, name in absent:
        if owner._buffers[name] is not None:  # noqa: SLF001
            owner._buffers[name] = None  # noqa: SLF001
            raise PureoptError(
                "forward",
                "assign only to buffers that are tensors before the first call",
                f"an assignment to '{name}', which was `None`",
                "Give it a tensor in `__init__`, or call the module once before.",
            )


def _written(
    new: dict[str, Tensor],
    values: dict[str, Tensor],
    param_slots: list[tuple[str, str]],
    buffer_slots: list[tuple[str, str]],
    params: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The buffers after the call; raise where an assignment cannot be returned."""
    for slot, leaf in param_slots:
        if values[slot] is not params[leaf]:
            raise PureoptError(
                "forward",
                "not assign to its parameters",
                f"an assignment to '{slot}'",
                "Register it as a buffer.",
            )
    written = dict(new)
    for slot, leaf in buffer_slots:
        value = values[slot]
        if value is not new[leaf]:
            _check_written(slot, leaf, value, buffer_slots)
            written[leaf] = value
    return written


def _check_written(
    slot: str, leaf: str, value: Any, buffer_slots: list[tuple[str, str]]
) -> None:
    if not isinstance(value, Tensor | StandIn):
        got, hint = f"`{type(value).__name__}` in '{slot}'", "Assign a tensor."
    elif [other for _, other in buffer_slots].count(leaf) > 1:
        got = f"a new tensor in '{slot}', which is also a buffer under another name"
        hint = "Register it once, or write to it in place."
    else:
        return
    raise PureoptError("forward", "leave a tensor in each buffer", got, hint)
