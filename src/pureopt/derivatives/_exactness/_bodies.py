"""The Python functions of torch that call what has a composition.

A mode is off while it handles a call: what a Python function calls in turn it does not
see. So inside a scope these functions run with a body of their own that does not ask for
a mode again, inside the scope entered anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._elementwise import ELEMENTWISE
from pureopt.derivatives._exactness._losses import LOSSES
from pureopt.derivatives._exactness._numeric import KERNELS, Table
from pureopt.derivatives._exactness._placing import UNPOOLING

# Traced, the functions of `torch._C._nn` are not shown to a mode: where a body looks them
# up it finds the compositions.
_MENDED = {f.__name__: g for f, g in {**ELEMENTWISE, **LOSSES, **UNPOOLING}.items()}
_NN = SimpleNamespace(**{**vars(KERNELS), **_MENDED})
_TORCH = SimpleNamespace(**{**vars(torch), "_C": SimpleNamespace(_nn=_NN)})


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same code, in a namespace where no argument has a ``__torch_function__``."""
    names = asking_nobody(F)
    names["_check_key_padding_mask"] = _check_key_padding_mask
    names["_check_unpool_output_size"] = _check_unpool_output_size
    names["_unpool_output_size"] = rebound(names["_unpool_output_size"], names)
    if not _MENDED.keys().isdisjoint(function.__code__.co_names):
        names["torch"] = _TORCH
    return rebound(function, names)


def asking_nobody(module: ModuleType) -> dict[str, Any]:
    """The names of a module, where no argument has a ``__torch_function__``."""
    # Without the name of the module the compiler looks names up in this namespace, and
    # not in the module.
    names = {k: v for k, v in vars(module).items() if k != "__name__"}
    asks = [name for name in names if name.startswith("has_torch_function")]
    return names | dict.fromkeys(asks, _asks_nobody)


def rebound(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """The same code in another namespace."""
    code: Any = function
    body = FunctionType(
        code.__code__, names, code.__name__, code.__defaults__, code.__closure__
    )
    body.__kwdefaults__ = code.__kwdefaults__
    return body


def _asks_nobody(*args: Any) -> bool:
    del args
    return False


def _check_key_padding_mask(mask: Tensor, keys: int, samples: int) -> None:
    """What torch checks: the words of its own check are not traced."""
    if mask.shape != (samples, keys):
        shapes = f"{tuple(mask.shape)}, and not {(samples, keys)}"
        raise AssertionError("key_padding_mask has the shape " + shapes)


def _check_unpool_output_size(output_size: list[int], dim: int) -> None:
    """What torch checks: a size that is traced stands not in the words of its check."""
    if output_size[dim] < 0:
        raise ValueError(
            "max_unpooling: output_size must contain non-negative spatial dimensions, "
            f"but got output_size[{dim}]={output_size[dim]}"
        )


def linear_cross_entropy(
    input: Tensor,  # noqa: A002
    linear_weight: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    options: Any = None,
    **named: Any,
) -> Tensor:
    """``F.linear_cross_entropy`` in one piece: that in chunks has one gradient only."""
    loss = partial(
        _body(F.linear_cross_entropy),
        input,
        linear_weight,
        target,
        reduction=reduction,
        label_smoothing=label_smoothing,
        **named,
    )
    if (
        options is None
        or label_smoothing != 0.0
        or target.dtype != torch.int64
        or linear_weight.dim() > 2  # noqa: PLR2004
    ):
        return loss(options=options)  # which warns if it cannot take the options
    y = loss()
    options._adjust(  # noqa: SLF001 (it refuses some)
        num_batches=input.shape[0] if input.dim() > 1 else 1,
        in_features=input.shape[-1],
        num_classes=linear_weight.shape[0],
        dtype=input.dtype,
        device=input.device,
    )
    return y


WHOLE: Table = {F.linear_cross_entropy: linear_cross_entropy}
BODIES: Table = {
    function: _body(function)
    for function in (
        F.batch_norm,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.cosine_embedding_loss,
        F.ctc_loss,
        F.embedding,
        F.embedding_bag,
        F.glu,
        F.grid_sample,
        F.hardsigmoid,
        F.hinge_embedding_loss,
        F.huber_loss,
        F.instance_norm,
        F.layer_norm,
        F.max_unpool1d,
        F.max_unpool2d,
        F.max_unpool3d,
        F.mse_loss,
        F.multi_head_attention_forward,
        F.multi_margin_loss,
        F.multilabel_margin_loss,
        F.normalize,
        F.soft_margin_loss,
        F.triplet_margin_loss,
        F.triplet_margin_with_distance_loss,
    )
}
