"""Matrices whose rows and columns are probability vectors."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import SQUARE, VECTOR, Domain
from pureopt.constraints._numeric import identity, or_nan, solve, working
from pureopt.constraints._simplex import finite_log, simplex_error
from pureopt.constraints._sphere import sum_tolerance
from pureopt.constraints._sum_to_zero import helmert, helmert_adjoint

DOUBLY_STOCHASTIC = Domain(
    "a doubly stochastic matrix", "(..., n, n)", 2, square=True, inside=(SQUARE,)
)

# Newton steps on the way, one for each halving of the logits, and at the end: enough for
# the residual to be rounding error for logits up to a hundred, measured; see `radius`.
# No step changes a ratio of entries by more than exp(_REACH).
_HALVINGS = 5
_LAST = 10
_REACH = 4.0
# Newton steps that carry derivatives: each doubles how many orders are right.
_EXACT = 2


@final
@dataclass(frozen=True)
class DoublyStochastic(Constraint):
    r"""Matrices of nonnegative entries whose rows and columns add up to one.

    .. math::
        P_{ij} = \exp(X_{ij} + u_i + v_j), \qquad P 1 = P^T 1 = 1, \qquad
        X = V \operatorname{mat}(x) V^T

    with the orthonormal columns :math:`V` of Helmert, so that ``x`` has
    :math:`(n - 1)^2` entries, as many as the set has dimensions, and is the logarithm
    of ``P`` centered along rows and columns. The scaling that Sinkhorn finds by
    alternation, slowly, is here the minimum of the convex
    :math:`\sum_i \log \sum_j \exp(X_{ij} + v_j) - \sum_j v_j`, found by a fixed number of
    Newton steps, first for fractions of ``X``, in :math:`O(n^3)`. The last two steps
    carry the derivatives, which are exact up to third order.

    Permutation matrices and other zeros are the boundary, which large ``x`` round to;
    about them see :meth:`right_inverse`.

    References:
        Sinkhorn (1967) (the scaling exists and is unique). Knight and Ruiz (2013)
        (Newton's method for it). Kosowsky and Yuille (1994) (fractions first).
        Adams and Zemel (2011), Mena, Belanger, Linderman and Snoek (2018) (logits).

    Example:
        >>> import torch
        >>> x = 3 * torch.arange(9.0, dtype=torch.float64).cos()
        >>> p = DoublyStochastic().forward(x)
        >>> (
        ...     bool((p.sum(-1) - 1).abs().max() < 1e-14),
        ...     bool((p.sum(-2) - 1).abs().max() < 1e-14),
        ... )
        (True, True)
        >>> bool((DoublyStochastic().right_inverse(p) - x).abs().max() < 1e-12)
        True
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``(n - 1)^2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Doubly stochastic matrices."""
        return DOUBLY_STOCHASTIC

    @property
    def rule(self) -> str:
        """The worst row or column: its sum from one, its most negative entry."""
        return "max(|sum(Y_i) - 1|, |sum(Y_j) - 1|, -min(Y))"

    def dim(self, shape: Sequence[int]) -> int:
        """``(n - 1)^2``."""
        self._require_shape("dim", shape)
        return (shape[-1] - 1) ** 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """30 up to ``n = 200``, then ``6000 / n``: where the steps are enough, measured.

        Beyond, what they leave off the set is NaN.
        """
        del dtype
        return 30 * min(1.0, 200 / n)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The matrix; see the class. NaN if the steps were too few, see :meth:`radius`."""
        del static
        y = _balanced(_logits("forward", x))[0].to(x.dtype)
        return or_nan(self.check(y), y, 2)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The centered logarithms; NaN where ``y`` is not doubly stochastic.

        An entry below the smallest normal number counts as that number, hence a zero
        comes back to rounding error, from an ``x`` where the gradient vanishes.
        """
        del static
        keep = self.check(y)
        z = helmert_adjoint(helmert_adjoint(finite_log(y)).mT).mT
        return or_nan(keep, z.flatten(-2), 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """That of the worst row or column."""
        DOUBLY_STOCHASTIC.require("DoublyStochastic(y)", y)
        return torch.maximum(simplex_error(y).amax(-1), simplex_error(y.mT).amax(-1))

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``4 eps + 10 sqrt(n) eps'``, see :func:`sum_tolerance`."""
        return sum_tolerance(y[..., 0])

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`\sum_{ij} \log P_{ij} - \log\det L + 2 (n - 1) \log n`.

        :math:`L` is :math:`I - P^T P` without its last row and column. The Jacobian is
        the inverse of ``diag(1/P)`` between matrices of sums zero; its determinant is
        that of ``diag(P)`` on the complement by Jacobi's complementary minors, and
        :math:`L` has that of ``I - P^T P`` by the matrix-tree theorem. NaN where
        :meth:`forward` is.
        """
        del static
        p, logs = _balanced(_logits("log_abs_det", x))
        n = p.shape[-1]
        lu, _, _ = torch.linalg.lu_factor_ex(_laplacian(p)[..., :-1, :-1])
        # Not .diagonal(), about which inductor warns.
        pivots = torch.where(_diagonal(lu), lu.abs(), torch.ones_like(lu))
        volume = logs.sum((-2, -1)) - pivots.log().sum((-2, -1))
        volume = volume + 2 * (n - 1) * math.log(n)
        return or_nan(self.check(p.to(x.dtype)), volume, 0).to(x.dtype)


def _balanced(x: Float[Tensor, "*batch n n"]) -> tuple[Tensor, Tensor]:
    """The doubly stochastic matrix of the logits, and its logarithm."""
    logs = (x + _column_logs(x.detach()).detach().unsqueeze(-2)).log_softmax(-1)
    p = logs.exp()
    for _ in range(_EXACT):
        step = _newton_step(p).unsqueeze(-2)
        # On the entries, not the logits: their rounding error does not grow with x.
        p = p * step.exp()
        total = p.sum(-1, keepdim=True)
        p, logs = p / total, logs + step - total.log()
    return p, logs


def _column_logs(x: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    """The ``v`` of the class, for a fraction of the logits first, then for all."""
    u = -(x / 2**_HALVINGS).logsumexp(-1, keepdim=True)
    v = -(x / 2**_HALVINGS + u).logsumexp(-2)
    for halving in range(_HALVINGS, 0, -1):
        v = 2 * _descended(x / 2**halving, v)
    for _ in range(_LAST):
        v = _descended(x, v)
    return v


def _descended(x: Tensor, v: Tensor) -> Tensor:
    """``v`` after one Newton step that is cut off where it is too long to be trusted."""
    step = _newton_step((x + v.unsqueeze(-2)).softmax(-1))
    reach = step.amax(-1, keepdim=True) - step.amin(-1, keepdim=True)
    return v + step * (_REACH / reach.clamp(min=_REACH))


def _newton_step(p: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    """The step of ``v`` that makes the column sums of a row stochastic matrix one."""
    # A constant in v changes nothing: 1/n fixes it. The ridge matters only where all
    # that connects two blocks of P is below rounding error.
    ridge = torch.finfo(p.dtype).eps * identity(p)
    residual = 1 - p.sum(-2)
    residual = residual - residual.mean(-1, keepdim=True)
    hessian = _laplacian(p) + ridge + 1 / p.shape[-1]
    return solve(hessian, residual.unsqueeze(-1)).squeeze(-1)


def _laplacian(p: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``I - P^T P`` for unit sums: its rows add up to zero, so no diagonal cancels."""
    gram = p.mT @ p
    diagonal = _diagonal(gram)
    gram = torch.where(diagonal, torch.zeros_like(gram), gram)
    return torch.where(diagonal, gram.sum(-1, keepdim=True), -gram)


def _diagonal(p: Float[Tensor, "*batch n n"]) -> Bool[Tensor, "n n"]:
    """Where the diagonal is."""
    i = torch.arange(p.shape[-1], device=p.device)
    return i[:, None] == i


def _logits(method: str, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n n"]:
    """The centered logits, in at least float32."""
    VECTOR.require(f"DoublyStochastic.{method}(x)", x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    m = math.isqrt(length)
    if m * m != length:
        raise ConstraintError(
            f"DoublyStochastic.{method}(x)",
            "have a last dimension (n - 1)^2: 0, 1, 4, 9, ...",
            str(tuple(x.shape)),
            "`right_inverse` of an n by n matrix gives the right one.",
        )
    z = working(x).reshape(*x.shape[:-1], m, m)
    return helmert(helmert(z).mT).mT
