"""The support matrix in the guide is what is measured."""

from __future__ import annotations

import pytest

from tests.derivatives.exact_cases import CASES
from tests.derivatives.exact_matrix import cell, stored

# `python -m tests.derivatives.exact_matrix` measures all rows, which takes half a minute;
# the suite every third one, and the fourth order of every twelfth.
FOURTH = [case.name for case in CASES[::12]]


def test_each_case_has_a_row_and_each_row_is_right():
    assert list(stored()) == [case.name for case in CASES]
    # What `test_every_nesting_up_to_order_four_is_right` proves.
    assert {cells[-1] for cells in stored().values()} == {"right"}


def test_each_row_is_there_because_torch_is_not_right():
    for name, cells in stored().items():
        assert any("wrong" in c or "raises" in c for c in cells[:3]), name


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.name)
def test_the_table_is_what_torch_does(case):
    cells = stored()[case.name]
    assert [cell(case, order) for order in (2, 3)] == cells[:2]
    if case.name in FOURTH:
        assert cell(case, 4) == cells[2]
