"""The stored result of ``make audit``: its file, and the page that shows it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("result.json")
PAGE = ROOT / "docs" / "guide" / "audit.md"

WORDS = tuple(
    "".join(letters) for n in (1, 2, 3) for letters in itertools.product("RF", repeat=n)
)
# One letter for each word. Over several samples the first in this list counts.
LETTERS = {
    "wrong": "W",
    "not finite": "N",
    "unsupported": "U",
    "right": ".",
    "undecided": "?",
}
SILENT = "WN"

HEAD = """# What torch gets wrong

Above first order, some of torch's kernels have derivative formulas that drop terms: the
numbers are wrong, and nothing says so. `make audit` compares every nesting of `grad` and
`jvp` up to order {order} of the operations in torch's own test database with differences
of values, as [`audit`](../reference/derivatives.md) does for your function, each at up to
four samples of arguments. This page is written by it, for torch {torch}: {number}
operations. A word reads from the inside out, `R` is `grad`, `F` is `jvp`, and `RF` is
`jvp(grad(f))`.

## Words

How many operations are wrong (or not finite, where the derivative is), and for how many
torch raises an error.

{words}

## Operations

Those that are wrong in a word, as torch computes them and under `exact`. Some are wrong
only at points like a zero or a tie, or for some of their options. Of those that stay wrong,
`normal` is meant to be a constant.

{operations}

## Errors

Those for which torch raises an error in a word, that `exact` does not lift.

{errors}
"""


class Row(NamedTuple):
    """A letter for each word, without and with ``exact``."""

    torch: str
    exact: str


class Result(NamedTuple):
    """What ``make audit`` found.

    Attributes:
        torch: The version.
        rows: The verdicts of each operation.
    """

    torch: str
    rows: dict[str, Row]


def worst(samples: Sequence[Sequence[str]]) -> str:
    """The letters of an operation from the verdicts on its samples."""
    rank = list(LETTERS)
    return "".join(
        LETTERS[min(verdicts, key=rank.index)]
        for verdicts in zip(*samples, strict=True)
    )


def silent(letters: str) -> list[str]:
    """The words that are wrong or not finite."""
    return [w for w, letter in zip(WORDS, letters, strict=True) if letter in SILENT]


def dumps(result: Result) -> str:
    """One line for each operation, so that a difference shows what changed."""
    rows = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(list(result.rows[name]))}"
        for name in sorted(result.rows)
    )
    head = f'  "torch": {json.dumps(result.torch)},\n'
    words = f'  "words": {json.dumps(list(WORDS))},\n'
    return f'{{\n{head}{words}  "operations": {{\n{rows}\n  }}\n}}\n'


def loads(text: str) -> Result:
    """The inverse of :func:`dumps`."""
    data = json.loads(text)
    rows = {name: Row(*letters) for name, letters in data["operations"].items()}
    return Result(data["torch"], rows)


def store(result: Result) -> None:
    """Write the file and the page."""
    FILE.write_text(dumps(result))
    PAGE.write_text(page(result))


def page(result: Result) -> str:
    """The page of the documentation."""
    return HEAD.format(
        order=max(map(len, WORDS)),
        torch=result.torch,
        number=len(result.rows),
        words=_words(result),
        operations=_operations(result),
        errors=_errors(result),
    )


def _words(result: Result) -> str:
    head = "| word | wrong | under `exact` | error | under `exact` |"
    rows = result.rows.values()
    lines = [
        f"| {word} | "
        + " | ".join(
            str(sum(row[k][i] in letters for row in rows))
            for letters in (SILENT, "U")
            for k in (0, 1)
        )
        + " |"
        for i, word in enumerate(WORDS)
    ]
    return "\n".join([head, "|---|---|---|---|---|", *lines])


def _operations(result: Result) -> str:
    lines = ["| operation | torch | under `exact` |", "|---|---|---|"]
    for name, row in sorted(result.rows.items()):
        if silent(row.torch) or silent(row.exact):
            torch, exact = (", ".join(silent(x)) or "right" for x in row)
            lines.append(f"| `{name}` | {torch} | {exact} |")
    return "\n".join(lines)


def _errors(result: Result) -> str:
    by_words: dict[str, list[str]] = {}
    for name, row in sorted(result.rows.items()):
        words = ", ".join(
            w for w, letter in zip(WORDS, row.exact, strict=True) if letter == "U"
        )
        if words:
            by_words.setdefault(words, []).append(f"`{name}`")
    lines = [f"- {words}: {', '.join(names)}" for words, names in by_words.items()]
    return "\n".join(lines)
