"""One row per constraint: the laws run over this table."""

from __future__ import annotations

from tests.constraints import (
    rows_definite,
    rows_elementwise,
    rows_invertible,
    rows_linear,
    rows_manifolds,
    rows_norms,
    rows_ordered,
    rows_orthogonal,
    rows_product,
    rows_simplex,
    rows_spheres,
)
from tests.constraints.row import SIZES as SIZES
from tests.constraints.row import ConstraintRow as ConstraintRow

CONSTRAINTS: list[ConstraintRow] = [
    *rows_definite.ROWS,
    *rows_linear.ROWS,
    *rows_orthogonal.ROWS,
    *rows_spheres.ROWS,
    *rows_simplex.ROWS,
    *rows_elementwise.ROWS,
    *rows_ordered.ROWS,
    *rows_manifolds.ROWS,
    *rows_product.ROWS,
    *rows_invertible.ROWS,
    *rows_norms.ROWS,
]
