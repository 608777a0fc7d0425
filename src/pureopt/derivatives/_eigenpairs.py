"""The largest eigenvalues of a symmetric operator and their eigenvectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt._random import normal, split
from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._operator import (
    Product,
    eigh,
    flat,
    norm,
    rows,
    size,
    stacked,
    working_dtype,
)


class Eigenpairs(NamedTuple):
    r"""Eigenvalues and eigenvectors, largest first.

    Attributes:
        values: The eigenvalues, descending, in the units of the operator.
        vectors: A tree with the orthonormal eigenvectors along a leading dimension.
        residuals: The norms of :math:`A x - \lambda x`. Within this distance of each
            value there is an eigenvalue of ``A``.
    """

    values: Float[Tensor, "k"]
    vectors: Any
    residuals: Float[Tensor, "k"]


def top_eigenpairs(
    matvec: Callable[[P], P],
    like: P,
    k: int,
    *,
    key: Int[Tensor, ""],
    steps: int = 20,
    chunk_size: int | None = None,
) -> Eigenpairs:
    r"""The ``k`` largest eigenvalues and their eigenvectors, by block Lanczos.

    Rayleigh and Ritz on the orthonormal basis of the block Krylov space

    .. math:: \operatorname{span}\{V, A V, \dots, A^{s-1} V\}

    of ``k`` normal vectors ``V`` with complete reorthogonalization. A block sees an
    eigenvalue of multiplicity up to ``k``; Lanczos from one vector sees one copy. The
    error of a value falls exponentially in ``steps`` times the root of the relative gap
    to the (k+1)-th eigenvalue, and ``residuals`` tell it without knowing the gap.

    Largest means algebraically. The smallest are those of the negated operator; the
    largest in modulus are among the two. A sign is chosen for each vector: it has a
    positive product with the first random vector. Not to be differentiated: the
    eigenvectors of a multiple eigenvalue are not unique.

    Costs ``k (steps + 1)`` products and the memory of ``k steps`` vectors.

    Args:
        matvec: A symmetric linear function of trees like ``like``.
        like: A tree that shows structure, shapes and dtypes; its values do not matter.
        k: How many pairs, from 1 to the dimension.
        key: A key of ``pureopt.random``, on the device of the tree.
        steps: Products per vector of the block. At the whole space, ``k steps >= n``, it
            ends early and is exact to rounding.
        chunk_size: How many products at a time; ``k`` by default.

    Raises:
        HyperparameterError: If a number is out of its range, or ``key`` is not one key.
        TreeError: If ``like`` is no tree of real floating tensors, or ``matvec`` returns
            another tree.

    References:
        Golub and Underwood (1977), on block Lanczos. Musco and Musco (2015), algorithm 2
        (from a random block). Parlett (1998), section 4.5 (residual bounds).

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> d = torch.cat([torch.tensor([7.0, 7.0, 5.0]), torch.linspace(0, 2, 97)])
        >>> values, vectors, residuals = po.derivatives.top_eigenpairs(
        ...     lambda v: d * v, d, 3, key=po.random.key(0)
        ... )
        >>> values
        tensor([7.0000, 7.0000, 5.0000])
        >>> bool((residuals < 1e-4).all())
        True
    """
    where = "top_eigenpairs"
    n = size(f"{where}(like=...)", like)
    _checks.key(f"{where}(key=...)", key, like)
    _checks.positive(f"{where}(k=...)", k)
    if k > n:
        raise HyperparameterError(
            f"{where}(k=...)", f"be at most the dimension, {n}", str(k)
        )
    _checks.positive(f"{where}(steps=...)", steps)
    _checks.chunk(f"{where}(chunk_size=...)", chunk_size)
    product = rows(flat(where, matvec, like), chunk_size)
    # The last block is cut where the basis spans the whole space.
    widths = [min(k, n - start) for start in range(0, min(k * steps, n), k)]
    blocks = (
        normal(one, (width, n), dtype=working_dtype(like))
        for one, width in zip(split(key, len(widths)), widths, strict=True)
    )
    start = next(blocks)
    basis, h = _block_lanczos(product, start, blocks)
    values, s = eigh(h)
    values, s = values[-k:].flip(-1), s[:, -k:].flip(-1)
    first = basis @ start[0]
    vectors = torch.where(first @ s < 0, -s, s).mT @ basis
    gap = product(vectors) - values[:, None] * vectors
    return Eigenpairs(values, stacked(vectors, like), norm(gap))


def _block_lanczos(
    product: Product, start: Float[Tensor, "k n"], blocks: Iterator[Tensor]
) -> tuple[Float[Tensor, "m n"], Float[Tensor, "m m"]]:
    """An orthonormal basis of a block Krylov space, as rows, and the operator in it.

    Column by column of blocks, the matrix is the product with the basis so far: the
    upper half of it, since the operator is symmetric. The random blocks after the first
    stand in where the Krylov space is exhausted.
    """
    noise = 10 * torch.finfo(start.dtype).eps
    q = torch.linalg.qr(start.mT)[0].mT
    w = product(q)
    basis, columns, scale = q, [q @ w.mT], torch.zeros_like(start[0, 0])
    for block in blocks:
        w = _off(w, basis)
        scale = torch.maximum(scale, columns[-1].abs().amax())
        width = block.shape[0]
        q, r = torch.linalg.qr(w.mT)
        q, pivots = q[:, :width].mT, r.diagonal(dim1=-2, dim2=-1)[:width]
        # Rounding noise is no direction: it lies in the span of the basis as likely.
        q = torch.where((pivots.abs() <= noise * scale)[:, None], block, q)
        q = _orthonormal(_orthonormal(q, basis), basis)
        basis = torch.cat([basis, q])
        w = product(q)
        columns.append(basis @ w.mT)
    upper = torch.cat(
        [torch.nn.functional.pad(c, (0, 0, 0, len(basis) - len(c))) for c in columns],
        -1,
    )
    return basis, upper.triu() + upper.triu(1).mT


def _off(w: Tensor, basis: Tensor) -> Tensor:
    """The rows without their parts in the span of the basis; twice is enough."""
    for _ in range(2):
        w = w - (w @ basis.mT) @ basis
    return w


def _orthonormal(w: Tensor, basis: Tensor) -> Tensor:
    return torch.linalg.qr(_off(w, basis).mT)[0].mT
