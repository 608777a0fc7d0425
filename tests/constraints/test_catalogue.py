"""The page that says which constraint to take tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.constraints.rows import CONSTRAINTS

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "which-constraint.md"
LETTERS = {"p": "project", "s": "sample", "v": "log_abs_det"}


def lines() -> dict[str, tuple[set[str], bool]]:
    """Of each name: the optional methods that the page says, and whether it is marked."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and "`" in cells[1]:
            methods = {LETTERS[letter] for letter in cells[2]}
            for name in re.findall(r"constraints\.(\w+)`", cells[1]):
                found[name] = (methods, "\u2020" in cells[1])
    return found


NAMES = lines()


@pytest.mark.parametrize("row", CONSTRAINTS, ids=lambda row: row.name)
def test_the_page_says_what_a_constraint_offers(row):
    name = row.public.rsplit(".", 1)[-1]
    if name in {"Chain", "Product"}:  # as their parts
        return
    methods, redundant = NAMES[name]
    # What one variant lacks (samples of an unbounded part), another may have.
    rows = [r.make() for r in CONSTRAINTS if r.public == row.public]
    assert redundant == (not any(c.bijective for c in rows))
    assert methods == {m for m in LETTERS.values() if any(c.offers(m) for c in rows)}


def test_the_page_names_nothing_else():
    known = {row.public.rsplit(".", 1)[-1] for row in CONSTRAINTS}
    assert set(NAMES) <= known
