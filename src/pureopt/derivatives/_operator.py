"""What the estimators of traces and spectra share: operators on flat vectors, probes, means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt._random import bernoulli
from pureopt._tree import (
    check_like,
    ravel,
    tree_leaves,
    tree_match,
    unravel,
)
from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._estimate import Estimate

Product = Callable[[Tensor], Tensor]
"""A linear operator on vectors of one length."""


def size(where: str, like: Any) -> int:
    """How many numbers a tree holds.

    Raises:
        TreeError: If it is no tree of real floating tensors, or holds no number.
    """
    _checks.point(where, like)
    return sum(leaf.numel() for leaf in tree_leaves(like))


def working_dtype(like: Any) -> torch.dtype:
    """The widest dtype of the leaves, at least float32."""
    dtype = torch.float32
    for leaf in tree_leaves(like):
        dtype = torch.promote_types(dtype, leaf.dtype)
    return dtype


def flat(where: str, matvec: Callable[[P], P], like: P) -> Product:
    """``matvec`` as a function of vectors: :func:`ravel` of a tree like ``like``."""
    dtype, place = working_dtype(like), f"{where}(matvec=...)"
    _checks.function(place, matvec)

    def product(v: Tensor) -> Tensor:
        # A copy, in case that it is written to, which does not show under vmap.
        out = _checks.call(place, matvec, unravel(v.clone(), like))
        check_like(place, out, like, "like")
        return ravel(tree_match(out, like), dtype)

    return product


def rows(product: Product, chunk_size: int | None) -> Product:
    """The product with each row of a matrix, ``chunk_size`` of them at a time."""
    return torch.func.vmap(product, chunk_size=chunk_size)


def stacked(vectors: Float[Tensor, "k n"], like: P) -> P:
    """The tree whose leaves hold the rows along a leading dimension."""
    return torch.func.vmap(lambda v: unravel(v, like))(vectors)


def rademacher(
    key: Int[Tensor, ""], shape: Sequence[int], dtype: torch.dtype
) -> Float[Tensor, "..."]:
    """Independent signs."""
    return 2 * bernoulli(key, 0.5, shape).to(dtype) - 1


def sample_mean(samples: Float[Tensor, "m *shape"]) -> Estimate:
    """The mean along the first dimension and its standard error; that of one is zero."""
    m = samples.shape[0]
    mean = samples.mean(0)
    return Estimate(mean, norm(samples - mean, 0) / math.sqrt(m * max(m - 1, 1)))


def norm(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Euclidean lengths, of any scale; the derivative at zero is zero."""
    largest = x.abs().amax(dim, keepdim=True)
    zero = largest == 0
    scale = torch.where(zero, 1.0, largest)
    squares = torch.where(zero, 1.0, x / scale).square().sum(dim)
    return torch.where(zero, 0.0, largest).squeeze(dim) * squares.sqrt()


def eigh(
    a: Float[Tensor, "*batch n n"],
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n n"]]:
    """Eigenvalues, ascending, and eigenvectors; NaN where ``a`` is not finite.

    The kernels raise for the whole batch if one matrix is not finite.
    """
    finite = a.isfinite().all(-1).all(-1)[..., None]
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None], a, 0.0))
    return (
        torch.where(finite, values, torch.nan),
        torch.where(finite[..., None], vectors, torch.nan),
    )


def at_least(where: str, number: Any, least: int) -> int:
    """``number``, which must be a Python integer and not below ``least``.

    Raises:
        HyperparameterError: If it is not.
    """
    if _checks.positive(where, number) < least:
        raise HyperparameterError(where, f"be at least {least}", str(number))
    return number
