"""Subspaces: points of the Grassmann manifold, as orthonormal bases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor
from torch.nn import functional as F

from pureopt import _random
from pureopt._errors import ConstraintError
from pureopt.constraints._base import Constraint
from pureopt.constraints._cayley import (
    cayley_blocks,
    cayley_columns,
    chart_edge,
    chart_radius,
    orthonormality_error,
    orthonormality_tolerance,
    polar_factor,
    polished,
)
from pureopt.constraints._domains import SEMI_ORTHOGONAL, VECTOR, Domain
from pureopt.constraints._numeric import (
    finite_or_zero,
    max_abs,
    or_nan,
    scaled,
    shape_of,
    tall,
    working,
)


class GrassmannStatic(NamedTuple):
    """What :meth:`Grassmann.bind` returns.

    Attributes:
        frame: The orthogonal matrix that turns the basis of the chart into this one.
        shape: An empty tensor that carries the shape of the basis through vmap.

    Example:
        >>> import torch
        >>> static = Grassmann().bind(torch.eye(5, 2).flip(1))
        >>> static.frame
        tensor([[0., 1.],
                [1., 0.]])
    """

    frame: Float[Tensor, "*batch k k"]
    shape: Int8[Tensor, "*batch rows columns 0"]


@final
@dataclass(frozen=True)
class Grassmann(Constraint):
    r"""Subspaces of dimension ``k``, each as an orthonormal basis of ``k`` columns.

    A wide matrix holds the basis in its rows. The columns of a Cayley transform whose
    skew block is zero, times an orthogonal ``R`` that keeps the basis which was bound:

    .. math::
        F = Y^T Y, \quad Q = \begin{bmatrix} (I - F)(I + F)^{-1} \\
        2 Y (I + F)^{-1} \end{bmatrix} R, \quad x \mapsto 2Y\ ((n - k) \times k)

    ``x`` has ``k (n - k)`` entries. ``R`` is the polar factor of the upper ``k`` rows of
    the basis, so a bound ``Y`` has singular values of at most one, the tangents of half
    the angles between the subspace and that of the first ``k`` unit vectors: every
    subspace lies well inside the chart around it. Compare subspaces by ``Q Q^T``. Two
    bases of one subspace have different statics and the same ``x``, unless a vector of
    it is orthogonal to the first ``k`` unit vectors, where ``R`` is not unique. In the
    chart of one basis another one of the same subspace is NaN.

    One to one on bases; on subspaces while the singular values of ``Y`` are below one,
    beyond which angles above a right one appear again as smaller ones. Without
    ``static`` the shape is unknown: ``bind(torch.eye(n, k))`` is the standard chart.

    References:
        Jauch, Hoff and Dunson (2020). Edelman, Arias and Smith (1998).

    Example:
        >>> import torch
        >>> from pureopt.constraints import Grassmann
        >>> c, basis = Grassmann(), torch.eye(4, 2, dtype=torch.float64).roll(1, 0)
        >>> turned = basis @ torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
        >>> x = c.right_inverse(basis, c.bind(basis))
        >>> x.shape, bool(c.rebind(x, c.bind(turned))[0].isfinite().all())
        (torch.Size([4]), True)
        >>> y = c.forward(x, c.bind(turned))
        >>> bool((y @ y.mT - basis @ basis.mT).abs().max() < 1e-14)
        True
    """

    @property
    def domain(self) -> Domain:
        """Vectors of length ``k (n - k)``."""
        return VECTOR

    @property
    def codomain(self) -> Domain:
        """Matrices with orthonormal columns or rows."""
        return SEMI_ORTHOGONAL

    @property
    def rule(self) -> str:
        """The largest deviation from orthonormal columns, or rows."""
        return "max|Y^T Y - I| (Y Y^T if wide)"

    def dim(self, shape: Sequence[int]) -> int:
        """``k (n - k)``."""
        y = torch.empty(tuple(shape), device="meta")
        SEMI_ORTHOGONAL.require("Grassmann.dim(shape)", y)
        n, k = max(shape[-2:]), min(shape[-2:])
        return k * (n - k)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """That of :class:`SignedCayley`: 6.7 in float32, 1024 in float64, then less."""
        return chart_radius(n, dtype)

    def bind(self, y: Float[Tensor, "*batch rows columns"]) -> GrassmannStatic:
        """The frame of the basis ``y``, and its shape."""
        SEMI_ORTHOGONAL.require("Grassmann.bind(y)", y)
        q = finite_or_zero(working(tall(y)))
        u, _, vh = torch.linalg.svd(q[..., : q.shape[-1], :])
        return GrassmannStatic((u @ vh).to(y.dtype), shape_of(y))

    def forward(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch rows columns"]:
        """The basis; see the class."""
        b, frame, wide = _chart("Grassmann.forward", x, static)
        zero = torch.zeros_like(frame)
        q = cayley_columns(zero, b) @ frame
        return (q.mT if wide else q).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch rows columns"], static: Any = ()
    ) -> Float[Tensor, "*batch d"]:
        """The free vector; NaN where ``y`` is no basis, or one of another chart."""
        where = "Grassmann.right_inverse"
        SEMI_ORTHOGONAL.require(f"{where}(y)", y)
        static = _static(where, static)
        if static.shape.shape[:-1] != y.shape:
            raise ConstraintError(
                f"{where}(static=...)",
                f"come from a basis of shape {tuple(y.shape)}",
                f"one of shape {tuple(static.shape.shape[:-1])}",
                "Take it from `bind`; under vmap, map over the basis and it alike.",
            )
        z = tall(working(y))
        q = z @ _sharp(static.frame, z).mT
        a, b, _ = cayley_blocks(q)
        # Another basis, or one off the chart, is not what the free vector leads to; for
        # long vectors that is known up to the condition of the map.
        reach = max_abs(b).clamp(min=1)
        error = max_abs(cayley_columns(torch.zeros_like(a), b) - q)
        keep = self.check(y) & (error <= self.tolerance(y) * reach * reach)
        keep = keep & (reach <= chart_edge(y.dtype))
        return or_nan(keep, b.flatten(-2), 1).to(y.dtype)

    def rounding(
        self, x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch"]:
        """``20 eps sqrt(n) max(1, max|x|)^2``."""
        return super().rounding(x, y) * max_abs(x, 1).to(y.dtype).clamp(min=1)

    def violation(
        self, y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch"]:
        """The largest deviation from orthonormal columns, or rows."""
        SEMI_ORTHOGONAL.require("Grassmann(y)", y)
        return orthonormality_error(tall(y))

    def tolerance(
        self, y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch"]:
        """``10 max(rows, columns) eps``, at most one half."""
        return orthonormality_tolerance(y)

    def project(
        self, y: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch rows columns"]:
        """The orthogonal polar factor of ``y``, which spans what ``y`` spans."""
        SEMI_ORTHOGONAL.require("Grassmann.project(y)", y)
        return polar_factor(y)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform subspaces, in uniform bases: polar factors of normal matrices."""
        self._require_shape("sample", shape, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        return self.project(_random.normal(key, shape, dtype=wide)).to(dtype)

    def log_abs_det(
        self, x: Float[Tensor, "*batch d"], static: Any = ()
    ) -> Float[Tensor, "*batch"]:
        r"""The volume of bases, from the eigenvalues ``f`` of ``F``.

        .. math:: \tfrac12 \sum_{i=1}^{n-k} \sum_{j=1}^{k}
            \log \frac{1 + f_i f_j + 2 f_i}{(1 + f_i)^2 (1 + f_j)^2}

        with ``f = 0`` beyond the smaller of ``k`` and ``n - k``. The gradient is right
        at equal eigenvalues too, second derivatives only at distinct ones.
        """
        b, _, _ = _chart("Grassmann.log_abs_det", x, static)
        if not b.shape[-2]:
            return torch.zeros_like(x.sum(-1))
        y = scaled(b, 0.5)
        gram = y.mT @ y if b.shape[-2] >= b.shape[-1] else y @ y.mT
        f = torch.linalg.eigvalsh(finite_or_zero(gram))
        m, k = (F.pad(f, (0, s - f.shape[-1])) for s in b.shape[-2:])
        m, k = m[..., :, None], k[..., None, :]
        terms = torch.log(1 + m * k + (m + m))
        terms = terms - scaled(m.log1p() + k.log1p(), 2)
        total = scaled(terms.sum((-2, -1)), 0.5)
        return or_nan(gram.isfinite().all(-1).all(-1), total, 0).to(x.dtype)


def _static(where: str, static: Any) -> GrassmannStatic:
    if isinstance(static, GrassmannStatic):
        return static
    raise ConstraintError(
        f"{where}(static=...)",
        "be a `GrassmannStatic`, which knows the shape of the basis",
        f"`{type(static).__name__}`",
        "Take it from `bind`; `bind(torch.eye(n, k))` is the standard chart.",
    )


def _chart(where: str, x: Tensor, static: Any) -> tuple[Tensor, Tensor, bool]:
    """The lower block, the frame, and whether the basis is wide, checked."""
    VECTOR.require(f"{where}(x)", x)
    static = _static(where, static)
    *batch, rows, columns, _ = static.shape.shape
    n, k = max(rows, columns), min(rows, columns)
    shapes = {"x": (x, k * (n - k)), "static.frame": (static.frame, k, k)}
    for name, (value, *event) in shapes.items():
        if value.shape != (*batch, *event):
            raise ConstraintError(
                f"{where}({name})",
                f"have shape {(*batch, *event)} for the static of a {rows} by {columns} "
                "matrix",
                str(tuple(value.shape)),
                "Under vmap, map over the free value and the static alike.",
            )
    b = working(x).reshape(*batch, n - k, k)
    return b, _sharp(static.frame, b), rows < columns


def _sharp(frame: Tensor, like: Tensor) -> Tensor:
    """The frame in the dtype of ``like``, and orthogonal to its precision.

    It may have been bound in a lower one, by a module that was converted since. Each
    step squares the error: three lead from bfloat16 to float64.
    """
    frame = frame.to(like.dtype)
    for _ in range(3):
        frame = polished(frame)
    return frame
