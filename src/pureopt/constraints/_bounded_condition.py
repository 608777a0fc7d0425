"""Matrices of bounded condition number."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._bounded_spectrum import BoundedSpectrum
from pureopt.constraints._domains import MATRIX, VECTOR, Domain
from pureopt.constraints._log_euclidean import log_sinhc_of_gaps
from pureopt.constraints._lu_chart import diagonal
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    matrix_exp,
    max_abs,
    or_nan,
    over_event,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._orthogonal import Orthogonal, OrthogonalStatic
from pureopt.constraints._positive import softplus
from pureopt.constraints._positive_semidefinite import eigenvalues, symmetric_part
from pureopt.constraints._skew import pack, unpack
from pureopt.constraints._spectral_norm import check_positive, singular_vectors
from pureopt.constraints._sum_to_zero import helmert, helmert_adjoint

BOUNDED_CONDITION = Domain(
    "a matrix of bounded condition number",
    "(..., n, k)",
    2,
    made_by="BoundedCondition(kappa)",
    inside=(MATRIX,),
)

# Made once: the compiler cannot trace the making of a dataclass.
_ORTHOGONAL, _UNIT = Orthogonal(), BoundedSpectrum(-1.0, 1.0)
# The interval of the center, in logits, holds the root for all sizes below 1000 or so:
# each of the other singular values pushes it by at most log(1 / eps).
_REACH = 64.0
_HALVINGS = 48
_POLISHES = 2


@final
@dataclass(frozen=True)
class BoundedCondition(Constraint):
    r"""Matrices of full rank with condition number at most ``kappa``.

    .. math:: Y = e^c \, Q \exp\!\big(\tfrac12 \log(\kappa) \tanh T\big), \qquad
        \operatorname{tr} T = 0

    (The exponential stands on the left for wide matrices.) ``Q`` is that of
    :class:`Orthogonal`, whose static this map takes, and ``T`` is symmetric. ``x`` has as
    many numbers as ``Y`` has entries: those of ``Q``, then ``c``, then a packed ``T``
    whose diagonal is in the basis of Helmert. For any singular values with a ratio below
    ``kappa`` one and only one interval of that width makes the trace vanish, so the map is
    one-to-one onto the open set inside the chart of ``Q``; and it is smooth also where
    singular values meet. A square ``Y`` keeps the sign of its determinant.

    A condition number of ``kappa`` itself belongs to the set. There the right inverse
    raises the smallest singular values by a relative ``4 k eps log(kappa)``, which is
    rounding error as ``check`` and ``rounding`` count it, and the gradient is all but
    zero.

    Args:
        kappa: The largest ratio of singular values :math:`\kappa`, above one.

    Raises:
        HyperparameterError: If ``kappa`` is not a finite number above one.

    References:
        Higham (2008), chapter 8 (the polar decomposition). Tanaka and Nakata (2014)
        (the projection).

    Example:
        >>> import torch
        >>> c, y = BoundedCondition(100.0), torch.diag(torch.tensor([5.0, -0.5, 0.05]))
        >>> static = c.bind(y)
        >>> x = c.right_inverse(y, static)
        >>> x.shape, torch.allclose(c.forward(x, static), y, atol=1e-5)
        (torch.Size([9]), True)
        >>> bool(torch.linalg.cond(c.forward(x + 3, static)) <= 100.01)
        True
        >>> c.check(torch.diag(torch.tensor([1.0, 0.001])))
        tensor(False)
    """

    kappa: float

    def __post_init__(self) -> None:
        check_positive("BoundedCondition(kappa=...)", float(self.kappa), 1.0)

    @property
    def domain(self) -> Domain:
        """Vectors with as many entries as the matrix."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices of bounded condition number."""
        return BOUNDED_CONDITION

    @property
    def rule(self) -> str:
        """How far the smallest singular value is too small."""
        return f"1 - {self.kappa:g} sigma_min(Y) / sigma_max(Y)"

    @property
    def _width(self) -> float:
        """That of the interval of the logarithms of the singular values."""
        return math.log(self.kappa)

    def dim(self, shape: Sequence[int]) -> int:
        """The number of entries."""
        self._require_shape("dim", shape)
        return shape[-2] * shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """The smaller one of the factors, and where the scale overflows."""
        overflow = math.log(torch.finfo(dtype).max) - self._width
        return min(_ORTHOGONAL.radius(n, dtype), _UNIT.radius(n, dtype), overflow)

    def bind(self, y: Float[Tensor, "*batch n k"]) -> OrthogonalStatic:
        """The chart of the orthogonal factor."""
        BOUNDED_CONDITION.require("BoundedCondition.bind(y)", y)
        u, _, vh = singular_vectors(working(y))
        return _ORTHOGONAL.bind(u @ vh)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """The matrix; see the class."""
        rows, columns = _shape("BoundedCondition.forward", x, static)
        first, c, t = _parts(x, rows, columns)
        q = _ORTHOGONAL.forward(first, static)
        p = matrix_exp(scaled(_UNIT.of_symmetric(t), self._width / 2))
        p = p * over_event(c.exp(), 2)
        return (q @ p if rows >= columns else p @ q).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not in the set or not in the chart."""
        keep = self.check(y)
        u, s, vh = singular_vectors(working(y))
        first = _ORTHOGONAL.right_inverse(u @ vh, static)
        c, t = self._free(torch.where(keep.unsqueeze(-1), s, torch.ones_like(s)))
        vectors = vh.mT if y.shape[-2] >= y.shape[-1] else u
        a = symmetric_part((vectors * t.unsqueeze(-2)) @ vectors.mT)
        x = torch.cat([first, c, helmert_adjoint(diagonal(a)), pack(a)], -1)
        return or_nan(keep & all_finite(first, 1), x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """How far the smallest singular value is too small; one for zero."""
        BOUNDED_CONDITION.require("BoundedCondition(y)", y)
        a = working(y)
        s = torch.linalg.svdvals(finite_or_zero(a))
        top = s[..., 0]
        safe = torch.where(top == 0, torch.ones_like(top), top)
        return or_nan(all_finite(a), 1 - scaled(s[..., -1] / safe, self.kappa), 0)

    def tolerance(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """``10 max(n, k) kappa eps``, at most one half.

        An error of ``eps sigma_max``, as in any stored matrix, in ``sigma_min``.
        """
        relative = 10 * max(y.shape[-2:]) * self.kappa * torch.finfo(y.dtype).eps
        return torch.full_like(working(y[..., 0, 0]), min(relative, 0.5))

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n k"]
    ) -> Float[Tensor, "*batch"]:
        """``20 k eps max(1, max|x|) max(1, log(kappa)) sigma_max``."""
        k, width = min(y.shape[-2:]), max(1.0, self._width)
        reach = max_abs(working(x), 1).clamp(min=1)
        top = torch.linalg.svdvals(finite_or_zero(working(y)))[..., 0]
        return scaled(reach * top, 20 * k * torch.finfo(y.dtype).eps * width)

    def project(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
        """Singular values clamped to the best interval; NaN for zero.

        The lower end is where the sum of squares has its minimum: a piecewise linear
        equation, by bisection to the piece.
        """
        keep = self.check(y)
        u, s, vh = singular_vectors(working(y))
        low, high = torch.zeros_like(s[..., :1]), s[..., :1]
        for _ in range(_HALVINGS):
            middle = scaled(low + high, 0.5)
            raised = (middle - s).clamp(min=0).sum(-1, keepdim=True)
            cut = (s - scaled(middle, self.kappa)).clamp(min=0).sum(-1, keepdim=True)
            above = raised > scaled(cut, self.kappa)
            low, high = (
                torch.where(above, low, middle),
                torch.where(above, middle, high),
            )
        middle = scaled(low + high, 0.5)
        small, large = s < middle, s > scaled(middle, self.kappa)
        total = torch.where(small, s, torch.where(large, scaled(s, self.kappa), 0))
        weight = small + scaled(large.to(s.dtype), self.kappa**2)
        count = weight.sum(-1, keepdim=True)
        low = torch.where(
            count > 0, total.sum(-1, keepdim=True) / count.clamp(min=1), middle
        )
        clamped = torch.minimum(torch.maximum(s, low), scaled(low, self.kappa))
        nearest = ((u * clamped.unsqueeze(-2)) @ vh).to(y.dtype)
        nearest = torch.where(over_event(keep, 2), y, nearest)
        return or_nan(all_finite(y) & (s[..., 0] > 0), nearest, 2)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""From the eigenvalues ``t`` of ``T`` and the volume ratio of ``Q``.

        With ``h = log(kappa) / 2`` and ``l = c + h tanh t``, the logarithms of the ``k``
        singular values, that of ``Q`` is added to

        .. math:: (|n - k| + 1) \sum_i l_i
            + \sum_{i<j} \log \frac{e^{2 l_i} - e^{2 l_j}}{2 (t_i - t_j)}
            + \sum_i \log \frac{h}{\cosh^2 t_i}
            + \log \frac{\sum_i \cosh^2 t_i}{h \sqrt k}
        """
        rows, columns = _shape("BoundedCondition.log_abs_det", x, static)
        first, c, packed = _parts(x, rows, columns)
        k, h = min(rows, columns), self._width / 2
        t = eigenvalues(packed)
        l = scaled(torch.tanh(t), h) + c.unsqueeze(-1)
        log_cosh = softplus(t + t) - t - math.log(2)
        # e^{2a} - e^{2b} = 2 e^{a+b} sinh(a - b), and a - b = h sinh(t_i - t_j) over the
        # product of the cosh.
        pairs = log_sinhc_of_gaps(l) + log_sinhc_of_gaps(t)
        pairs = pairs + scaled(l.sum(-1) - log_cosh.sum(-1), k - 1.0)
        singles = scaled(l.sum(-1), abs(rows - columns) + 1.0)
        singles = singles - scaled(log_cosh.sum(-1), 2.0)
        gauge = torch.logsumexp(log_cosh + log_cosh, -1) - math.log(k) / 2
        own = pairs + singles + gauge + (k * (k + 1) / 2 - 1) * math.log(h)
        return (_ORTHOGONAL.log_abs_det(first, static) + own).to(x.dtype)

    def _free(self, s: Float[Tensor, "*batch k"]) -> tuple[Tensor, Tensor]:
        """The center ``c`` and the eigenvalues of ``T`` of singular values.

        With ``c`` at a share ``w`` of where it can be, the distances to the ends of the
        interval are those of the largest singular value plus ``w``, and of the smallest
        plus ``1 - w``, of the slack: sums of positive numbers, which cancel nothing.
        """
        k, width = s.shape[-1], self._width
        margin = 4 * k * working_eps(s.dtype)
        l = s.log()
        top = l[..., :1]
        l = torch.maximum(l, top - width * (1 - margin))
        up, down = top - l, l - l[..., -1:]
        slack = width - up[..., -1:]
        z, end = torch.zeros_like(slack), torch.full_like(slack, _REACH * k)
        for _ in range(_HALVINGS):
            end = scaled(end, 0.5)
            trace = _eigenvalues(z, up, down, slack)[0].sum(-1, keepdim=True)
            z = torch.where(trace > 0, z + end, z - end)
        for _ in range(_POLISHES):
            t, slope = _eigenvalues(z, up, down, slack)
            # The slope is one half at least: the two ends alone make so much.
            z = z + t.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
        c = top - width / 2 + slack * torch.sigmoid(z)
        return c, _eigenvalues(z, up, down, slack)[0]


def _eigenvalues(
    z: Tensor, up: Tensor, down: Tensor, slack: Tensor
) -> tuple[Tensor, Tensor]:
    """``atanh`` of the place in the interval, and how fast it falls with the logit."""
    share = slack.log() - softplus(-z)
    rest = slack.log() - softplus(z)
    above, below = _log_sum(up, share), _log_sum(down, rest)
    slope = (share - above).exp() * torch.sigmoid(-z)
    slope = slope + (rest - below).exp() * torch.sigmoid(z)
    return scaled(below - above, 0.5), scaled(slope, 0.5)


def _log_sum(a: Tensor, log_b: Tensor) -> Tensor:
    """``log(a + b)`` for ``a >= 0``, where ``b`` may be too small for a float."""
    zero = a <= 0
    safe = torch.where(zero, torch.ones_like(a), a).log()
    return torch.where(zero, log_b, torch.logaddexp(safe, log_b))


def _parts(x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The free vector of ``Q``, ``c`` and ``T``, in the working dtype."""
    k = min(rows, columns)
    cut = rows * columns - k * (k + 1) // 2
    first, c, z, off = working(x).split([cut, 1, k - 1, k * (k - 1) // 2], -1)
    a, i = unpack(off), torch.arange(k, device=x.device)
    a = torch.where(i[:, None] < i, -a, a)
    a = torch.where(i[:, None] == i, helmert(z).unsqueeze(-1), a)
    return first, c[..., 0], a


def _shape(where: str, x: Tensor, static: Any) -> tuple[int, int]:
    """The shape of the matrix; a square one without static."""
    VECTOR.require(f"{where}(x)", x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    rows = columns = math.isqrt(length)
    if isinstance(static, OrthogonalStatic):
        rows, columns = static.shape.shape[-3:-1]
    if rows * columns != length or length == 0:
        raise ConstraintError(
            f"{where}(x)",
            f"have a last dimension {rows} * {columns} for a {rows} by {columns} matrix",
            str(tuple(x.shape)),
            "Without static the matrix is square; take the static from `bind`.",
        )
    return rows, columns
