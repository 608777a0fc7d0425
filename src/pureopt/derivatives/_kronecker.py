"""Block-diagonal matrices whose blocks are Kronecker products."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import HyperparameterError, TreeError, told
from pureopt._tree import (
    tree_flatten,
    tree_items,
    tree_leaves,
    tree_match,
    tree_unflatten,
)
from pureopt._typing import P, Scalar
from pureopt.derivatives._operator import eigh


class KroneckerBlock(NamedTuple):
    r"""The block of one leaf, seen as ``groups`` matrices :math:`V` of shape ``(m, n)``.

    .. math:: (L \otimes R) \operatorname{vec} V = \operatorname{vec}(L V R)

    Groups and rows are the first dimension of the leaf (of a matrix with more than two,
    all but the last), columns all others; a bias or a scale of any shape is a single
    column. Only convolutions have more than one group. Of the factors only the product
    has a meaning, not the scale of either.

    Attributes:
        left: Symmetric and positive semidefinite, one for each group.
        right: The same for the columns.
    """

    left: Float[Tensor, "groups m m"]
    right: Float[Tensor, "groups n n"]


class Kronecker(NamedTuple):
    """A positive semidefinite matrix on a tree of parameters, one block for each leaf.

    It is data: average it over batches with a map over its leaves, keep it in a state,
    close over it in a linear operator: ``lambda v: curvature.matvec(v)``.

    Attributes:
        blocks: A tree like the parameters with a :class:`KroneckerBlock` at each leaf.
    """

    blocks: Any

    def matvec(self, v: P) -> P:
        """The matrix times ``v``.

        Args:
            v: A tree like the parameters.

        Returns:
            A tree like ``v``.

        Raises:
            TreeError: If ``v`` is not like the parameters.
        """
        return self._map("matvec", v, lambda b, x: b.left @ x @ b.right)

    def solve(self, v: P, *, damping: Scalar) -> P:
        r"""The solution ``u`` of :math:`(L \otimes R + \lambda I) u = v`.

        By eigendecompositions of the factors, so that the damping is added to the
        product and not, approximately, to its factors. Not to be differentiated with
        respect to the factors: their eigenvalues may be equal.

        Args:
            v: A tree like the parameters.
            damping: :math:`\lambda \ge 0`, in the units of the matrix. With 0 and a
                singular matrix the result is infinite, or what rounding makes of that.

        Returns:
            A tree like ``v``.

        Raises:
            TreeError: If ``v`` is not like the parameters.
            HyperparameterError: If a number ``damping`` is negative or not finite.

        References:
            Martens and Grosse (2015), section 6.3, whose approximate damping this
            replaces. George et al. (2018), on the eigenbasis.
        """
        _check_damping("solve", damping)

        def solved(block: KroneckerBlock, x: Tensor) -> Tensor:
            values, u, w = _spectrum(block)
            return u @ (u.mT @ x @ w / (values + damping)) @ w.mT

        return self._map("solve", v, solved)

    def log_determinant(self, *, damping: Scalar) -> Float[Tensor, ""]:
        r"""The logarithm of the determinant of :math:`L \otimes R + \lambda I`, in nats.

        Args:
            damping: :math:`\lambda \ge 0`. With 0 and a singular matrix the result is
                ``-inf``, or what rounding makes of that.

        Raises:
            HyperparameterError: If a number ``damping`` is negative or not finite.
        """
        _check_damping("log_determinant", damping)
        logs = [(_spectrum(b)[0] + damping).log().sum() for b in self._list()]
        return torch.stack(logs).sum()

    def trace(self) -> Float[Tensor, ""]:
        """The trace."""
        traces = [(_trace(b.left) * _trace(b.right)).sum() for b in self._list()]
        return torch.stack(traces).sum()

    def _list(self) -> list[KroneckerBlock]:
        leaves = tree_leaves(self.blocks)
        pairs = zip(leaves[::2], leaves[1::2], strict=True)
        return [KroneckerBlock(left, right) for left, right in pairs]

    def _map(
        self, name: str, v: P, function: Callable[[KroneckerBlock, Tensor], Tensor]
    ) -> P:
        where = f"Kronecker.{name}(v=...)"
        rule = "be a tree of tensors like the parameters"
        leaves, structure = tree_flatten(v)
        try:
            blocks = tree_match(self.blocks, v)
        except (ValueError, TypeError):
            raise TreeError(where, rule, "other keys") from None
        out: list[Tensor] = []
        for i, (block, leaf) in enumerate(zip(blocks, leaves, strict=True)):
            if not isinstance(block, KroneckerBlock):
                raise TreeError(where, rule, "other keys")
            g, m, n = *block.left.shape[:2], block.right.shape[-1]
            if not isinstance(leaf, Tensor) or not _fits(leaf.shape, g * m, n):
                path = tree_items(v)[i][0]
                got = told(leaf) + (f" at '{path}'" if path else "")
                raise TreeError(where, f"{rule}, of {g * m} rows by {n} there", got)
            x = leaf.to(block.left.dtype).reshape(g, m, n)
            out.append(function(block, x).reshape(leaf.shape).to(leaf.dtype))
        return tree_unflatten(structure, out)


def _fits(shape: torch.Size, rows: int, columns: int) -> bool:
    """So many rows are the first dimensions, and so many columns the others."""
    heads = itertools.accumulate(shape, operator.mul, initial=1)
    return rows in heads and shape.numel() == rows * columns


def _check_damping(name: str, damping: Scalar) -> None:
    if not isinstance(damping, Tensor) and not 0 <= damping < math.inf:
        where = f"Kronecker.{name}(damping=...)"
        raise HyperparameterError(where, "be finite and >= 0", str(damping))


def _spectrum(block: KroneckerBlock) -> tuple[Tensor, Tensor, Tensor]:
    """The eigenvalues of the product, ``(groups, m, n)``, and both eigenbases."""
    left, u = eigh(block.left)
    right, w = eigh(block.right)
    # Rounding may leave those of a singular factor below zero; NaN passes.
    left, right = (torch.where(x < 0, 0.0, x) for x in (left, right))
    return left[..., :, None] * right[..., None, :], u, w


def _trace(a: Tensor) -> Tensor:
    return a.diagonal(dim1=-2, dim2=-1).sum(-1)
