"""Torch's complaints about a function, in words: the cause and the way out."""

from __future__ import annotations

import dis
import re

import torch

from pureopt._errors import DerivativeError

_RULE = "be a pure function that torch.func can transform"
_FRESH = (
    "Compute a new tensor: `x = x + y` in place of `x += y`, `torch.where` or "
    "`torch.cat` in place of `x[i] = y`."
)
_KEEP = (
    "Keep it a tensor; choose with `torch.where(condition, a, b)`, both of which must "
    "be finite."
)
_COMPOSE = "Write it as a composition of torch operations."
_REVERSE = (
    "`vhp`, `third_order_product` and `hessian` use reverse mode only; or write it as a "
    "composition of torch operations."
)

# What is said of a function that writes to its input, however it is found out.
WRITES = (_RULE, "one that writes in place to its input", _FRESH)

# What is said of one that writes to what it computes on the way.
WRITES_ON_THE_WAY = (
    _RULE,
    "one that writes in place to a value that a derivative needs",
    _FRESH,
)

_BY_EXACT = (
    " Under vmap the recurrent layers and cells of `torch.nn` do it inside: "
    "differentiate `pureopt.derivatives.exact(f)`."
)

# What is said, what the function is, and what to do. The first that fits counts.
_Clues = tuple[tuple[str, str, str], ...]

# Words that only jets bring about, also where a library raises them in Python.
_OF_JETS: _Clues = (
    (
        r"^Jet\(.*\) is not an instance of torch\.Tensor",
        "one that passes power series to `torch.func.functional_call`",
        "Call the module by `pureopt.functionalize`, whose `apply` takes them.",
    ),
    (
        r"pureopt\.derivatives\._jets\._jet\.Jet",
        (
            "one that passes a power series to a transform of `torch.func`, or to a "
            "library that takes tensors only"
        ),
        (
            "Take a derivative from a jet of higher order, or nest `torch.func.jvp` and "
            "`torch.func.grad` under `exact`; write the rest with functions of torch."
        ),
    ),
)

_OF_TORCH: _Clues = (
    (r"leaf Variable that requires grad is being used in an in-place", *WRITES[1:]),
    (
        r"in-place operation \(aten::(\w+?)_?(?:\.\w+)?\) that would mutate a captured",
        "one that writes in place (`{}`) to a tensor from outside of it",
        (
            "Return the new value in place of storing it. Call a module by "
            "`pureopt.functionalize`, which returns what it stores, such as the running "
            "statistics of batch norm in train mode; or put it into eval mode, or use "
            "group norm or layer norm."
        ),
    ),
    (
        r"Batch norm got a batched tensor",
        (
            "one with batch norm in train mode, where a sample's output depends on the "
            "whole batch"
        ),
        "Put the module into eval mode, or use group norm or layer norm.",
    ),
    (
        r"Expected more than 1 (?:value per channel|spatial element) when training",
        (
            "one with batch or instance norm in train mode, of which each channel has a "
            "single value"
        ),
        "Put the module into eval mode, or use group norm or layer norm.",
    ),
    (
        r"vmap: (?:inplace arithmetic|aten::\w+_)\(",
        "one that writes in place a batched value to a tensor that is not batched",
        _FRESH,
    ),
    (
        r"output with shape .* doesn't match the broadcast shape",
        "one that writes in place a value to a tensor of fewer dimensions",
        f"{_FRESH}{_BY_EXACT}",
    ),
    (
        r"functions with out=|it is an out= function|for aten::\w+\.\w*out; the fallback",
        "one that writes to an `out=` argument",
        "Use the result of the call.",
    ),
    (
        r"data-dependent control flow",
        (
            "one that branches on the value of a tensor, or reads it by `.item()` or "
            "`float()`"
        ),
        _KEEP,
    ),
    (
        r"calling \.item\(\) on a Tensor",
        "one that reads the value of a tensor by `.item()` or `float()`",
        _KEEP,
    ),
    (
        r"Tensor that doesn't have storage|Can't call numpy\(\)",
        "one that reads the values of a tensor by `.numpy()` or `.tolist()`",
        "Write that part in torch operations: what leaves torch has no derivative.",
    ),
    (
        r"called random operation while in randomness error",
        "one that draws random numbers under vmap, such as dropout",
        (
            "Put the module into eval mode, or draw with `pureopt.random` from a key that "
            "is an argument."
        ),
    ),
    (
        r"operators that can (?:support|output) dynamic shape",
        "one with a result whose shape depends on values, such as `x[mask]`",
        "Use `torch.where(mask, x, 0.0)`, which keeps the shape.",
    ),
    (
        r"'Sparse\w+' backend|_sparse_coo_tensor",
        "one with sparse tensors, such as the gradient of an embedding",
        "Leave `sparse=True` out.",
    ),
    (
        r"[Ff]orward AD with (?:aten::)?(\w+) that does not support it",
        "one with `{}`, which has no forward-mode derivative",
        _REVERSE,
    ),
    (
        r"(jvp) function for custom autograd\.Function",
        "one with a `torch.autograd.Function` that has no `{}`",
        _REVERSE,
    ),
    (
        r"derivative for '?(?:aten::)?(\w+)'? is not implemented",
        "one with `{}`, whose backward formula has no derivative",
        _COMPOSE,
    ),
    (
        r"must override the (setup_context) staticmethod",
        (
            "one with a `torch.autograd.Function` that has no `{}`, such as reentrant "
            "checkpointing"
        ),
        _COMPOSE,
    ),
    (
        r"vmap over (\w+), but it does not have vmap support",
        "one with the `torch.autograd.Function` `{}`, which has no rule for vmap",
        "Set `generate_vmap_rule = True` in it.",
    ),
    (
        r"Batching rule not implemented for aten::(\w+)",
        "one with `{}`, which has no rule for vmap",
        _COMPOSE,
    ),
    (
        r"support saved tensor hooks",
        "one with checkpointing or other hooks on saved tensors",
        (
            "Call the function without. Less at a time saves memory: a smaller "
            "`chunk_size` where there is one, or a smaller batch."
        ),
    ),
    (
        r"retain_grad|cannot register a hook",
        "one that asks for the gradient of a value inside of it",
        "Name the value by `tap`, and take its gradient by `grad_at`.",
    ),
    (
        (
            r"requires_grad_\(\)|backward\(\) called inside"
            r"|does not require grad and does not have a grad_fn"
            r"|differentiated Tensors? (?:at index|does not require grad)"
        ),
        "one that calls `backward` or `torch.autograd`",
        "Differentiate inside of it with `torch.func.grad`.",
    ),
    (
        r"Cannot access storage of (?:TensorWrapper|BatchedTensorImpl)",
        "one that reads the memory of a tensor, such as `copy.deepcopy`",
        "Copy by `.clone()`.",
    ),
    (r"modified by an inplace operation", *WRITES_ON_THE_WAY[1:]),
    (
        r"ZeroTensors are immutable",
        "one with an operation that writes to a zero tangent of forward mode",
        _REVERSE,
    ),
    (
        r"Nested forward mode AD is not supported",
        "a call after a compilation of forward mode that failed in this process",
        "Start a fresh process, and let that function run eagerly.",
    ),
    (
        r"(?:only return|return only) [Tt]ensors, got .*type <class '([\w.]+)'>",
        "one that returns a `{}`",
        "Return tensors, or a tree of tensors.",
    ),
)


class DerivativeRuntimeError(DerivativeError, RuntimeError):
    """In the place of a ``RuntimeError``: what catches that catches this."""


class DerivativeNotImplementedError(DerivativeError, NotImplementedError):
    """In the place of a ``NotImplementedError``."""


class DerivativeTypeError(DerivativeError, TypeError):
    """In the place of a ``TypeError``."""


def explain(where: str, error: Exception) -> None:
    """Raise in words, if the cause is known.

    Args:
        where: The public call, such as ``"hvp(f=...)"``.
        error: What torch raised, or the program.

    Raises:
        DerivativeError: If torch's message is one of the table. It is of the class of
            ``error`` too.
    """
    clues = _OF_JETS if _is_of_program(error) else _OF_JETS + _OF_TORCH
    for clue, got, way_out in clues:
        if match := re.search(clue, str(error), re.DOTALL):
            cause = got.format(*match.groups())
            hint = way_out
            if where.startswith("exact("):
                hint = way_out.replace(_BY_EXACT, "")
            raise _kind(error)(where, _RULE, cause, hint) from error


def _is_of_program(error: Exception) -> bool:
    """Whether a ``raise`` outside of torch raised it, whatever its words.

    The innermost frame of what torch raises is in torch, or where its C++ was called.
    """
    if torch.compiler.is_compiling():  # where there are no frames to look at
        return False
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    instruction = frame.f_code.co_code[trace.tb_lasti]
    return package != "torch" and instruction == dis.opmap["RAISE_VARARGS"]


def _kind(error: Exception) -> type[DerivativeError]:
    if isinstance(error, NotImplementedError):
        return DerivativeNotImplementedError
    if isinstance(error, RuntimeError):
        return DerivativeRuntimeError
    if isinstance(error, TypeError):
        return DerivativeTypeError
    return DerivativeError  # which is a `ValueError`
