"""The matrix exponential: skew-symmetric matrices to rotations, around any point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pureopt._errors import ConstraintError, told
from pureopt.constraints._cayley import (
    chart_signs,
    polished,
)
from pureopt.constraints._householder import reflectors, ut_transform
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    identity,
    matrix_exp,
    max_abs,
    or_nan,
    over_event,
    scaled,
    working_eps,
)
from pureopt.constraints._orthogonal_map import OrthogonalMap
from pureopt.constraints._rotation_log import rotation_logarithm


@final
@dataclass(frozen=True)
class Exponential(OrthogonalMap):
    r"""The matrix exponential around the bound point, a dynamic trivialization.

    .. math::
        Q = P \exp\!\begin{bmatrix} 0 & -B^T \\ B & 0 \end{bmatrix}
        \begin{bmatrix} \exp A \\ 0 \end{bmatrix} D
        = P \begin{bmatrix} \cos K^{1/2} \\ B \, K^{-1/2} \sin K^{1/2} \end{bmatrix}
        \exp(A) \, D, \qquad K = B^T B

    where ``P``, an orthogonal matrix in Householder form, takes ``x = 0`` to the bound
    point. For square matrices it is ``exp(A)``, along ``B`` alone a geodesic of
    subspaces. As a product of the two it has a right inverse everywhere but at a half
    turn, where a geodesic of the whole would have none in closed form. Periodic, hence
    not one-to-one: :meth:`blocks` gives angles below pi.

    References:
        Lezcano-Casado (2019), dynamic trivializations. Edelman, Arias and
        Smith (1998), theorem 2.3 (geodesics of subspaces).

    Example:
        >>> import torch
        >>> from pureopt.constraints import Orthogonal
        >>> c, y = Orthogonal(Exponential()), torch.eye(3).flip(0)
        >>> c.right_inverse(y, c.bind(y)).abs().max() < 1e-6
        tensor(True)
    """

    @property
    def bijective(self) -> bool:
        """Not: angles are determined up to full turns."""
        return False

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``2 (10 / (n^3 eps))^(1/4)``, with the eps of at least float32.

        The squares of the angles are off by eps times the largest, which is at most
        ``(n max|x| / 2)^2``; the Newton-Schulz step squares the error. The round trip
        holds where no angle is close to an odd multiple of pi, and is NaN there.
        """
        return 2 * (10 / (n**3 * working_eps(dtype))) ** 0.25

    def bind(self, q: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
        """The reflections whose product starts with ``-Q``."""
        return reflectors(q)[0]

    def require(self, where: str, base: Any, shape: torch.Size) -> None:
        """Raise unless the base is absent or has the shape of the matrix."""
        check_base(where, base, shape)

    def columns(self, a: Tensor, b: Tensor, base: Any) -> Float[Tensor, "*batch n k"]:
        """The product of the two exponentials, moved to the base."""
        return reflect(exponential_columns(a, b), base)

    def blocks(
        self, q: Float[Tensor, "*batch n k"], base: Any
    ) -> tuple[Tensor, Tensor, Bool[Tensor, "*batch"]]:
        """The principal logarithms; off the chart close to angles of pi."""
        return exponential_blocks(unreflect(q, base))

    def log_abs_det(self, a: Tensor, b: Tensor) -> Float[Tensor, "*batch"]:
        r""":math:`\sum \log |\sin(\phi) / \phi|` over the roots of the two symmetric spaces."""
        return rotations_log_abs_det(a) + subspaces_log_abs_det(b)


def exponential_columns(
    a: Float[Tensor, "*batch k k"], b: Float[Tensor, "*batch m k"]
) -> Float[Tensor, "*batch m+k k"]:
    r"""The columns of :class:`Exponential` around the identity, closed by a polish.

    For tall matrices from an exponential of size ``2 k``: the solution of
    :math:`U'' = -K U` is :math:`\cos(K^{1/2} t)`, and its integral is what ``B``
    multiplies.
    """
    finite = all_finite(a) & all_finite(b)
    a, b = finite_or_zero(a), finite_or_zero(b)
    turn = matrix_exp(a)
    if b.shape[-2]:
        turn = _geodesic(b) @ turn
    return or_nan(finite, polished(turn), 2)


def exponential_blocks(
    q: Float[Tensor, "*batch n k"],
) -> tuple[Tensor, Tensor, Bool[Tensor, "*batch"]]:
    r"""The inverse of :func:`exponential_columns`, with angles below pi.

    In the chart is what they take back to ``q``: half turns, and what is so close to
    them that the digits are lost, they do not.
    """
    k = q.shape[-1]
    a, b = _logarithms(q) if q.shape[-2] > k else (rotation_logarithm(q), q[..., k:, :])
    gap = max_abs(exponential_columns(a, b) - q)
    reach = max_abs(torch.cat([a, b], -2)).clamp(min=1)
    slack = scaled(reach, 20 * math.sqrt(q.shape[-2]) * torch.finfo(q.dtype).eps)
    # No better than `q` is orthonormal.
    return a, b, gap <= slack + max_abs(q.mT @ q - identity(q))


def _logarithms(q: Float[Tensor, "*batch n k"]) -> tuple[Tensor, Tensor]:
    r"""The skew block, and the block below it.

    Of :math:`Q_1 = U C V^T` the turn is ``exp(A) = U V^T``. It must be a rotation: if it
    is not, the smallest cosine is negative, and that angle above a quarter turn.
    """
    k = q.shape[-1]
    top, below = q[..., :k, :], q[..., k:, :]
    u, c, vh = torch.linalg.svd(finite_or_zero(top))
    mirrored = (chart_signs(u @ vh).prod(-1) < 0)[..., None]
    last = torch.arange(k, device=q.device) == k - 1
    turned = mirrored & last
    c = torch.where(turned, -c, c)
    u = torch.where(turned[..., None, :], -u, u)
    w = below @ vh.mT
    s2 = w.square().sum(-2)
    moved = s2 > 0
    s = torch.where(moved, s2, torch.ones_like(s2)).sqrt()
    angle = torch.where(moved, torch.atan2(s, c) / s, torch.ones_like(s))
    return rotation_logarithm(u @ vh), (w * angle[..., None, :]) @ u.mT


def rotations_log_abs_det(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    r"""Of ``exp`` on skew matrices: eigenvalues of ``ad`` are sums of two of theirs."""
    # The real form of the Hermitian matrix i A has each eigenvalue twice.
    real = torch.cat(
        [
            torch.cat([torch.zeros_like(a), a.mT], -1),
            torch.cat([a, torch.zeros_like(a)], -1),
        ],
        -2,
    )
    angle = torch.linalg.eigvalsh(finite_or_zero(real))[..., ::2]
    i, j = torch.triu_indices(a.shape[-1], a.shape[-1], 1, device=a.device)
    total = _log_sinc(scaled(angle[..., i] + angle[..., j], 0.5)).sum(-1)
    return or_nan(all_finite(a), total, 0)


def subspaces_log_abs_det(b: Float[Tensor, "*batch m k"]) -> Float[Tensor, "*batch"]:
    r"""Of the geodesics of subspaces: roots :math:`\theta_i \pm \theta_j`, :math:`\theta_i`.

    References:
        Helgason (1978), chapter X, table VI (their multiplicities).
    """
    m, k = b.shape[-2:]
    if m == 0:
        return torch.zeros_like(b.flatten(-2).sum(-1))
    angle = torch.linalg.svdvals(finite_or_zero(b))
    i, j = torch.triu_indices(min(m, k), min(m, k), 1, device=b.device)
    x, y = angle[..., i], angle[..., j]
    pairs = (_log_sinc(x + y) + _log_sinc(x - y)).sum(-1)
    total = pairs + scaled(_log_sinc(angle).sum(-1), float(abs(m - k)))
    return or_nan(all_finite(b), total, 0)


def reflect(q: Float[Tensor, "*batch n k"], base: Any) -> Float[Tensor, "*batch n k"]:
    r"""``P Q`` with :math:`P = H_1 \cdots H_k \operatorname{diag}(-I, I)`.

    Its first ``k`` columns are the point that the reflections are of; ``I`` at ``I``.
    """
    if not isinstance(base, Tensor):
        return q.clone()
    w, t_inverse = _ut_transform(base, q)
    q = _negated_top(q)
    part = torch.linalg.solve_triangular(t_inverse, w.mT @ q, upper=True)
    return q - w @ part


def unreflect(q: Float[Tensor, "*batch n k"], base: Any) -> Float[Tensor, "*batch n k"]:
    """``P^T Q``: undoes :func:`reflect`."""
    if not isinstance(base, Tensor):
        return q.clone()
    w, t_inverse = _ut_transform(base, q)
    part = torch.linalg.solve_triangular(t_inverse.mT, w.mT @ q, upper=False)
    return _negated_top(q - w @ part)


def check_base(where: str, base: Any, shape: torch.Size) -> None:
    """Raise unless the base is absent or a tensor of the shape."""
    if isinstance(base, tuple) and not base:
        return
    if not isinstance(base, Tensor) or base.shape != shape:
        raise ConstraintError(
            where,
            f"have a base point of shape {tuple(shape)}",
            told(base),
            "Take it from `bind`; under vmap, map over the free value and the static "
            "alike.",
        )


def _ut_transform(base: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    w, t_inverse = ut_transform(base.to(q.dtype))
    # A compiled vmap(jacfwd) refuses products of traced and untraced matrices; what
    # comes out of `where` is traced.
    return torch.where(q.isnan(), q, w), t_inverse


def _negated_top(q: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
    k = q.shape[-1]
    return torch.cat([-q[..., :k, :], q[..., k:, :]], -2)


def _geodesic(b: Tensor) -> Tensor:
    """The cosine, and ``B`` times the sine over the square root; see above."""
    m, k = b.shape[-2:]
    zero = torch.zeros_like(b.mT @ b)
    if m <= k:
        corner = b.new_zeros(*b.shape[:-2], m, m)
        rows = torch.cat([zero, -b.mT], -1), torch.cat([b, corner], -1)
        return matrix_exp(torch.cat(rows, -2))[..., :k]
    gram = b.mT @ b
    eye = torch.eye(k, dtype=b.dtype, device=b.device).expand_as(gram)
    # Balanced by the mean square of the angles, or the exponential of this matrix, which
    # is far from normal, would lose as many digits as they have.
    size = scaled(b.square().sum((-2, -1)), 1 / k)
    size = over_event(size.clamp(min=1).rsqrt(), 2)
    # Divided, because a compiled vmap(jacfwd) refuses traced times untraced tensors.
    rows = torch.cat([zero, -(gram * size)], -1), torch.cat([eye / size, zero], -1)
    whole = matrix_exp(torch.cat(rows, -2))[..., :k]
    return torch.cat([whole[..., :k, :], b @ (whole[..., k:, :] * size)], -2)


def _log_sinc(x: Tensor) -> Tensor:
    """``log |sin(x) / x|``."""
    return torch.sinc(scaled(x, 1 / math.pi)).abs().log()
