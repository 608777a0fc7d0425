"""Modules as pure functions of their parameters and buffers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pureopt import _random
from pureopt._errors import PureoptError, TreeError
from pureopt._tree import check_like

_RNG = "rng"


class Functional(NamedTuple):
    """A module as data and a function: ``apply, params, buffers = functionalize(m)``.

    Attributes:
        apply: ``apply(params, buffers, *args, **kwargs) -> (output, new_buffers)``.
        params: ``{dotted name: tensor}`` in the order of ``named_parameters()``.
        buffers: ``{dotted name: tensor}``; with dropout also the key ``"rng"``.

    Example:
        >>> Functional._fields
        ('apply', 'params', 'buffers')
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
      (whose parameters are their ``original``) are those of this moment.
    - A tied parameter, and a submodule that has two names, is one leaf under its first
      name; its gradient is the sum over its uses.
    - In train mode the dropout modules draw their masks from the buffer ``"rng"``, which
      each call advances: the same buffers give the same masks. Their ``inplace`` is
      ignored.
    - Other random calls in train mode raise, because they would draw from torch's
      global generator. Numpy's and Python's random numbers, and those drawn in eval
      mode, are not seen.
    - Tensors that the module keeps in plain attributes are constants. What ``forward``
      writes to attributes that are not buffers is not returned.

    Args:
        module: Any module whose parameters are floating or complex.
        key: The first key of the dropout masks; by default ``pureopt.random.key(0)``.

    Raises:
        PureoptError: If the module cannot be pure: it is compiled, scripted or wrapped
            for data parallelism, has uninitialized parameters, or draws random numbers
            inside a fused kernel. ``apply`` raises it if ``forward`` draws random
            numbers, or writes in place to a parameter or to its input.
        TreeError: If a parameter is of integer dtype. ``apply`` raises it if a key of
            ``params`` or ``buffers`` is missing or unknown, or a shape differs.

    Example:
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
    _check_pure(module)
    params = {k: p.detach().clone() for k, p in module.named_parameters()}
    buffers = {k: b.detach().clone() for k, b in module.named_buffers()}
    skeleton = _skeleton(module)
    dropouts = _key_dropouts(skeleton)
    if dropouts:
        device = next(iter({**params, **buffers}.values()), torch.empty(0)).device
        first = _random.key(0, device=device) if key is None else key.clone()
        _random.fold_in(first, 0)  # checks the dtype
        buffers[_RNG] = first
    return Functional(_make_apply(skeleton, dropouts), params, buffers)


def stack(
    modules: Sequence[nn.Module], *, key: Int[Tensor, ""] | None = None
) -> Functional:
    """The triple of :func:`functionalize` for an ensemble: leaves have it as dimension 0.

    ``apply`` is that of one member, for
    ``torch.func.vmap(apply, in_dims=(0, 0, None))(params, buffers, x)``. Each member has
    its own buffers and its own dropout key.

    Args:
        modules: Members of one architecture, all in the same mode.
        key: Split into the first dropout keys; by default ``pureopt.random.key(0)``.

    Raises:
        PureoptError: If there is no member, or one cannot be pure.
        TreeError: If two members differ in more than the values of their tensors; names
            the first difference.

    Example:
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
    if not modules:
        raise PureoptError("stack(modules=...)", "hold at least one module", "none")
    members = [functionalize(module) for module in modules]
    for i, module in enumerate(modules):
        _check_alike(i, module, modules[0])
    params = {k: torch.stack([m.params[k] for m in members]) for k in members[0].params}
    buffers = {
        k: torch.stack([m.buffers[k] for m in members]) for k in members[0].buffers
    }
    if _RNG in buffers and _random_modules(modules[0]):
        first = members[0].buffers[_RNG] if key is None else key
        buffers[_RNG] = _random.split(first, len(members))
    return Functional(members[0].apply, params, buffers)


def _make_apply(
    skeleton: nn.Module, dropouts: list[str]
) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    param_slots = _slots(skeleton, "_parameters")
    buffer_slots = _slots(skeleton, "_buffers")
    like_params = dict(skeleton.named_parameters())
    like_buffers = {k: b for k, b in skeleton.named_buffers() if k not in dropouts}
    ...
