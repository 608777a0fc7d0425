"""The signed Cayley transform: skew-symmetric matrices to orthogonal ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt._random import normal
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import ORTHOGONAL, SKEW, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    identity,
    max_abs,
    or_nan,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._orthogonal_map import OrthogonalMap


@final
@dataclass(frozen=True)
class Cayley(Constraint):
    r"""Orthogonal matrices from skew-symmetric ones by the signed Cayley transform.

    .. math:: Q = (I - A/2)^{-1} (I + A/2) D, \qquad D = \operatorname{diag}(\pm 1)

    The signs ``D`` are the static data, int8 of shape ``(*batch, n)``. :meth:`bind`
    chooses them so that ``I + Q D`` is far from singular, hence every orthogonal matrix
    has a chart, also those with determinant -1 or an eigenvalue -1. ``det Q = prod(D)``
    never changes along a path in ``A``. One Newton-Schulz step closes the map, so that
    ``Q`` stays orthogonal to rounding error for large ``A``.

    References:
        Helfrich, Willmott and Ye, *Orthogonal recurrent neural networks with scaled
        Cayley transform*, ICML 2018. Ballard, Demmel, Grigori, Jacquelin, Knight and
        Nguyen, *Reconstructing Householder vectors from tall-skinny QR*, J. Parallel
        Distrib. Comput. 85, 2015 (the signs, by their modified LU decomposition).

    Example:
        >>> import torch
        >>> half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
        >>> signs = Cayley().bind(half_turn)
        >>> signs
        tensor([-1, -1,  1], dtype=torch.int8)
        >>> a = Cayley().right_inverse(half_turn, signs)
        >>> bool((Cayley().forward(a, signs) == half_turn).all())
        True
    """

    @property
    def domain(self) -> Domain:
        """Skew-symmetric matrices."""
        return SKEW

    @property
    def codomain(self) -> Domain:
        """Orthogonal matrices."""
        return ORTHOGONAL

    @property
    def rule(self) -> str:
        """The largest deviation from orthonormal columns."""
        return "max|Y^T Y - I|"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n - 1) / 2``."""
        self._require_shape("dim", shape)
        return shape[-1] * (shape[-1] - 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``1 / sqrt(n eps)``, with the eps of at least float32.

        The error before the Newton-Schulz step is at most about ``n max|A| eps``, and
        the step squares it.
        """
        return (n * working_eps(dtype)) ** -0.5

    def bind(self, y: Float[Tensor, "*batch n n"]) -> Int8[Tensor, "*batch n"]:
        """The signs ``D`` of the chart around ``y``."""
        ORTHOGONAL.require("Cayley.bind(y)", y)
        return chart_signs(working(y))

    def forward(
        self, x: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The orthogonal matrix; see the class."""
        SKEW.require("Cayley.forward(x)", x)
        check_signs("Cayley.forward(static=...)", static, x.shape[:-1])
        a = working(x)
        return flip(cayley_columns(a, a[..., :0, :]), static).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The skew matrix; NaN where ``y`` is not orthogonal or not in the chart."""
        ORTHOGONAL.require("Cayley.right_inverse(y)", y)
        check_signs("Cayley.right_inverse(static=...)", static, y.shape[:-1])
        a, _, inside = cayley_blocks(flip(working(y), static))
        # Twice, so that what was made on the radius has a place after rounding.
        edge = 2 * self.radius(y.shape[-1], y.dtype)
        keep = self.check(y) & inside & (max_abs(a) <= edge)
        return or_nan(keep, a, 2).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The largest deviation from orthonormal columns."""
        ORTHOGONAL.require("Cayley(y)", y)
        return orthonormality_error(y)

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``10 n eps``, at most one half."""
        return orthonormality_tolerance(y)

    def project(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The orthogonal polar factor of ``y``."""
        ORTHOGONAL.require("Cayley.project(y)", y)
        return polar_factor(y)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n n"]:
        """Uniform in the Haar measure of the orthogonal group, either determinant."""
        self._require_shape("sample", shape, dtype)
        return haar(key, shape, dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`-(n - 1) \log\det(I + A/2)`, over skew matrices with Frobenius norm."""
        SKEW.require("Cayley.log_abs_det(x)", x)
        check_signs("Cayley.log_abs_det(static=...)", static, x.shape[:-1])
        a = working(x)
        return cayley_log_abs_det(a, a[..., :0, :]).to(x.dtype)


@final
@dataclass(frozen=True)
class SignedCayley(OrthogonalMap):
    r"""The first ``k`` columns of a Cayley transform: the default map.

    .. math::
        Q = \begin{bmatrix} (I - F)(I + F)^{-1} \\ B (I + F)^{-1} \end{bmatrix} D,
        \qquad F = \tfrac14 B^T B - \tfrac12 A

    A bijection for each choice of the signs ``D``, and the cheapest map: its gradient
    costs little more than products of matrices. The slope falls as the square of a
    large free value; :meth:`Constraint.rebind` makes free values small. Undefined
    nowhere.

    References:
        Jauch, Hoff and Dunson (2020).

    Example:
        >>> import torch
        >>> from pureopt.constraints import Orthogonal
        >>> Orthogonal(SignedCayley()) == Orthogonal()
        True
    """

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``eps^(-1/4) / 8``, with the eps of at least float32: 6.7; 1024 in float64.

        From ``n = 90`` on ``2 (10 / (n^3 eps))^(1/4)``: the condition number of
        ``I + F`` is at most about ``(n max|x| / 4)^2``, the error before the
        Newton-Schulz step grows with it, and the step squares that.
        """
        return chart_radius(n, dtype)

    def amplification(self, reach: Tensor, shape: torch.Size) -> Tensor:
        """``max|x|^2`` for rectangles, ``max|x|`` for squares, where ``F`` is normal."""
        n, k = shape[-2:]
        return reach if n == k else reach.square()

    def columns(self, a: Tensor, b: Tensor, base: Any) -> Float[Tensor, "*batch n k"]:
        """The columns of the transform."""
        del base
        return cayley_columns(a, b)

    def blocks(
        self, q: Float[Tensor, "*batch n k"], base: Any
    ) -> tuple[Tensor, Tensor, Bool[Tensor, "*batch"]]:
        """The blocks of the skew matrix; off the chart beyond ``eps^(-1/4)``."""
        del base
        a, b, inside = cayley_blocks(q)
        reach = max_abs(torch.cat([a, b], -2))
        return a, b, inside & (reach <= chart_edge(q.dtype))

    def log_abs_det(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch"]:
        r""":math:`-(n - 1) \log\det(I + F)`."""
        return cayley_log_abs_det(a, b)


def chart_radius(n: int, dtype: torch.dtype) -> float:
    """Up to which entries rectangles are orthonormal and go back, with ``n`` rows."""
    eps = working_eps(dtype)
    return min(eps**-0.25 / 8, 2 * (10 / (n**3 * eps)) ** 0.25)


def chart_edge(dtype: torch.dtype) -> float:
    """Beyond which entries are off the chart of rectangles.

    Not the radius: within it, too, rounding makes large entries larger.
    """
    return working_eps(dtype) ** -0.25


def cayley_columns(
    a: Float[Tensor, "*batch k k"], b: Float[Tensor, "*batch m k"]
) -> Float[Tensor, "*batch m+k k"]:
    r"""The first ``k`` columns of the Cayley transform of ``[[A, -B^T], [B, 0]]``.

    .. math:: F = Y^T Y - X, \quad Q_1 = (I - F)(I + F)^{-1}, \quad Q_2 = 2Y(I + F)^{-1}

    with ``X = A/2``, ``Y = B/2``, written with ``G = I + F`` as ``Q_1 = 2 G^{-1} - I``
    and ``Q_2 = B G^{-1}``, and closed by one Newton-Schulz step.

    References:
        Jauch, Hoff and Dunson, *Random orthogonal matrices and the Cayley transform*,
        Bernoulli 26(2), 1560-1586, 2020.
    """
    g = _inverse(_gram(a, b))
    return polished(torch.cat([g + g - identity(g), b @ g], -2))


def polished(q: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
    """One Newton-Schulz step: what is orthonormal in exact arithmetic is so in floats.

    In exact arithmetic the correction is zero wherever ``q`` was computed, and so are
    its derivatives of any order: they are not taken, which halves the gradient's cost.
    """
    p = q.detach()
    return q + scaled(p, 0.5) @ (identity(p) - p.mT @ p)


def cayley_blocks(q: Float[Tensor, "*batch n k"]) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of :func:`cayley_columns`: the skew block and the block below it.

    The third is whether ``q`` is in the chart. Off it ``(I + Q_1)^{-1}`` would be
    infinite; rounding makes it large and symmetric, and the blocks, where that part
    cancels, have any size. In the chart it is ``G / 2``, with symmetric part
    ``(I + B^T B / 4) / 2``.
    """
    k = q.shape[-1]
    g = _inverse(identity(q) + q[..., :k, :])
    a, b = scaled(g.mT - g, 2), scaled(q[..., k:, :], 2) @ g
    y = scaled(b, 0.5)
    gap = g + g.mT - identity(q) - y.mT @ y
    # Twice the largest entry off the chart, and only rounding errors of it inside.
    return a, b, max_abs(gap) <= max_abs(g)


def cayley_log_abs_det(a: Tensor, b: Tensor) -> Float[Tensor, "*batch"]:
    r"""Log volume ratio of :func:`cayley_columns`, ``-(n - 1) log det G``.

    With ``S = G^T`` and ``M`` the inverse of ``I`` plus half the full skew matrix, the
    differential is ``M dA M^T`` in an orthonormal frame, and
    ``M = L diag(S^{-1}, I) L^T`` up to unit triangular factors ``L``: the skew block
    contributes ``det(S)^{-(k-1)}`` and the block below it ``det(S)^{-(n-k)}``.
    """
    n = a.shape[-1] + b.shape[-2]
    lu = torch.linalg.lu_factor_ex(_gram(a, b))[0]
    # det G > 0: its symmetric part is at least the identity.
    log_det = lu.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return scaled(log_det, 1.0 - n)


def chart_signs(q: Float[Tensor, "*batch n k"]) -> Int8[Tensor, "*batch k"]:
    """Signs for which ``I + Q_1 D`` is far from singular.

    Elimination without pivoting on ``Q_1 + D``, where each sign is chosen when its
    pivot is reached: for orthonormal columns no pivot is smaller than one.
    """
    k = q.shape[-1]
    rest = q[..., :k, :]
    signs: list[Tensor] = []
    for _ in range(k):
        pivot = rest[..., :1, :1]
        sign = torch.where(pivot < 0, -1, 1)
        signs.append(sign[..., 0, 0])
        row = rest[..., :1, 1:] / (pivot + sign)
        rest = rest[..., 1:, 1:] - rest[..., 1:, :1] * row
    return torch.stack(signs, -1).to(torch.int8)


def flip(q: Float[Tensor, "*batch n k"], signs: Any) -> Float[Tensor, "*batch n k"]:
    """``Q D``; the signs may be absent."""
    if not isinstance(signs, Tensor):
        return q
    # Not a product: a compiled vmap(jacfwd) refuses traced times untraced tensors.
    return torch.where(signs.unsqueeze(-2) > 0, q, -q)


def check_signs(where: str, signs: Any, shape: torch.Size) -> None:
    """Raise unless the signs are absent or have one entry per column."""
    if isinstance(signs, tuple) and not signs:
        return
    if not isinstance(signs, Tensor):
        got = f"`{type(signs).__name__}`"
    elif signs.shape != shape:
        got = f"shape {tuple(signs.shape)}"
    else:
        return
    raise ConstraintError(
        where,
        f"be a tensor of signs of shape {tuple(shape)}",
        got,
        "Take it from `bind`; under vmap, map over the free value and the static alike.",
    )


def orthonormality_error(y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
    """``max|Y^T Y - I|``, in at least float32."""
    q = working(y)
    return max_abs(q.mT @ q - identity(q))


def orthonormality_tolerance(y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
    """``10 max(n, k) eps``, at most one half so that zero never passes."""
    tolerance = 10 * max(y.shape[-2:]) * torch.finfo(y.dtype).eps
    return torch.full_like(working(y[..., 0, 0]), min(tolerance, 0.5))


def polar_factor(y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
    """``U V^T`` of the singular value decomposition: the nearest orthonormal columns.

    Not unique where ``y`` is rank deficient; NaN where ``y`` is not finite.
    """
    a = working(y)
    u, _, vh = torch.linalg.svd(finite_or_zero(a), full_matrices=False)
    return or_nan(all_finite(a), u @ vh, 2).to(y.dtype)


def haar(
    key: Int[Tensor, ""], shape: Sequence[int], dtype: torch.dtype
) -> Float[Tensor, "*batch n k"]:
    """Uniform orthonormal columns: a QR decomposition of normal numbers.

    With the signs of the diagonal of ``R`` it is unique, hence invariant. Square ones
    have either determinant.
    """
    wide = torch.promote_types(dtype, torch.float32)
    q, r = torch.linalg.qr(normal(key, shape, dtype=wide))
    negative = r.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) < 0
    return torch.where(negative, -q, q).to(dtype)


def _inverse(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The inverse; not finite where ``a`` is singular.

    Not by ``lu_solve``: the derivative of ``inv_ex`` is two products of the inverse
    with itself, also right where it is nested, and three times faster.
    """
    return torch.linalg.inv_ex(a)[0]


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """``G = I + B^T B / 4 - A / 2``."""
    y = scaled(b, 0.5)
    return identity(a) - scaled(a, 0.5) + y.mT @ y
