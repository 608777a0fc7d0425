"""Matrices of a given spectral norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt import _random
from pureopt._errors import HyperparameterError
from pureopt._typing import Scalar
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import MATRIX, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    or_nan,
    over_event,
    scaled,
    working,
)

SPECTRAL_SPHERE = Domain(
    "a matrix of a given spectral norm", "(..., n, k)", 2, inside=(MATRIX,)
)


@final
@dataclass(frozen=True, eq=False)
class SpectralNorm(Constraint):
    r"""Matrices whose largest singular value is ``norm``.

    .. math:: Y = c \, \frac{X}{\sigma_1(X)}

    ``x`` is a matrix. The map is redundant by its scale; at ``x = 0``, where it has no
    limit, ``Y`` is ``norm`` in the first entry and zero elsewhere. The right inverse is a
    copy. :math:`\sigma_1` is exact, by a singular value decomposition,
    ``O(n k min(n, k))``; for large matrices see :class:`PowerSpectralNorm`. Where the
    largest singular value is repeated the map has no second derivative (NaN), and the
    first one is that of one of them.

    Args:
        norm: The spectral norm :math:`c`, a positive number or a 0-d tensor.

    References:
        Miyato, Kataoka, Koyama and Yoshida (2018), equation 8.

    Raises:
        HyperparameterError: If ``norm`` is not positive and finite, or a tensor that is
            not 0-d and floating.

    Example:
        >>> import torch
        >>> w = torch.tensor([[3.0, 0.0], [0.0, -5.0]])
        >>> SpectralNorm(norm=2.0).forward(w)
        tensor([[ 1.2000,  0.0000],
                [ 0.0000, -2.0000]])
        >>> SpectralNorm().right_inverse(w).isnan().all()
        tensor(True)
    """

    norm: Scalar = 1.0

    def __post_init__(self) -> None:
        check_positive("SpectralNorm(norm=...)", self.norm)

    @property
    def domain(self) -> Domain:
        """Matrices."""
        return MATRIX

    @property
    def codomain(self) -> Domain:
        """Matrices of a given spectral norm."""
        return SPECTRAL_SPHERE

    @property
    def bijective(self) -> bool:
        """False: the scale of ``x`` does not matter."""
        return False

    @property
    def rule(self) -> str:
        """The deviation of the largest singular value."""
        return "|sigma_1(Y) - norm|"

    def dim(self, shape: Sequence[int]) -> int:
        """``n k - 1``."""
        self._require_shape("dim", shape)
        return shape[-2] * shape[-1] - 1

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow."""
        del n
        return torch.finfo(dtype).max

    def forward(
        self, x: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """The rescaled matrix; see the class."""
        del static
        MATRIX.require("SpectralNorm.forward(x)", x)
        w = unit_entries(working(x))
        sigma = largest_singular_value(w)
        return with_norm(w, sigma, self.norm).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """``y`` itself; NaN where its spectral norm is another."""
        del static
        return or_nan(self.check(y), y, 2)

    def violation(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """The deviation of the largest singular value."""
        SPECTRAL_SPHERE.require("SpectralNorm(y)", y)
        sigma = largest_singular_value(working(y))
        return (sigma - constant(self.norm, sigma)).abs()

    def tolerance(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """``10 max(n, k) eps`` times the norm, at most half of it."""
        return singular_value_tolerance(y, self.norm)

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n k"]
    ) -> Float[Tensor, "*batch"]:
        """That of any constraint, and what :meth:`check` tolerates and forward mends."""
        return super().rounding(x, y) + self.violation(y).to(y.dtype)

    def project(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
        """Singular values cut at the norm; if all are smaller, the largest is raised.

        Not unique where all are smaller and the largest is repeated.
        """
        SPECTRAL_SPHERE.require("SpectralNorm.project(y)", y)
        u, s, vh = singular_vectors(working(y))
        first = torch.arange(s.shape[-1], device=s.device) == 0
        norm = constant(self.norm, s)
        s = torch.where(first, norm, torch.minimum(s, norm))
        return or_nan(all_finite(y), (u * s.unsqueeze(-2)) @ vh, 2).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n k"]:
        """Uniform on the surface of the spectral-norm ball.

        A uniform point of the ball, moved out along its ray: the faces of the ball
        have one distance from the origin, so that this covers them evenly.
        """
        self._require_shape("sample", shape, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        ball = uniform_contraction(key, shape, dtype=wide)
        return self.forward(ball).to(dtype)


def largest_singular_value(
    a: Float[Tensor, "*batch n k"],
) -> Float[Tensor, "*batch"]:
    """``sigma_1``; NaN where ``a`` is not finite."""
    sigma = torch.linalg.svdvals(finite_or_zero(a))[..., 0]
    return or_nan(all_finite(a), sigma, 0)


def singular_vectors(
    a: Float[Tensor, "*batch n k"],
) -> tuple[Tensor, Tensor, Tensor]:
    """The thin singular value decomposition; that of zero where ``a`` is not finite."""
    u, s, vh = torch.linalg.svd(finite_or_zero(a), full_matrices=False)
    return u, s, vh


def unit_entries(a: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
    """``a`` over its largest modulus, so that its norms do not overflow; 0 for zero."""
    top = a.abs().amax((-2, -1), keepdim=True)
    return a / torch.where(top == 0, torch.ones_like(top), top)


def with_norm(
    w: Float[Tensor, "*batch n k"], sigma: Float[Tensor, "*batch"], norm: Scalar
) -> Float[Tensor, "*batch n k"]:
    """``norm w / sigma``; for zero ``norm`` in the first entry; NaN off the map."""
    c = constant(norm, sigma)
    defined = sigma > 0
    safe = torch.where(defined, sigma, torch.ones_like(sigma))
    # A quotient first: a compiled vmap(jacfwd) refuses traced times untraced tensors.
    y = or_nan(defined, w * over_event(c / safe, 2), 2)
    row, column = (torch.arange(size, device=w.device) for size in w.shape[-2:])
    first = torch.where((row[:, None] + column) == 0, over_event(c, 2), 0)
    zero = over_event((w == 0).all(-1).all(-1), 2)
    return torch.where(zero, first, y)


def singular_value_tolerance(
    y: Float[Tensor, "*batch n k"], scale: Scalar
) -> Float[Tensor, "*batch"]:
    """``10 max(n, k) eps`` times the scale, at most half of it: zero never passes."""
    entry = working(y[..., 0, 0])
    relative = min(10 * max(y.shape[-2:]) * torch.finfo(y.dtype).eps, 0.5)
    return scaled(torch.zeros_like(entry) + constant(scale, entry), relative)


def uniform_contraction(
    key: Int[Tensor, ""], shape: Sequence[int], *, dtype: torch.dtype
) -> Float[Tensor, "*batch n k"]:
    """Matrices drawn uniformly from those with ``sigma_1 <= 1``.

    A block of a random orthogonal matrix of size ``N`` has a density proportional to
    ``det(I - Y^T Y)^((N - n - k - 1) / 2)``: constant for ``N = n + k + 1``.

    References:
        Khatri (1970), equation 2.4 (the density of a block).
    """
    *batch, n, k = shape
    normal = _random.normal(key, (*batch, n + k + 1, min(n, k)), dtype=dtype)
    q, r = torch.linalg.qr(normal)
    # Uniform on the Stiefel manifold only with the signs of a unique decomposition.
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(dtype)
    block = (q * sign.unsqueeze(-2))[..., : max(n, k), :]
    return block if n >= k else block.mT


def constant(value: Scalar, like: Tensor) -> Tensor:
    """A number or 0-d tensor in the dtype of ``like``."""
    if isinstance(value, Tensor):
        return value.to(like)
    return torch.full_like(like, value)


def check_positive(where: str, value: Scalar, low: float = 0.0) -> None:
    """Raise unless the value is a finite number above ``low``, or a 0-d float tensor.

    Numbers in tensors are not read: that would wait for the device.

    Raises:
        HyperparameterError: Says what it was.
    """
    if isinstance(value, Tensor):
        if value.dim() or not value.is_floating_point():
            raise HyperparameterError(
                where,
                "be a 0-d floating-point tensor",
                f"shape {tuple(value.shape)}, dtype {value.dtype}",
                "Sweep many values with `torch.func.vmap`." if value.dim() else "",
            )
    elif isinstance(value, bool) or not isinstance(value, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise HyperparameterError(
            where, "be a number or a 0-d tensor", f"`{type(value).__name__}`"
        )
    elif not low < value < math.inf:
        rule = f"greater than {low:g}" if low else "positive"
        raise HyperparameterError(where, f"be {rule} and finite", repr(value))
