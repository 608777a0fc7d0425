"""Small functions of tensors that several constraints share."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pureopt._lu import lu_solve


def scaled(x: Tensor, factor: float) -> Tensor:
    """``factor * x`` in the spelling that survives the compiler.

    A compiled ``vmap(jacfwd)`` refuses a product with a number, and inductor drops the
    ``alpha`` of ``torch.add`` where ``x`` is a matrix product (pytorch#167313 is alike).
    """
    return torch.sub(torch.zeros_like(x), x, alpha=-factor)


def times(x: Tensor, constant: Tensor) -> Tensor:
    """``x * constant``, entry by entry, in the spelling that survives the compiler.

    A compiled ``vmap(jacfwd)`` refuses a product of a traced tensor and an untraced one;
    what comes out of ``where`` is traced.
    """
    return x * torch.where(x.isnan(), x, constant)


def working(x: Tensor) -> Tensor:
    """``x`` in the dtype of the linear algebra: at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def working_eps(dtype: torch.dtype) -> float:
    """The eps of the dtype that the linear algebra runs in."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def over_event(mask: Tensor, event_dims: int) -> Tensor:
    """A tensor over the batch with ones for the event dimensions, ready to broadcast."""
    return mask.reshape(mask.shape + (1,) * event_dims)


def or_nan(keep: Bool[Tensor, "*batch"], x: Tensor, event_dims: int) -> Tensor:
    """``x`` where ``keep``, else NaN over the whole element."""
    return torch.where(over_event(keep, event_dims), x, torch.full_like(x, torch.nan))


def max_abs(y: Tensor, event_dims: int = 2) -> Float[Tensor, "*batch"]:
    """The largest modulus of each element; zero for elements without entries."""
    if event_dims == 0:
        return y.abs()
    flat = y.flatten(-event_dims)
    return (flat if flat.shape[-1] else F.pad(flat, (0, 1))).abs().amax(-1)


def all_finite(y: Tensor, event_dims: int = 2) -> Bool[Tensor, "*batch"]:
    """Whether each element has only finite entries."""
    return y.isfinite().flatten(-event_dims).all(-1) if event_dims else y.isfinite()


def finite_or_zero(y: Tensor, event_dims: int = 2) -> Tensor:
    """Elements that are not finite replaced by zeros.

    ``svd`` and ``eigh`` raise for the whole batch if one element is not finite; what
    comes out of the zeros is for :func:`or_nan` to hide.
    """
    finite = over_event(all_finite(y, event_dims), event_dims)
    return torch.where(finite, y, torch.zeros_like(y))


def tall(y: Float[Tensor, "*batch n k"]) -> Tensor:
    """``y``, transposed if it is wide."""
    return y if y.shape[-2] >= y.shape[-1] else y.mT


def identity(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "n n"]:
    """The identity of the size, dtype and device of ``a``."""
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def inverse(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The inverse by LU; not finite where ``a`` is singular."""
    return solve(a, identity(a))


def solve(a: Float[Tensor, "*batch n n"], b: Tensor) -> Tensor:
    """The ``X`` of ``A X = B`` by LU; not finite where ``a`` is singular."""
    # Not linalg.solve, whose second derivatives are wrong; lu_factor_ex, because
    # lu_factor raises for all if one element is singular.
    lu, pivots, _ = torch.linalg.lu_factor_ex(a)
    return lu_solve(lu, pivots, b)


def matrix_exp(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The matrix exponential, to rounding error also of a single matrix.

    torch 2.13 takes too low a degree for a batch of one: with a norm of 0.05 in float64,
    0.5 in float32, ten and two digits are lost. Here a zero matrix keeps it company.
    """
    if math.prod(a.shape[:-2]) != 1:
        return torch.linalg.matrix_exp(a)
    return torch.linalg.matrix_exp(torch.stack([a, torch.zeros_like(a)]))[0]


def shape_of(y: Tensor) -> Tensor:
    """An empty tensor that carries the shape of ``y`` through vmap, as a static."""
    return y.new_empty((*y.shape, 0), dtype=torch.int8)
