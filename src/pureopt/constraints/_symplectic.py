"""Symplectic matrices: the linear maps that Hamiltonian dynamics makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import INVERTIBLE, VECTOR, Domain
from pureopt.constraints._numeric import (
    identity,
    inverse,
    max_abs,
    or_nan,
    scaled,
    solve,
    working,
)
from pureopt.constraints._symmetric import Symmetric

_SYMPLECTIC = Domain(
    "a symplectic matrix, of even size",
    "(..., 2 m, 2 m)",
    2,
    square=True,
    made_by="Symplectic()",
    inside=(INVERTIBLE,),
)
_SQRT_HALF = 0.5**0.5


@final
@dataclass(frozen=True)
class Symplectic(Constraint):
    r"""Symplectic matrices, :math:`Y^T J Y = J`, by the Cayley transform from a base.

    .. math::
        Y = B (I - A/2)^{-1} (I + A/2), \quad A = J S, \quad
        J = \begin{bmatrix} 0 & I \\ -I & 0 \end{bmatrix}, \quad
        x \mapsto S \text{ symmetric}

    ``x`` has ``n (n + 1) / 2`` entries for an ``n`` by ``n`` matrix, ``n`` even, packed
    as in :class:`Symmetric`. The static data is the base ``B``, itself a symplectic
    matrix: :meth:`bind` returns its argument, whose free value is zero, so every
    symplectic matrix has a chart, however ill conditioned. Without ``static`` it is the
    identity, and there the map is an isometry at ``x = 0``. One Newton step for
    ``C^T J C = J`` closes the map.

    The set is not bounded, and the chart ends: the map is undefined where ``A`` has an
    eigenvalue 2, which no ``x`` inside :meth:`radius` has, and ``Y`` is off the chart
    where :math:`B^{-1} Y` has an eigenvalue -1. To go farther, move the base with
    :meth:`rebind`. Accuracy is relative to :math:`|Y|^2`, which is the condition number:
    where ``10 n eps |Y|^2`` passes one half, rounding may make ``Y`` singular, and
    :meth:`check` is False unless the entries happen to be exact.

    References:
        Hairer, Lubich and Wanner (2006), section IV.8 (the Cayley transform of quadratic
        Lie groups).

    Example:
        >>> import torch
        >>> from pureopt.constraints import Symplectic
        >>> c = Symplectic()
        >>> squeeze = torch.diag(torch.tensor([1e3, 2.0, 1e-3, 0.5]))
        >>> base = c.bind(squeeze)
        >>> c.right_inverse(squeeze, base).count_nonzero()
        tensor(0)
        >>> y = c.forward(torch.full((10,), 0.1), base)
        >>> bool(c.check(y)), round(float(torch.linalg.det(y.double())), 3)
        (True, 1.0)
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``n (n + 1) / 2``, ``n`` even."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Symplectic matrices."""
        return _SYMPLECTIC

    @property
    def rule(self) -> str:
        """The largest deviation from the symplectic form."""
        return "max|Y^T J Y - J|"

    def dim(self, shape: Sequence[int]) -> int:
        """``n (n + 1) / 2``."""
        _require("Symplectic.dim(shape)", torch.empty(tuple(shape), device="meta"))
        return shape[-1] * (shape[-1] + 1) // 2

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """``1.5 / (1 + (n - 1) / sqrt(2))``: no singular value of ``A/2`` above 3/4."""
        del dtype
        return 1.5 / (1 + (n - 1) * _SQRT_HALF)

    def bind(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
        """The base of the chart around ``y``: a copy of ``y``."""
        _require("Symplectic.bind(y)", y)
        return y.clone()

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch n n"]:
        """The symplectic matrix; see the class."""
        VECTOR.require("Symplectic.forward(x)", x)
        s = Symmetric().forward(working(x))
        if s.shape[-1] % 2:
            raise ConstraintError(
                "Symplectic.forward(x)",
                "have a last dimension n (n + 1) / 2 with n even: 3, 10, 21, ...",
                str(tuple(x.shape)),
                "`right_inverse` of an n by n matrix gives the right one.",
            )
        base = _base("Symplectic.forward", static, s)
        return _from_base(base, _cayley(s)).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n n"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not symplectic or not in the chart."""
        _require("Symplectic.right_inverse(y)", y)
        z = working(y)
        base = _base("Symplectic.right_inverse", static, z)
        eye = identity(z)
        # As a difference from the base, so that the base itself is exactly zero.
        step = z - eye if base is None else _dual(base) @ (z - base)
        a = scaled(solve(eye + eye + step, step), 2)
        s = _rotated(a)
        s = scaled(s + s.mT, -0.5)
        # Off the chart `a` is what rounding leaves of infinity, and leads elsewhere.
        error = max_abs(_from_base(base, _cayley(s)) - z)
        size = max_abs(z)
        limit = torch.minimum(self.rounding(s, z.to(y.dtype)), scaled(size, 0.5))
        keep = self.check(y) & (error <= limit)
        return or_nan(keep, Symmetric().right_inverse(s), 1).to(y.dtype)

    def violation(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """The largest deviation from the symplectic form."""
        _require("Symplectic(y)", y)
        z = working(y)
        return max_abs(_dual(z) @ z - identity(z))

    def tolerance(self, y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
        """``10 n eps max(1, max|y|)^2``, at most one half so that zero never passes."""
        size = max_abs(working(y)).clamp(min=1)
        share = 10 * y.shape[-1] * torch.finfo(y.dtype).eps
        return scaled(size * size, share).clamp(max=0.5)

    def rounding(self, x: Any, y: Tensor) -> Float[Tensor, "*batch"]:
        """``20 eps sqrt(n) max(1, max|y|)^3``: its size times the condition number."""
        del x
        size = max_abs(working(y)).clamp(min=1)
        share = 20 * y.shape[-1] ** 0.5 * torch.finfo(y.dtype).eps
        return scaled(size * size * size, share)


def _cayley(s: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The Cayley transform of ``J S``, closed by a Newton step."""
    eye = identity(s)
    g = inverse(eye - scaled(_rotated(s), 0.5))
    c = g + g - eye
    return c + scaled(c, 0.5) @ (eye - _dual(c) @ c)


def _from_base(base: Tensor | None, c: Tensor) -> Float[Tensor, "*batch n n"]:
    """``B C``."""
    # A compiled vmap(jacfwd) takes an untraced factor on the right only.
    return c if base is None else (c.mT @ base.mT).mT


def _rotated(s: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``J S``; twice is minus ``S``."""
    m = s.shape[-1] // 2
    return torch.cat([s[..., m:, :], -s[..., :m, :]], -2)


def _dual(y: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``J^T Y^T J``: the inverse of a symplectic matrix."""
    return _rotated(_rotated(y.mT).mT).mT


def _require(where: str, y: Tensor) -> None:
    _SYMPLECTIC.require(where, y)
    if y.shape[-1] % 2:
        raise ConstraintError(
            where, "have a shape (..., 2 m, 2 m), an even size", str(tuple(y.shape))
        )


def _base(where: str, static: Any, like: Tensor) -> Tensor | None:
    """The base in the dtype of ``like``, checked; None is the identity."""
    if isinstance(static, tuple) and not static:
        return None
    if not isinstance(static, Tensor):
        got = f"`{type(static).__name__}`"
    elif static.shape != like.shape:
        got = f"shape {tuple(static.shape)}"
    else:
        return static.to(like.dtype)
    raise ConstraintError(
        f"{where}(static=...)",
        f"be a symplectic base of shape {tuple(like.shape)}",
        got,
        "Take it from `bind`; under vmap, map over the free value and the static alike.",
    )
