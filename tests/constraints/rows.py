"""One row per constraint: the laws run over this table."""

from __future__ import annotations

from tests.constraints import (
    rows_linear,
    rows_orthogonal,
)
from tests.constraints.row import SIZES as SIZES
from tests.constraints.row import ConstraintRow as ConstraintRow

CONSTRAINTS: list[ConstraintRow] = [
    *rows_linear.ROWS,
    *rows_orthogonal.ROWS,
]
