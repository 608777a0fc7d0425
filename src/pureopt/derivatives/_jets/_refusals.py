"""What no rule can do: write in place, leave torch, draw numbers, differentiate inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from pureopt._errors import DerivativeError
from pureopt.derivatives._jets._indexing import assigned
from pureopt.derivatives._jets._jet import RULES, Jet
from pureopt.derivatives._jets._register import spellings

_FRESH = (
    "Compute a new tensor: `x = x + y` in place of `x += y`, `torch.where` or "
    "`torch.cat` in place of `x[i] = y`."
)


def _refusing(rule: str, got: str, hint: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise DerivativeError("jet(f=...)", rule, got, hint)

    return refuse


def _dropping(name: str) -> Callable[..., Any]:
    """The identity, unless something is dropped."""
    refuse = _refusing(
        "be the same function at each call",
        f"`{name}` in train mode, which draws random numbers",
        "Put the module into eval mode, or multiply by a mask that is an argument.",
    )

    def drop(
        input: Jet,  # noqa: A002
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        **kwargs: Any,
    ) -> Jet:
        del inplace
        return refuse() if p and kwargs.get("train", training) else input

    return drop


def _in_place(op: Callable[..., Any] | None, got: str) -> Callable[..., Any]:
    """``op``, written to a jet; what writes to a tensor, or has no ``op``, is refused."""
    refuse = _refusing("not write in place", got, _FRESH)

    def write(x: Any, *args: Any, **kwargs: Any) -> Any:
        if op is None or op not in RULES or not isinstance(x, Jet):
            return refuse()
        return x.write(RULES[op](x, *args, **kwargs), got)

    return write


def _assignment(x: Any, index: Any, value: Any) -> None:
    """``x[index] = value``."""
    got = "an assignment to `x[...]`"
    if isinstance(x, Jet):
        x.write(assigned(x, index, value), got)
        return
    hint = (
        "`x` is a constant, of which no operation can make a power series. Put the parts "
        "together by `torch.stack` or `torch.cat`, or `x = x.index_put(...)`."
    )
    raise DerivativeError("jet(f=...)", "not write in place to a constant", got, hint)


for _home in (torch.Tensor, torch, F):
    for _name in dir(_home):
        if _name.endswith("_") and not _name.startswith("_"):
            RULES.setdefault(
                getattr(_home, _name),
                _in_place(getattr(_home, _name[:-1], None), f"`{_name}`"),
            )

for _name in (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout",
):  # fmt: skip
    for _op in spellings(_name):
        RULES[_op] = _dropping(_name)

RULES[torch.Tensor.__setitem__] = _assignment
for _name, _sign in {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "pow": "**",
    "mod": "%",
}.items():  # fmt: skip
    RULES[getattr(torch.Tensor, f"__i{_name}__")] = _in_place(
        getattr(torch.Tensor, f"__{_name}__"), f"`{_sign}=`"
    )

for _op, _got in {
    torch.Tensor.item: "`x.item()`",
    torch.Tensor.tolist: "`x.tolist()`",
    torch.Tensor.numpy: "`x.numpy()`",
    torch.Tensor.__float__: "`float(x)`, as functions of `math` call it",
    torch.Tensor.__int__: "`int(x)`",
    torch.Tensor.__index__: "`x` in the place of a whole number",
    torch.Tensor.__complex__: "`complex(x)`",
    torch.Tensor.__array__: "an array of `x`, as functions of numpy make it",
}.items():
    RULES[_op] = _refusing(
        "keep its numbers in tensors",
        _got,
        "Use functions of torch: what leaves it has no derivative. Where a constant is "
        "meant, read `x.detach()`.",
    )

for _name in (
    "bernoulli", "multinomial", "poisson", "normal", "svd_lowrank", "pca_lowrank",
):  # fmt: skip
    for _op in spellings(_name):
        RULES[_op] = _refusing(
            "be the same function at each call",
            f"`{_name}`, which draws random numbers",
            "Draw with `pureopt.random` from a key that is an argument.",
        )

for _op in (
    torch.autograd.grad,
    torch.autograd.backward,
    torch.Tensor.backward,
    torch.Tensor.requires_grad_,
):
    RULES[_op] = _refusing(
        "not differentiate its arguments",
        "a call of `torch.autograd`",
        "Take that derivative from a jet of higher order, or nest `torch.func.jvp` and "
        "`torch.func.grad` under `exact`.",
    )
