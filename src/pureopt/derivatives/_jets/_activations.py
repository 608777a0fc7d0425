"""Rules of activation functions.

At a kink the derivatives are those of the piece that torch takes there.
"""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness._shown import SHOWN
from pureopt.derivatives._jets._algebra import integral, like, linear
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._piecewise import kept
from pureopt.derivatives._jets._register import rule, univariate_rule
from pureopt.derivatives._jets._shapes import value_of

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805

# The compiler asks no jet about them, as it knows of no function to stand in for.
SHOWN.update((F.hardsigmoid, F.hardswish))


@rule("relu")
def relu(x: Jet, inplace: bool = False) -> Jet:  # noqa: ARG001
    return like(x, F.relu(x.value), kept(x.value > 0, x).terms)


@rule("leaky_relu")
def leaky_relu(x: Jet, negative_slope: float = 0.01, inplace: bool = False) -> Jet:  # noqa: ARG001
    above = x.value > 0
    return linear(lambda c: torch.where(above, c, c * negative_slope), x)


@rule("prelu")
def prelu(input: Any, weight: Any) -> Jet:  # noqa: A002
    value = value_of(input)
    if not value.dim():
        weight = weight.reshape(())
    elif value.dim() > 1 and weight.numel() > 1:
        weight = weight.reshape(-1, *[1] * (value.dim() - 2))
    return torch.where(value > 0, input, input * weight)


@rule("rrelu")
def rrelu(
    x: Jet,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,  # noqa: ARG001
) -> Jet:
    if training:
        raise DerivativeError(
            "jet(f=...)",
            "be the same function at each call",
            "`rrelu(training=True)`, which draws random slopes",
            "Put the module into eval mode.",
        )
    return leaky_relu(x, (lower + upper) / 2)


@rule("threshold")
def threshold(x: Jet, threshold: float, value: float, inplace: bool = False) -> Jet:  # noqa: ARG001
    return torch.where(x.value > threshold, x, value)


@rule("hardtanh")
def hardtanh(
    x: Jet,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,  # noqa: ARG001
) -> Jet:
    inside = (x.value > min_val) & (x.value < max_val)
    value = F.hardtanh(x.value, min_val, max_val)
    return like(x, value, kept(inside, x).terms)


@rule("relu6")
def relu6(x: Jet, inplace: bool = False) -> Jet:  # noqa: ARG001
    return hardtanh(x, 0.0, 6.0)


@rule("hardsigmoid")
def hardsigmoid(x: Jet, inplace: bool = False) -> Jet:  # noqa: ARG001
    return hardtanh(x + 3, 0.0, 6.0) / 6


@univariate_rule("hardswish")
def hardswish(x: Jet, inplace: bool = False) -> Jet:  # noqa: ARG001
    return x * hardsigmoid(x)


@rule("softshrink")
def softshrink(x: Jet, lambd: float = 0.5) -> Jet:
    value = F.softshrink(x.value, lambd)
    return like(x, value, kept(x.value.abs() > lambd, x).terms)


@rule("hardshrink")
def hardshrink(x: Jet, lambd: float = 0.5) -> Jet:
    return like(x, F.hardshrink(x.value, lambd), kept(x.value.abs() > lambd, x).terms)


@univariate_rule("softsign")
def softsign(x: Jet) -> Jet:
    return x / (torch.abs(x) + 1)


@univariate_rule("tanhshrink")
def tanhshrink(x: Jet) -> Jet:
    return x - torch.tanh(x)


@univariate_rule("softplus")
def softplus(x: Jet, beta: float = 1.0, threshold: float = 20.0) -> Jet:
    r""":math:`\log(1 + e^{\beta x}) / \beta`, whose slope is :math:`\sigma(\beta x)`.

    Above the threshold the value is torch's, ``x``, and the derivatives go on.
    """
    value = F.softplus(x.value, beta, threshold)
    return integral(x, torch.sigmoid(x * beta), value)


@univariate_rule("logsigmoid")
def logsigmoid(x: Jet) -> Jet:
    return integral(x, torch.sigmoid(-x), F.logsigmoid(x.value))


@univariate_rule("silu")
def silu(x: Jet, inplace: bool = False) -> Jet:  # noqa: ARG001
    return x * torch.sigmoid(x)


@univariate_rule("mish")
def mish(x: Jet, inplace: bool = False) -> Jet:  # noqa: ARG001
    return x * torch.tanh(softplus(x))


@univariate_rule("gelu")
def gelu(x: Jet, approximate: str = "none") -> Jet:
    if approximate == "none":
        return x * torch.special.ndtr(x)
    inner = x + 0.044715 * torch.pow(x, 3)
    return 0.5 * x * (torch.tanh(math.sqrt(2 / math.pi) * inner) + 1)


def _exponential_unit(x: Jet, alpha: float, scale: float, inner: float) -> Jet:
    above = x.value > 0
    low = torch.where(above, torch.zeros_like(x.value), x)
    return torch.where(above, x * scale, torch.expm1(low * inner) * (alpha * scale))


@univariate_rule("elu")
def elu(x: Jet, alpha: float = 1.0, inplace: bool = False) -> Jet:  # noqa: ARG001
    return _exponential_unit(x, alpha, 1.0, 1.0)


@univariate_rule("selu")
def selu(x: Jet, inplace: bool = False) -> Jet:  # noqa: ARG001
    return _exponential_unit(x, _SELU_ALPHA, _SELU_SCALE, 1.0)


@univariate_rule("celu")
def celu(x: Jet, alpha: float = 1.0, inplace: bool = False) -> Jet:  # noqa: ARG001
    return _exponential_unit(x, alpha, 1.0, 1 / alpha)


@rule("glu")
def glu(x: Jet, dim: int = -1) -> Jet:
    if x.shape[dim] % 2:
        return F.glu(x.value, dim)  # which refuses it
    a, b = torch.chunk(x, 2, dim)
    return a * torch.sigmoid(b)
