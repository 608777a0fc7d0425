"""The support matrix of the guide: ``python -m tests.derivatives.exact_matrix`` writes it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from pureopt.derivatives import exact
from tests.derivatives.exact_case import Case, differentiated, words
from tests.derivatives.exact_cases import CASES

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "exact-derivatives.md"
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->"
HEAD = """\
| operation | torch, order 2 | torch, order 3 | torch, order 4 | `exact`, to order 4 |
|---|---|---|---|---|
"""
# Rounding of fourth derivatives stays below 1e-12 of them (see test_exact), and the
# wrong ones are off by a per cent and more.
TOLERANCE = 1e-6


def verdict(f, word: str, truth: float) -> str:
    """``right``, ``wrong`` or ``raises``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = differentiated(f, word)(torch.zeros((), dtype=torch.float64))
        except (RuntimeError, NotImplementedError):
            return "raises"
    close = abs(value.item() - truth) <= TOLERANCE * (1 + abs(truth))
    return "right" if close else "wrong"


def cell(case: Case, order: int, transform=lambda f: f) -> str:
    """How many of the words of one order are what."""
    truth = case.truth(order)[order]
    f = case.torch(transform)
    verdicts = [verdict(f, word, truth) for word in words(order)]
    counts = {name: verdicts.count(name) for name in ("right", "wrong", "raises")}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n)


def row(case: Case) -> str:
    cells = [cell(case, order) for order in (2, 3, 4)]
    mended = {v for order in (1, 2, 3, 4) for v in [cell(case, order, exact)]}
    all_right = all(v.endswith("right") for v in mended)
    return f"| {case.name} | {' | '.join(cells)} | {'right' if all_right else 'no'} |\n"


def stored() -> dict[str, list[str]]:
    """The cells of each operation in the page."""
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0].splitlines()[2:]
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in table]
    return {first: rest for first, *rest in cells}


def main() -> None:
    # As the tests do: what torch does with repeated indices depends on it.
    torch.set_num_threads(1)
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    table = HEAD + "".join(map(row, CASES))
    PAGE.write_text(before + BEGIN + table + END + after)


if __name__ == "__main__":
    main()
