"""Unitary matrices, stored as real and imaginary parts."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from pureopt import _random
from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import (
    cayley_blocks,
    cayley_columns,
    chart_edge,
    chart_radius,
    flip,
    orthonormality_error,
    orthonormality_tolerance,
)
from pureopt.constraints._domains import VECTOR, Domain
from pureopt.constraints._numeric import (
    finite_or_zero,
    identity,
    max_abs,
    or_nan,
    scaled,
    shape_of,
    working,
)
from pureopt.constraints._skew import pack, unpack
from pureopt.constraints._symmetric import Symmetric

_UNITARY = Domain(
    "real and imaginary parts of a matrix with orthonormal columns (rows, if wide)",
    "(..., n, k, 2)",
    3,
    made_by="Unitary()",
)
_PARTS = 2


class UnitaryStatic(NamedTuple):
    """What :meth:`Unitary.bind` returns.

    Attributes:
        signs: One sign per orthonormal vector.
        shape: An empty tensor that carries the shape of the value through vmap.

    Example:
        >>> import torch
        >>> eye = torch.view_as_real(torch.eye(5, 3, dtype=torch.complex64))
        >>> static = Unitary().bind(eye)
        >>> static.signs.shape, static.shape.shape
        (torch.Size([3]), torch.Size([5, 3, 2, 0]))
    """

    signs: Int8[Tensor, "*batch k"]
    shape: Int8[Tensor, "*batch rows columns 2 0"]


@final
@dataclass(frozen=True)
class Unitary(Constraint):
    r"""Complex matrices with orthonormal columns, or orthonormal rows if they are wide.

    The last dimension holds real and imaginary part: ``torch.view_as_complex(y)`` is
    the matrix. The first ``k`` columns of the Cayley transform of a skew-Hermitian
    matrix, of which only those columns are free, with real signs:

    .. math::
        F = Y^H Y - X, \quad Q = \begin{bmatrix} (I - F)(I + F)^{-1} \\
        2 Y (I + F)^{-1} \end{bmatrix} D, \quad
        x \mapsto 2X = K + iH,\ 2Y

    with ``K`` skew, ``H`` symmetric and ``Y`` complex. ``x`` has ``2 n k - k^2``
    entries, all real: ``K``, ``H``, then the entries of ``2Y`` with their parts side by
    side. At ``x = 0`` the map is an isometry. The signs ``D``, chosen in :meth:`bind` by
    elimination without pivoting, reach every unitary matrix; phases are not needed,
    because a complex pivot plus the sign of its real part is never smaller than one.
    Inside, a complex matrix is the real one of twice the size. Without ``static`` the
    map is the square chart with all signs +1.

    References:
        Helfrich, Willmott and Ye (2018). Jauch, Hoff and Dunson (2020). Ballard, Demmel,
        Grigori, Jacquelin, Knight and Nguyen (2015), the signs.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Unitary
        >>> c = Unitary()
        >>> hadamard = torch.tensor([[1, 1j], [1j, 1]], dtype=torch.complex128) / 2**0.5
        >>> y = torch.view_as_real(hadamard)
        >>> static = c.bind(y)
        >>> x = c.right_inverse(y, static)
        >>> x.shape, bool((c.forward(x, static) - y).abs().max() < 1e-15)
        (torch.Size([4]), True)
        >>> q = torch.view_as_complex(c.forward(x + 1, static))
        >>> bool((q @ q.mH - torch.eye(2)).abs().max() < 1e-15)
        True
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``2 n k - k^2``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Complex matrices with orthonormal columns or rows, in parts."""
        return _UNITARY

    @property
    def rule(self) -> str:
        """The largest deviation from orthonormal columns, or rows."""
        return "max|Y^H Y - I| (Y Y^H if wide)"

    def dim(self, shape: Sequence[int]) -> int:
        """``2 n k - k^2``."""
        _require("Unitary.dim(shape)", torch.empty(tuple(shape), device="meta"))
        n, k = max(shape[-3:-1]), min(shape[-3:-1])
        return 2 * n * k - k * k

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """That of :class:`SignedCayley` for twice the size: 6.7 in float32, then less."""
        return chart_radius(2 * n, dtype)

    def bind(self, y: Float[Tensor, "*batch rows columns 2"]) -> UnitaryStatic:
        """The signs of the chart around ``y``, and its shape."""
        return UnitaryStatic(_signs(_tall("Unitary.bind(y)", y)), shape_of(y))

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch rows columns 2"]:
        """The matrix; see the class."""
        rows, columns, signs = _chart("Unitary.forward", x, static)
        a, b = map(_real, _blocks(working(x), rows, columns))
        q = cayley_columns(a, b)
        square = a.shape[-1]
        blocks = [_complex(q[..., :square, :]), _complex(q[..., square:, :])]
        y = _flip(torch.cat(blocks, -3), signs)
        return (y if rows >= columns else y.transpose(-2, -3)).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch rows columns 2"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is not unitary or not in the chart."""
        q = _tall("Unitary.right_inverse(y)", y)
        k = q.shape[-2]
        signs = _checked_signs("Unitary.right_inverse", static, y)
        q = _flip(q, signs)
        split = torch.cat([_real(q[..., :k, :, :]), _real(q[..., k:, :, :])], -2)
        a, b, inside = cayley_blocks(split)
        skew, hermitian = _complex(a).unbind(-1)
        free = [pack(skew), Symmetric().right_inverse(hermitian)]
        x = torch.cat([*free, _complex(b).flatten(-3)], -1)
        keep = self.check(y) & inside & (max_abs(x, 1) <= chart_edge(y.dtype))
        return or_nan(keep, x, 1).to(y.dtype)

    def rounding(
        self, x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch rows columns 2"]
    ) -> Float[Tensor, "*batch"]:
        """``20 eps sqrt(n) max(1, max|x|)``, for rectangles with the square of ``x``."""
        linear = super().rounding(x, y)
        if y.shape[-3] == y.shape[-2]:
            return linear
        return linear * max_abs(x, 1).to(y.dtype).clamp(min=1)

    def violation(
        self, y: Float[Tensor, "*batch rows columns 2"]
    ) -> Float[Tensor, "*batch"]:
        """The largest deviation from orthonormal columns, or rows, in either part."""
        return orthonormality_error(_real(_tall("Unitary(y)", y)))

    def tolerance(
        self, y: Float[Tensor, "*batch rows columns 2"]
    ) -> Float[Tensor, "*batch"]:
        """``10 max(rows, columns) eps``, at most one half."""
        return orthonormality_tolerance(y[..., 0])

    def project(
        self, y: Float[Tensor, "*batch rows columns 2"]
    ) -> Float[Tensor, "*batch rows columns 2"]:
        """The unitary polar factor of ``y``; not unique where it is rank deficient."""
        _require("Unitary.project(y)", y)
        a = working(y)
        re, im = finite_or_zero(a, 3).unbind(-1)
        u, _, vh = torch.linalg.svd(torch.complex(re, im), full_matrices=False)
        finite = a.isfinite().flatten(-3).all(-1)
        return or_nan(finite, torch.view_as_real(u @ vh), 3).to(y.dtype)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Haar's distribution: polar factors of complex normal matrices."""
        self._require_shape("sample", shape, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        return self.project(_random.normal(key, shape, dtype=wide)).to(dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r""":math:`-2 n \log|\det(I + F)|`, zero at ``x = 0``.

        As for orthogonal matrices, where the congruence acts on half as many numbers.
        """
        rows, columns, _ = _chart("Unitary.log_abs_det", x, static)
        a, b = (_real(block) for block in _blocks(working(x), rows, columns))
        y = scaled(b, 0.5)
        lu = torch.linalg.lu_factor_ex(identity(a) - scaled(a, 0.5) + y.mT @ y)[0]
        # Of the real matrix of twice the size: the square of the complex modulus.
        log_det = lu.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return scaled(log_det, -float(max(rows, columns))).to(x.dtype)


def _real(z: Float[Tensor, "*batch n k 2"]) -> Float[Tensor, "*batch 2*n 2*k"]:
    """The real matrix that multiplies as the complex one: ``[[Re, -Im], [Im, Re]]``."""
    re, im = z.unbind(-1)
    return torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)


def _complex(r: Float[Tensor, "*batch 2*n 2*k"]) -> Float[Tensor, "*batch n k 2"]:
    """The complex matrix nearest to a real one: the inverse of :func:`_real`.

    The two copies of each part differ by what rounding left before the Newton-Schulz
    step; their mean is unitary up to the square of that, one copy only up to that.
    """
    (a, b), (c, d) = (half.tensor_split(2, -1) for half in r.tensor_split(2, -2))
    return scaled(torch.stack([a + d, c - b], -1), 0.5)


def _flip(z: Float[Tensor, "*batch n k 2"], signs: Any) -> Tensor:
    """``Z D``; the signs may be absent."""
    return torch.stack([flip(part, signs) for part in z.unbind(-1)], -1)


def _signs(q: Float[Tensor, "*batch n k 2"]) -> Int8[Tensor, "*batch k"]:
    """Signs for which ``I + Q_1 D`` is far from singular, as for orthogonal matrices."""
    k = q.shape[-2]
    re, im = (part[..., :k, :] for part in q.unbind(-1))
    signs: list[Tensor] = []
    for _ in range(k):
        sign = torch.where(re[..., :1, :1] < 0, -1, 1)
        signs.append(sign[..., 0, 0])
        a, b = re[..., :1, :1] + sign, im[..., :1, :1]
        c, d, size = re[..., :1, 1:], im[..., :1, 1:], a * a + b * b
        # The row over the pivot, (c + id) / (a + ib).
        row, row_im = (c * a + d * b) / size, (d * a - c * b) / size
        left, left_im = re[..., 1:, :1], im[..., 1:, :1]
        re, im = (
            re[..., 1:, 1:] - left * row + left_im * row_im,
            im[..., 1:, 1:] - left * row_im - left_im * row,
        )
    return torch.stack(signs, -1).to(torch.int8)


def _blocks(x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The skew-Hermitian block and the block below it, in parts."""
    n, k = max(rows, columns), min(rows, columns)
    skew, square = k * (k - 1) // 2, k * k
    hermitian = Symmetric().forward(x[..., skew:square])
    a = torch.stack([unpack(x[..., :skew]), hermitian], -1)
    return a, x[..., square:].reshape(*x.shape[:-1], n - k, k, _PARTS)


def _require(where: str, y: Tensor) -> None:
    _UNITARY.require(where, y)
    if y.shape[-1] != _PARTS:
        raise ConstraintError(
            where,
            "have a last dimension of real and imaginary part: (..., n, k, 2)",
            str(tuple(y.shape)),
            "`torch.view_as_real` adds it to a complex matrix.",
        )


def _tall(where: str, y: Tensor) -> Tensor:
    """The value in the working dtype, transposed if it is wide."""
    _require(where, y)
    return working(y if y.shape[-3] >= y.shape[-2] else y.transpose(-2, -3))


def _checked_signs(where: str, static: Any, y: Tensor) -> Any:
    """The signs, checked against the shape of ``y``."""
    if not isinstance(static, UnitaryStatic):
        return _absent(where, static)
    if static.shape.shape[:-1] == y.shape:
        return static.signs
    raise ConstraintError(
        f"{where}(static=...)",
        f"come from a value of shape {tuple(y.shape)}",
        f"one of shape {tuple(static.shape.shape[:-1])}",
        "Take it from `bind`; under vmap, map over the value and the static alike.",
    )


def _absent(where: str, static: Any) -> tuple[()]:
    if isinstance(static, tuple) and not static:
        return ()
    raise ConstraintError(
        f"{where}(static=...)",
        "be a `UnitaryStatic` or `()`",
        f"`{type(static).__name__}`",
        "Take it from `bind`.",
    )


def _chart(where: str, x: Tensor, static: Any) -> tuple[int, int, Any]:
    """The shape of the matrix and the signs, checked against ``x``."""
    VECTOR.require(f"{where}(x)", x)
    if not isinstance(static, UnitaryStatic):
        n = _size(f"{where}(x)", x)
        return n, n, _absent(where, static)
    *batch, rows, columns, _, _ = static.shape.shape
    n, k = max(rows, columns), min(rows, columns)
    shapes = {"x": (x, 2 * n * k - k * k), "static.signs": (static.signs, k)}
    for name, (value, length) in shapes.items():
        if value.shape != (*batch, length):
            raise ConstraintError(
                f"{where}({name})",
                f"have shape {(*batch, length)} for the static of a {rows} by {columns} "
                "matrix",
                str(tuple(value.shape)),
                "Under vmap, map over the free value and the static alike.",
            )
    return rows, columns, static.signs


def _size(where: str, x: Tensor) -> int:
    """The ``n`` of a length ``n^2``."""
    # A number even if the compiler takes sizes as symbols: it cannot trace isqrt.
    length = operator.index(x.shape[-1])
    n = math.isqrt(length)
    if n == 0 or n * n != length:
        raise ConstraintError(
            where,
            "have a last dimension n^2: 1, 4, 9, ...",
            str(tuple(x.shape)),
            "A rectangle needs the static of `bind`.",
        )
    return n
