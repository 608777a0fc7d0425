"""One row or more per operator: the laws run over this table."""

from __future__ import annotations

from tests.derivatives import rows_exact
from tests.derivatives.row import OperatorRow as OperatorRow

OPERATORS: list[OperatorRow] = [*rows_exact.ROWS]
