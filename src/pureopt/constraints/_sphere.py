"""Vectors of one norm, by stereographic projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from pureopt import _random
from pureopt._errors import ConstraintError, HyperparameterError
from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import check_signs
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    max_abs,
    or_nan,
    scaled,
    working,
    working_eps,
)

SPHERE = Domain("a vector of a given norm", "(..., n)", 1, inside=(VECTOR,))


@final
@dataclass(frozen=True)
class Sphere(Constraint):
    r"""Vectors of a given norm, by stereographic projection from one of two poles.

    .. math::
        t = \frac{\|x\|^2}{4 r^2}, \qquad
        y_1 = s r \, \frac{1 - t}{1 + t}, \qquad (y_2, \dots, y_n) = \frac{x}{1 + t}

    with :math:`r` the norm. ``x`` has ``n - 1`` entries. The sign :math:`s` is the static
    data, int8 of shape ``(*batch,)``: :meth:`bind` takes that of :math:`y_1`, so that the
    pole :math:`y_1 = -s r`, the only point without an ``x``, is in the other half and
    :math:`\|x\| \le 2 r`. Without ``static`` :math:`s = 1`. At ``x = 0`` the map is an
    isometry, and everywhere it keeps angles. On the line (``n = 1``) the sphere is
    ``{-r, r}`` and ``x`` is empty.

    Args:
        norm: The norm :math:`r`, a positive number.

    References:
        Lee (2018), chapter 3 (the stereographic projection is conformal).

    Raises:
        HyperparameterError: If ``norm`` is not positive and finite.

    Example:
        >>> import torch
        >>> pole = torch.tensor([-1.0, 0.0, 0.0])
        >>> s = Sphere().bind(pole)
        >>> Sphere().right_inverse(pole), Sphere().right_inverse(pole, s)
        (tensor([nan, nan]), tensor([0., 0.]))
        >>> y = Sphere(norm=2.0).forward(torch.tensor([1.0, 5.0]))
        >>> y.shape, round(float(y.norm()), 4)
        (torch.Size([3]), 2.0)
    """

    norm: float = 1.0

    def __post_init__(self) -> None:
        check_norm("Sphere(norm=...)", self.norm)

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n - 1``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Vectors of a given norm."""
        return SPHERE

    @property
    def rule(self) -> str:
        """The relative deviation of the norm."""
        return f"| |Y| / {self.norm:g} - 1 |"

    def dim(self, shape: Sequence[int]) -> int:
        """``n - 1``."""
        self._require_shape("dim", shape)
        require_entries("Sphere.dim(shape)", shape)
        return shape[-1] - 1

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """Where the square of the norm overflows; beyond, ``y`` is the pole."""
        return self.norm * math.sqrt(torch.finfo(dtype).max / n)

    def bind(self, y: Float[Tensor, "*batch n"]) -> Int8[Tensor, "*batch"]:
        """The sign of the first entry."""
        self._require("bind", y)
        return half(y)

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n"]:
        """The vector; see the class."""
        VECTOR.require("Sphere.forward(x)", x)
        check_signs("Sphere.forward(static=...)", static, x.shape[:-1])
        return onto_sphere(working(x), static, self.norm).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN off the sphere and at the pole."""
        self._require("right_inverse", y)
        check_signs("Sphere.right_inverse(static=...)", static, y.shape[:-1])
        x = from_sphere(working(y), static, self.norm)
        return or_nan(self.check(y) & all_finite(x, 1), x, 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """The relative deviation of the norm."""
        self._require("violation", y)
        return norm_error(y, self.norm)

    def tolerance(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """``4 eps + 10 sqrt(n) eps'``, see :func:`sum_tolerance`."""
        return sum_tolerance(y)

    def rounding(self, x: Any, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Twice the tolerance, times the norm."""
        del x
        return scaled(sum_tolerance(y), 2 * self.norm)

    def project(self, y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """``y`` scaled to the norm; zero goes to the first basis vector.

        Every point of the sphere is a nearest one of zero.
        """
        self._require("project", y)
        return scaled(direction(y), self.norm).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n"]:
        """Uniform on the sphere."""
        self._require_shape("sample", shape, dtype)
        require_entries("Sphere.sample(shape=...)", shape)
        wide = torch.promote_types(dtype, torch.float32)
        return self.project(_random.normal(key, shape, dtype=wide)).to(dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`-(n - 1) \log(1 + t)`."""
        VECTOR.require("Sphere.log_abs_det(x)", x)
        check_signs("Sphere.log_abs_det(static=...)", static, x.shape[:-1])
        return sphere_log_abs_det(working(x), self.norm).to(x.dtype)

    def _require(self, method: str, y: Tensor) -> None:
        SPHERE.require(f"Sphere.{method}(y)", y)
        require_entries(f"Sphere.{method}(y)", y.shape)


def onto_sphere(
    x: Float[Tensor, "*batch d"], signs: Any, norm: float
) -> Float[Tensor, "*batch n"]:
    """Stereographic projection of a vector onto the sphere."""
    u = scaled(x, 1 / norm)
    w = 1 + scaled((u * u).sum(-1, keepdim=True), 0.25)
    # (1 - t) / (1 + t), written so that an overflow of t gives the pole.
    first = torch.ones_like(w) / w
    first = first + first - 1
    return scaled(torch.cat([_signed(first, signs), u / w], -1), norm)


def from_sphere(
    y: Float[Tensor, "*batch n"], signs: Any, norm: float
) -> Float[Tensor, "*batch d"]:
    """Inverse of :func:`onto_sphere`: ``2 y' / (1 + s y_1)`` for the unit sphere."""
    u = scaled(y, 1 / norm)
    first, rest = _signed(u[..., :1], signs), u[..., 1:]
    # Next to the pole 1 + s y_1 cancels; it is |y'|^2 / (1 - s y_1).
    near = first >= 0
    safe = torch.where(near, torch.ones_like(first), 1 - first)
    square = (rest * rest).sum(-1, keepdim=True)
    return scaled(rest, 2 * norm) / torch.where(near, 1 + first, square / safe)


def sphere_log_abs_det(
    x: Float[Tensor, "*batch d"], norm: float
) -> Float[Tensor, "*batch"]:
    """The logarithm of the conformal factor, times the dimension."""
    u = scaled(x, 0.5 / norm)
    return scaled((u * u).sum(-1).log1p(), -x.shape[-1])


def half(y: Float[Tensor, "*batch n"]) -> Int8[Tensor, "*batch"]:
    """The sign of the first entry, +1 if that is zero or NaN."""
    return 1 - 2 * (y[..., 0] < 0).to(torch.int8)


def direction(y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """``y / |y|`` in at least float32; the first basis vector for zero."""
    v = finite_or_zero(working(y), 1)
    largest = max_abs(v, 1).unsqueeze(-1)
    zero = largest == 0
    first = torch.arange(y.shape[-1], device=y.device) == 0
    # By the largest entry first, so that the squares neither overflow nor vanish.
    v = v / torch.where(zero, torch.ones_like(largest), largest)
    v = torch.where(zero, first.to(v.dtype), v)
    return or_nan(all_finite(y, 1), v / length(v).unsqueeze(-1), 1)


def length(y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """The Euclidean norm; no derivative at zero."""
    return (y * y).sum(-1).sqrt()


def norm_error(y: Float[Tensor, "*batch n"], norm: float) -> Float[Tensor, "*batch"]:
    """``| |y| / norm - 1 |``, in at least float32."""
    return (length(scaled(working(y), 1 / norm)) - 1).abs()


def sum_tolerance(y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """``4 eps + 10 sqrt(n) eps'``, at most one half so that zero is no unit vector.

    The first term is the storage of the entries in the leaf's dtype, each to its own
    digits; the second the rounding of ``n`` terms, at random, in at least float32.
    """
    tolerance = 4 * torch.finfo(y.dtype).eps
    tolerance += 10 * math.sqrt(y.shape[-1]) * working_eps(y.dtype)
    return torch.full_like(working(y).sum(-1), min(tolerance, 0.5))


def check_norm(where: str, norm: float) -> None:
    """Raise unless the norm is a positive number.

    Raises:
        HyperparameterError: Says what it was.
    """
    if isinstance(norm, bool) or not isinstance(norm, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise HyperparameterError(where, "be a number", f"`{type(norm).__name__}`")
    if not 0 < norm < math.inf:
        raise HyperparameterError(where, "be positive and finite", repr(norm))


def require_entries(where: str, shape: Sequence[int]) -> None:
    """Raise unless a vector of that shape has an entry.

    Raises:
        ConstraintError: Says the shape.
    """
    if not shape or shape[-1] == 0:
        raise ConstraintError(where, "have at least one entry", str(tuple(shape)))


def _signed(x: Float[Tensor, "*batch 1"], signs: Any) -> Float[Tensor, "*batch 1"]:
    """``s x``; the sign may be absent."""
    if not isinstance(signs, Tensor):
        return x
    # Not a product: a compiled vmap(jacfwd) refuses traced times untraced tensors.
    return torch.where(signs.unsqueeze(-1) > 0, x, -x)
