"""The Python functions of torch that call what has a composition.

A mode is off while it handles a call: what a Python function calls in turn it does not
see. So inside a scope these functions run with a body of their own that does not ask for
a mode again, inside the scope entered anew.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._elementwise import ELEMENTWISE
from pureopt.derivatives._exactness._losses import LOSSES
from pureopt.derivatives._exactness._numeric import KERNELS, Table

# Traced, the functions of `torch._C._nn` are not shown to a mode: where a body looks them
# up it finds the compositions.
_MENDED = {f.__name__: g for f, g in {**ELEMENTWISE, **LOSSES}.items()}
_NN = SimpleNamespace(**{**vars(KERNELS), **_MENDED})
_TORCH = SimpleNamespace(**{**vars(torch), "_C": SimpleNamespace(_nn=_NN)})


def _body(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same code, in a namespace where no argument has a ``__torch_function__``."""
    names = asking_nobody(F)
    names["_check_key_padding_mask"] = _check_key_padding_mask
    if function.__name__ in _MENDED:
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


BODIES: Table = {
    function: _body(function)
    for function in (
        F.batch_norm,
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.cosine_embedding_loss,
        F.glu,
        F.hardsigmoid,
        F.huber_loss,
        F.instance_norm,
        F.layer_norm,
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
