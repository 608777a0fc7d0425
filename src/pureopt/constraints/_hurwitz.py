"""Hurwitz matrices: those whose linear dynamics decays."""

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
from pureopt.constraints._bounds import Bound, bound_like, check_bound
from pureopt.constraints._domains import SQUARE, VECTOR, Domain
from pureopt.constraints._numeric import (
    finite_or_zero,
    identity,
    inverse,
    max_abs,
    or_nan,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._skew import pack, unpack
from pureopt.constraints._symmetric import Symmetric

_HURWITZ = Domain(
    "a Hurwitz matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="Hurwitz()",
    inside=(SQUARE,),
)


@final
@dataclass(frozen=True, eq=False)
class Hurwitz(Constraint):
    r"""Square matrices whose eigenvalues have real parts below ``-alpha``.

    .. math:: Y = U U^T (S - I) - \alpha I, \qquad \log U_{ii} = x_{ii} / 2, \quad
        U_{ij} = x_{ij} / \sqrt 2\ (i < j), \quad S \text{ skew}

    ``x`` has ``n^2`` entries: ``U``, upper triangular, packed as in :class:`Symmetric`,
    then ``S`` as in :class:`Skew`. Every such matrix comes from exactly one ``x``,
    because :math:`P = (U U^T)^{-1}` is the only solution of Lyapunov's equation
    :math:`(Y + \alpha I)^T P + P (Y + \alpha I) = -2I`: along ``y' = Y y`` the number
    :math:`y^T P y` decays at least as :math:`e^{-2 \alpha t}`. At ``x = 0`` the map is
    an isometry and ``Y = -(1 + alpha) I``.

    The set is open. Rounding blurs its edge: :meth:`check` asks for a distance of
    ``n eps max|Y|``, and :meth:`right_inverse` is NaN where Lyapunov's equation is too
    ill conditioned to lead back to at least half the digits of ``Y``. It solves that
    equation by doubling, at the cost of some hundred matrix products. To begin, move any
    matrix left: ``a - (torch.linalg.eigvals(a).real.max() + alpha + 1) * eye``.

    Args:
        alpha: The decay rate, a number or a tensor that broadcasts to the batch; it may
            be negative.

    Raises:
        HyperparameterError: If ``alpha`` is neither a finite number nor a floating
            tensor.

    References:
        Gillis and Sharma (2017), lemma 2 (stable matrices as a skew minus a definite one,
        times a definite one). Smith (1968), the doubling.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Hurwitz
        >>> spiral = torch.tensor([[-0.1, 5.0], [-5.0, -0.1]], dtype=torch.float64)
        >>> c = Hurwitz()
        >>> x = c.right_inverse(spiral)
        >>> bool((c.forward(x) - spiral).abs().max() < 1e-14)
        True
        >>> bool(c.check(c.forward(x + 1))), bool(c.check(-spiral))
        (True, False)
    """

    alpha: Bound = 0.0

    def __post_init__(self) -> None:
        check_bound("Hurwitz(alpha=...)", self.alpha)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n^2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Hurwitz matrices."""
        return _HURWITZ

    @property
    def rule(self) -> str:
        """The largest real part of an eigenvalue, from the edge."""
        return "max Re eigenvalue(Y) + alpha"

    def dim(self, shape: Sequence[int]) -> int:
        """``n^2``."""
        y = torch.empty(tuple(shape), device="meta")
        _HURWITZ.require("Hurwitz.dim(shape)", y)
        return shape[-1] ** 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``log(1 / eps) / (3 n)``.

        Beyond it, Lyapunov's equation may be too ill conditioned, and the slowest
        eigenvalue a rounding error of the largest entry.
        """
        return -math.log(torch.finfo(dtype).eps) / (3 * n)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The Hurwitz matrix; see the class."""
        del static
        return self._shifted(_stable(*_parts(x)), -1).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not Hurwitz, or only just."""
        del static
        _HURWITZ.require("Hurwitz.right_inverse(y)", y)
        b = self._shifted(working(y), 1)
        p = _lyapunov(b)
        eye = identity(b)
        lower, _ = torch.linalg.cholesky_ex(p)
        u = torch.linalg.solve_triangular(lower, eye.expand_as(b), upper=False).mT
        s = p @ b + eye
        s = scaled(s - s.mT, 0.5)
        # Not definite, or too ill conditioned: the parts do not lead back.
        error = max_abs(_stable(u, s) - b)
        half = scaled(max_abs(b), math.sqrt(working_eps(y.dtype)))
        limit = torch.minimum(_rounding(u, b, y.dtype), half)
        diagonal = eye > 0
        log = torch.where(diagonal, u, torch.ones_like(u)).log()
        t = torch.where(diagonal, log + log, u.triu(1) + u.triu(1).mT)
        keep = self.check(y) & (error <= limit)
        x = torch.cat([Symmetric().right_inverse(t), pack(s)], -1)
        return or_nan(keep, x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The largest real part of an eigenvalue, plus alpha."""
        _HURWITZ.require("Hurwitz(y)", y)
        b = working(y)
        # The decomposition raises for the whole batch if one element is not finite.
        real = torch.linalg.eigvals(finite_or_zero(b)).real.amax(-1)
        finite = b.isfinite().flatten(-2).all(-1)
        return or_nan(
            finite, real + bound_like("Hurwitz(alpha=...)", self.alpha, real), 0
        )

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``-n eps max|Y|``, with the eps of at least float32: the set is open."""
        share = y.shape[-1] * working_eps(y.dtype)
        # Below zero for the zero matrix too.
        least = torch.finfo(y.dtype).tiny / working_eps(y.dtype)
        return scaled(max_abs(working(y)).clamp(min=least), -share)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """``20 eps sqrt(n) max|Y + alpha I|`` times the condition number of ``P``."""
        u, _ = _parts(x)
        return _rounding(u, self._shifted(working(y), 1), y.dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""From the eigenvalues :math:`\lambda` of ``Y + alpha I``.

        .. math:: \sum_{i=1}^{n} (i - 1) \log U_{ii}
            + \sum_{i \le j} \log \frac{|\lambda_i + \lambda_j|}{2}

        The second sum is taken from the LU factors of the Kronecker sum, which are
        smooth, at a cost of order ``n^6``: meant for small ``n``.
        """
        del static
        u, s = _parts(x)
        b = _stable(u, s)
        n = b.shape[-1]
        weight = torch.arange(n, dtype=b.dtype, device=b.device)
        first = u.diagonal(dim1=-2, dim2=-1).log() @ weight
        pairs = _log_abs_det(_kronecker_sum(b)) + _log_abs_det(b)
        return (first + scaled(pairs - n * n * math.log(2), 0.5)).to(x.dtype)

    def _shifted(self, b: Tensor, sign: int) -> Tensor:
        """``B + sign alpha I``."""
        alpha = bound_like("Hurwitz(alpha=...)", self.alpha, b[..., 0, 0])
        moved = b + alpha[..., None, None] if sign > 0 else b - alpha[..., None, None]
        return torch.where(identity(b) > 0, moved, b)


def _parts(x: Float[Tensor, "*batch d"]) -> tuple[Tensor, Tensor]:
    """``U`` and ``S``, in the working dtype."""
    VECTOR.require("Hurwitz.forward(x)", x)
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    n = math.isqrt(length)
    if n == 0 or n * n != length:
        raise ConstraintError(
            "Hurwitz.forward(x)",
            "have a last dimension n^2: 1, 4, 9, ...",
            str(tuple(x.shape)),
            "`right_inverse` of an n by n matrix gives the right one.",
        )
    split = n * (n + 1) // 2
    x = working(x)
    t = Symmetric().forward(x[..., :split])
    diagonal, zero = identity(t) > 0, torch.zeros_like(t)
    # The exponential never sees the other entries, which may be large.
    scale = scaled(torch.where(diagonal, t, zero), 0.5).exp()
    return torch.where(diagonal, scale, t.triu(1)), unpack(x[..., split:])


def _stable(u: Tensor, s: Tensor) -> Float[Tensor, "*batch n n"]:
    """``U U^T (S - I)``."""
    return u @ (u.mT @ (s - identity(s)))


def _rounding(u: Tensor, b: Tensor, dtype: torch.dtype) -> Float[Tensor, "*batch"]:
    n = u.shape[-1]
    eye = identity(u).expand_as(u)
    back = torch.linalg.solve_triangular(u, eye, upper=True)
    condition = max_abs(u @ u.mT) * max_abs(back.mT @ back)
    return scaled(condition * max_abs(b), 20 * math.sqrt(n) * torch.finfo(dtype).eps)


def _lyapunov(b: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The solution of ``B^T P + P B = -2I``; anything where ``B`` is not stable.

    With ``W = (p I - B)^{-1}`` and ``M = 2 p W - I`` the equation is
    ``P = M^T P M + 4 p W^T W``, and the solution a series whose partial sums double.
    The shift ``p`` is the geometric mean of the largest and smallest eigenvalue, by
    their norms. All in units of ``max|B|``, whose fourth powers might overflow.
    """
    unit = max_abs(b)[..., None, None]
    b, eye = b / unit, identity(b)
    norms = (m.square().sum((-2, -1), keepdim=True) for m in (b, inverse(b)))
    shift = torch.div(*norms) ** 0.25
    w = inverse(torch.where(eye > 0, shift - b, -b))
    powers = [scaled(shift * w, 2) - eye]
    # As many as it takes for the slowest eigenvalue that rounding can tell from zero.
    for _ in range(5 - round(math.log2(working_eps(b.dtype)))):
        powers.append(powers[-1] @ powers[-1])

    def solution(q: Tensor) -> Tensor:
        p = scaled(shift * (w.mT @ q @ w), 2)
        for m in powers:
            p = p + m.mT @ p @ m
        return p

    p = solution(eye + eye)
    # One refinement: what is left over is solved for again.
    p = p + solution(b.mT @ p + p @ b + eye + eye)
    return scaled(p + p.mT, 0.5) / unit


def _kronecker_sum(b: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n*n n*n"]:
    """``B x I + I x B``, with eigenvalues that are sums of two of ``B``."""
    n = b.shape[-1]
    eye = identity(b) > 0
    zero = torch.zeros_like(b)[..., None, :, None]
    left = torch.where(eye[:, None, :], b[..., :, None, :, None], zero)
    right = torch.where(eye[:, None, :, None], b[..., None, :, None, :], zero)
    return (left + right).reshape(*b.shape[:-2], n * n, n * n)


def _log_abs_det(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    lu = torch.linalg.lu_factor_ex(a)[0]
    return lu.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
