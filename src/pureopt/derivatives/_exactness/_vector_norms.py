"""Norms and standard deviations as compositions, and the squares they are the roots of.

By convention all derivatives of a norm at zero are zero. The Hessian of a squared norm
would then be zero there too, in place of ``2 I``: so inside a scope each root is
remembered with its square, and an even power of the root is taken of the square.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import (
    Table,
    is_inexact,
    root,
    squares,
    widened,
)

Dims = int | Sequence[int] | None


class _Remembered(threading.local):
    """For each scope that is open, innermost last: pairs of a root and its square."""

    def __init__(self) -> None:
        self.scopes: list[list[tuple[Tensor, Tensor]]] = []

    def forget(self, written: Any) -> None:
        """A tensor is written to: it may be a root, or a view of one, which has its dtype.

        What is no tensor may be any of them.
        """
        for scope in self.scopes:
            scope[:] = [
                pair
                for pair in scope
                if isinstance(written, Tensor) and written.dtype != pair[0].dtype
            ]


REMEMBERED = _Remembered()


def root_of(square: Tensor, dtype: torch.dtype) -> Tensor:
    """The root, for which :func:`power` will find the square."""
    y = root(square)
    return _remembered(y if y.dtype == dtype else y.to(dtype), square)


def _remembered(y: Tensor, square: Tensor) -> Tensor:
    if REMEMBERED.scopes:
        REMEMBERED.scopes[-1].append((y, square))
    return y


def power(input: Any, exponent: Any) -> Tensor:  # noqa: A002
    """``torch.pow``; an even power of a root is a power of its square."""
    number = isinstance(exponent, int | float)
    if number and exponent > 0 and exponent % 2 == 0:
        for scope in REMEMBERED.scopes:
            for y, square in scope:
                if y is input:
                    return torch.pow(square, exponent / 2).to(y.dtype)
    return torch.pow(input, exponent)


def square(input: Tensor) -> Tensor:  # noqa: A002
    """``torch.square``."""
    return power(input, 2)


def multiply(input: Any, other: Any) -> Tensor:  # noqa: A002
    """``torch.mul``: ``a * a`` is a power."""
    return power(input, 2) if input is other else torch.mul(input, other)


def absolute(input: Tensor) -> Tensor:  # noqa: A002
    """``torch.abs``: of a complex number it is a norm, found where no square overflows."""
    if not input.dtype.is_complex:
        return torch.abs(input)
    limits = torch.finfo(input.dtype)
    scale = torch.abs(input.detach()).clamp(limits.tiny, limits.max)
    x, y = input.real / scale, input.imag / scale
    return _remembered(scale * root(x * x + y * y), squares(input))


def vector_norm(
    input: Tensor,  # noqa: A002
    ord: float = 2,  # noqa: A002
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""``torch.linalg.vector_norm``: :math:`(\sum_i |x_i|^p)^{1/p}`.

    At zero the derivatives are zero. To those elsewhere an element that is zero adds
    nothing, unless ``p`` is even: then all of it is smooth.
    """
    x = input if dtype is None else input.to(dtype)
    if ord in {0, 1, torch.inf, -torch.inf} or not is_inexact(x):
        return torch.linalg.vector_norm(x, ord, dim, keepdim)
    real = x.real.dtype if x.dtype.is_complex else x.dtype
    y = widened(x)
    dims = _dims(y, dim)
    if ord == 2:  # noqa: PLR2004
        return root_of(squares(y).sum(dims, keepdim), real)
    total = _powers(y, ord).sum(dims, keepdim)
    zero = total == 0
    norm = torch.where(zero, 1.0, total) ** (1 / ord)
    return torch.where(zero, 0.0, norm).to(real)


def _powers(x: Tensor, p: float) -> Tensor:
    """``|x|^p``: all derivatives at zero are zero, unless ``p`` is even."""
    if p > 0 and p % 2 == 0:
        return squares(x) ** (p / 2)
    size = absolute(x)
    zero = size == 0
    return torch.where(
        zero, 0.0 if p > 0 else torch.inf, torch.where(zero, 1.0, size) ** p
    )


def _dims(x: Tensor, dim: Dims) -> tuple[int, ...]:
    if dim is None or (not isinstance(dim, int) and not len(dim)):
        return tuple(range(x.dim()))
    return (dim,) if isinstance(dim, int) else tuple(dim)


def matrix_norm(
    input: Tensor,  # noqa: A002
    ord: float | str = "fro",  # noqa: A002
    dim: Sequence[int] = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.linalg.matrix_norm``; all but the Frobenius norm are torch's."""
    if ord == "fro":
        return vector_norm(input, 2, dim, keepdim, dtype=dtype)
    return torch.linalg.matrix_norm(input, ord, dim, keepdim, dtype=dtype)


def norm(
    input: Tensor,  # noqa: A002
    ord: float | str | None = None,  # noqa: A002
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.linalg.norm``: of a vector, or of a matrix where an order is named for one."""
    if ord is None:
        return vector_norm(input, 2, dim, keepdim, dtype=dtype)
    dims = _dims(input, dim)
    if dim is None and len(dims) > 2:  # noqa: PLR2004
        return torch.linalg.norm(input, ord)  # which refuses it
    if isinstance(ord, str) or len(dims) == 2:  # noqa: PLR2004
        return matrix_norm(input, ord, dims, keepdim, dtype=dtype)
    return vector_norm(input, ord, dim, keepdim, dtype=dtype)


def p_norm(
    input: Tensor,  # noqa: A002
    p: float | str | None = "fro",
    dim: Dims = None,
    keepdim: bool = False,
    out: None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``torch.norm``: of all dimensions as one vector, unless ``dim`` names some."""
    del out
    if p == "nuc":
        return matrix_norm(input, p, _dims(input, dim), keepdim, dtype=dtype)
    order = 2.0 if p is None or isinstance(p, str) else p
    return vector_norm(input, order, dim, keepdim, dtype=dtype)


def frobenius_norm(input: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:  # noqa: A002
    """``torch.frobenius_norm``."""
    return vector_norm(input, 2, dim, keepdim)


def norm_except_dim(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:  # noqa: A002
    """``torch.norm_except_dim``: of each slice along ``dim``; of all if that is -1."""
    if dim == -1:
        return vector_norm(v, pow)
    others = [d for d in range(v.dim()) if d != dim % v.dim()]
    # Of a vector each element is a slice: of no dimensions the norm would be of all.
    return vector_norm(v, pow, others, keepdim=True) if others else absolute(v)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    r"""``torch._weight_norm``: :math:`g\,v / |v|`, a length for each slice along ``dim``."""
    return v * (g / norm_except_dim(v, 2, dim))


def std(*args: Any, **kwargs: Any) -> Tensor:
    """``torch.std``: the root of ``torch.var``; a constant sample has derivatives zero."""
    variance = torch.var(*args, **kwargs)
    return root_of(variance, variance.dtype)


def std_mean(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """``torch.std_mean``."""
    variance, mean = torch.var_mean(*args, **kwargs)
    return root_of(variance, variance.dtype), mean


VECTOR_NORMS: Table = {
    **dict.fromkeys((torch.abs, torch.absolute, torch.Tensor.abs), absolute),
    **dict.fromkeys((torch.Tensor.absolute, torch.Tensor.__abs__), absolute),
    torch.linalg.vector_norm: vector_norm,
    torch.linalg.matrix_norm: matrix_norm,
    torch.linalg.norm: norm,
    torch.norm: p_norm,
    torch.frobenius_norm: frobenius_norm,
    torch.norm_except_dim: norm_except_dim,
    vars(torch)["_weight_norm"]: weight_norm,
    **dict.fromkeys((torch.std, torch.Tensor.std), std),
    torch.std_mean: std_mean,
    **dict.fromkeys((torch.pow, torch.Tensor.pow), power),
    **dict.fromkeys((torch.square, torch.Tensor.square), square),
    **dict.fromkeys((torch.mul, torch.multiply, torch.Tensor.mul), multiply),
    torch.Tensor.multiply: multiply,
}
