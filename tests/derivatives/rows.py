"""One row or more per operator: the laws run over this table."""

from __future__ import annotations

from tests.derivatives import (
    rows_audit,
    rows_curvature,
    rows_exact,
    rows_jets,
    rows_per_sample,
    rows_products,
    rows_taps,
    rows_taylor,
)
from tests.derivatives.row import OperatorRow as OperatorRow

OPERATORS: list[OperatorRow] = [
    *rows_audit.ROWS,
    *rows_curvature.ROWS,
    *rows_exact.ROWS,
    *rows_jets.ROWS,
    *rows_per_sample.ROWS,
    *rows_products.ROWS,
    *rows_taps.ROWS,
    *rows_taylor.ROWS,
]
