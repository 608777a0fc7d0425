"""Rules of functions that are linear in each of two or more arguments."""

# The stubs of torch do not know that a jet may stand in for a tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._jets._algebra import bilinear, like, linear
from pureopt.derivatives._jets._jet import RULES, Jet
from pureopt.derivatives._jets._register import rule, spellings
from pureopt.derivatives._jets._rows import affine, times_rows
from pureopt.derivatives._jets._shapes import value_of


def multiply(f: Callable[[Tensor, Tensor], Tensor], a: Any, b: Any) -> Any:
    """``f(a, b)`` for a function linear in each, of which one may be constant."""
    if not isinstance(b, Jet):
        return linear(lambda c: f(c, b), a) if isinstance(a, Jet) else f(a, b)
    if not isinstance(a, Jet):
        return linear(lambda c: f(a, c), b)
    return bilinear(f, a, b)


def _bilinear_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    def apply(input: Any, other: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002
        return multiply(lambda x, y: op(x, y, *args, **kwargs), input, other)

    return apply


for _op in spellings(
    "mm", "bmm", "mv", "dot", "vdot", "inner", "outer", "ger",
    "kron", "tensordot", "vecdot", "linalg.vecdot", "cross", "linalg.cross",
):  # fmt: skip
    RULES[_op] = _bilinear_rule(_op)


@rule("__rmatmul__")
def rmatmul(b: Any, a: Any) -> Any:
    return torch.matmul(a, b)


def matmul(input: Any, other: Any) -> Any:  # noqa: A002
    """Where the second factor is one constant matrix, it is that of all directions."""
    if isinstance(input, Jet) and isinstance(other, Tensor) and other.dim() <= 2:  # noqa: PLR2004
        return _by_rows(lambda c: _times(c, other), input, other)
    return multiply(torch.matmul, input, other)


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """``x @ matrix``, of a matrix or a vector."""
    is_vector = matrix.dim() < 2  # noqa: PLR2004
    return torch.matmul(x, matrix) if is_vector else times_rows(x, matrix.mT)


def _by_rows(
    f: Callable[[Tensor], Tensor], x: Jet, matrix: Tensor, value: Tensor | None = None
) -> Jet:
    """``f(x)``, the product of each row with a constant matrix or vector.

    All coefficients at once where the matrix is the larger factor: each product reads and
    rearranges it.
    """
    terms = [c for c in x.coefficients if c is not None] if x.summed is None else []
    few = len(terms) < 2 or not x.ndim  # noqa: PLR2004
    if few or matrix.dim() < 2 or x.value.numel() > matrix.numel():  # noqa: PLR2004
        return linear(f, x, value=value, of_rows=True)
    products = iter(f(torch.stack(terms)).unbind())
    coefficients = [None if c is None else next(products) for c in x.coefficients]
    return like(x, f(x.value) if value is None else value, coefficients)


for _op in spellings("matmul", "linalg.matmul", "__matmul__"):
    RULES[_op] = matmul


@rule("linear")
def linear_(input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: A002
    if isinstance(input, Jet) and not isinstance(weight, Jet) | isinstance(bias, Jet):
        value = affine(input.value, weight, bias)
        return _by_rows(lambda c: times_rows(c, weight), input, weight, value)
    y = multiply(F.linear, input, weight)
    return y if bias is None else y + bias


@rule("bilinear")
def bilinear_(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    y = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


def _convolution_rule(op: Callable[..., Any]) -> Callable[..., Any]:
    def convolve(
        input: Any,  # noqa: A002
        weight: Any,
        bias: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        y = multiply(lambda x, w: op(x, w, None, *args, **kwargs), input, weight)
        if bias is None:
            return y
        spatial = value_of(weight).dim() - 2
        return y + bias.reshape(-1, *[1] * spatial)

    return convolve


for _op in spellings(
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
):  # fmt: skip
    RULES[_op] = _convolution_rule(_op)


@rule("einsum")
def einsum(equation: str, *operands: Any) -> Any:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    places = [i for i, x in enumerate(operands) if isinstance(x, Jet)]
    if len(places) == 1:
        i = places[0]
        before, after = operands[:i], operands[i + 1 :]
        y = linear(lambda c: torch.einsum(equation, *before, c, *after), operands[i])
        if len(operands) == 1:  # where nothing is summed a view
            operands[i].locked = y.locked = True
        return y
    if len(operands) == 2:  # noqa: PLR2004
        return multiply(lambda a, b: torch.einsum(equation, a, b), *operands)
    return _contract(equation.replace(" ", ""), list(operands))


def _contract(equation: str, operands: list[Any]) -> Any:
    """Contract the first two of several operands, keeping the labels that are still used."""
    inputs, _, output = equation.partition("->")
    labels = inputs.split(",")
    if not output and "->" not in equation:
        letters = sorted(set(inputs.replace(",", "").replace(".", "")))
        output = ("..." if "..." in inputs else "") + "".join(
            c for c in letters if inputs.count(c) == 1
        )
    while len(operands) > 2:  # noqa: PLR2004
        first, second, *rest = labels
        needed = "".join(rest) + output
        both = dict.fromkeys((first + second).replace(".", ""))
        kept = "".join(c for c in both if c in needed)
        if "..." in first + second:
            kept = "..." + kept
        pair = einsum(f"{first},{second}->{kept}", operands[0], operands[1])
        labels, operands = [kept, *rest], [pair, *operands[2:]]
    return einsum(f"{labels[0]},{labels[1]}->{output}", *operands)


def _affine_rule(op: Callable[[Any, Any], Any], *names: str) -> Callable[..., Any]:
    """Of a sum with the product of two arguments, of which torch has these names."""

    def apply(
        input: Any,  # noqa: A002
        *factors: Any,
        beta: float = 1,
        alpha: float = 1,
        **named: Any,
    ) -> Any:
        a, b = *factors, *(named[name] for name in names[len(factors) :])
        y = op(a, b) if alpha == 1 else op(a, b) * alpha
        if beta == 0:  # not a product with zero: the input may be NaN
            return y
        return y + (input if beta == 1 else input * beta)

    return apply


def _sum_of_products(a: Any, b: Any) -> Any:
    return torch.matmul(a, b).sum(0)


rule("addmm")(_affine_rule(torch.matmul, "mat1", "mat2"))
rule("addmv")(_affine_rule(torch.matmul, "mat", "vec"))
rule("addr")(_affine_rule(torch.outer, "vec1", "vec2"))
rule("baddbmm")(_affine_rule(torch.matmul, "batch1", "batch2"))
rule("addbmm")(_affine_rule(_sum_of_products, "batch1", "batch2"))
