"""The stored result of ``make audit``: its file, and the page that shows it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("result.json")
PAGE = ROOT / "docs" / "guide" / "audit.md"

WORDS = tuple(
    "".join(letters) for n in (1, 2, 3) for letters in itertools.product("RF", repeat=n)
)
# Words in which the last `V` is a `vmap` over lanes, and one before it over directions.
LANES = {
    "V": "vmap(f)",
    "FVV": "vmap(jacfwd(f))",
    "RVV": "vmap(jacrev(f))",
    "RFVV": "vmap(jacfwd(grad(f)))",
}
# One letter for each word. Over several samples the first in this list counts.
LETTERS = {
    "wrong": "W",
    "not finite": "N",
    "unsupported": "U",
    "right": ".",
    "undecided": "?",
}
SILENT = "WN"

# The name of an operation, and its letters without and with `exact`.
Rows = Sequence[tuple[str, str, str]]

HEAD = """# What torch gets wrong

Above first order, some of torch's kernels have derivative formulas that drop terms: the
numbers are wrong, and nothing says so. `make audit` compares every nesting of `grad` and
`jvp` up to order {order} of the operations in torch's own test database with differences
of values, as [`audit`](../reference/derivatives.md) does for your function, each at up to
four samples of arguments. It also compares `vmap` with loops: there, some are wrong at
first order already. This page is written by it, for torch {torch}. Of {number} operations
{wrong} are wrong in a nesting, {left} under `exact`; in the lanes of `vmap` it is
{wrong_lanes}, {left_lanes} under `exact`. A word reads from the inside out, `R` is `grad`,
`F` is `jvp`, `V` is `vmap`, and `RF` is `jvp(grad(f))`.

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

## Lanes

What `vmap` computes should be what a loop does. In these words the last `V` is the `vmap`
over lanes; one before it is that over the directions of a Jacobian, inside of `jacfwd` or
`jacrev`. Each is compared with a loop over lanes and directions, once with lanes in all
arguments and once with lanes in each of them alone. `RFVV` is that of a quadratic function
of the outputs. Where the loop raises an error there is nothing to compare.

{lanes}

Those that are wrong:

{lanes_operations}

Those for which `vmap` raises an error and the loop does not, that `exact` does not lift.
Among them are casts to a `memory_format`, draws whose distribution has lanes, and batch
norms whose statistics have none.

{lanes_errors}
"""


class Row(NamedTuple):
    """A letter for each word, without and with ``exact``, and for each word of lanes."""

    torch: str
    exact: str
    lanes: str
    lanes_exact: str


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


def silent(letters: str, words: Iterable[str] = WORDS) -> list[str]:
    """The words that are wrong or not finite."""
    return _having(letters, SILENT, words)


def _having(letters: str, some: str, words: Iterable[str]) -> list[str]:
    return [w for w, letter in zip(words, letters, strict=True) if letter in some]


def dumps(result: Result) -> str:
    """One line for each operation, so that a difference shows what changed."""
    rows = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(list(result.rows[name]))}"
        for name in sorted(result.rows)
    )
    head = f'  "torch": {json.dumps(result.torch)},\n'
    words = f'  "words": {json.dumps(list(WORDS))},\n'
    lanes = f'  "lanes": {json.dumps(list(LANES))},\n'
    return f'{{\n{head}{words}{lanes}  "operations": {{\n{rows}\n  }}\n}}\n'


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
    rows = sorted(result.rows.items())
    words = [(name, row.torch, row.exact) for name, row in rows]
    lanes = [(name, row.lanes, row.lanes_exact) for name, row in rows]
    wrong, left = _numbers(words, WORDS)
    wrong_lanes, left_lanes = _numbers(lanes, LANES)
    calls = {word: f"{word} | `{call}`" for word, call in LANES.items()}
    return HEAD.format(
        order=max(map(len, WORDS)),
        torch=result.torch,
        number=len(rows),
        wrong=wrong,
        left=left,
        wrong_lanes=wrong_lanes,
        left_lanes=left_lanes,
        words=_counts(words, "word", WORDS),
        operations=_operations(words, WORDS),
        errors=_errors(words, WORDS),
        lanes=_counts(lanes, "word | is", calls.values()),
        lanes_operations=_operations(lanes, LANES),
        lanes_errors=_errors(lanes, LANES),
    )


def _numbers(rows: Rows, words: Iterable[str]) -> tuple[int, int]:
    """How many operations are wrong in a word, without and with ``exact``."""
    before, after = (
        sum(bool(silent(letters, words)) for letters in column)
        for column in list(zip(*rows, strict=True))[1:]
    )
    return before, after


def _counts(rows: Rows, title: str, words: Iterable[str]) -> str:
    head = f"| {title} | wrong | under `exact` | error | under `exact` |"
    lines = [
        f"| {word} | "
        + " | ".join(
            str(sum(row[k][i] in letters for row in rows))
            for letters in (SILENT, "U")
            for k in (1, 2)
        )
        + " |"
        for i, word in enumerate(words)
    ]
    return "\n".join([head, "|---" * head.count(" | ") + "|---|", *lines])


def _operations(rows: Rows, words: Iterable[str]) -> str:
    lines = ["| operation | torch | under `exact` |", "|---|---|---|"]
    for name, *letters in rows:
        torch, exact = (", ".join(silent(x, words)) for x in letters)
        if torch or exact:
            lines.append(f"| `{name}` | {torch or 'right'} | {exact or 'right'} |")
    return "\n".join(lines)


def _errors(rows: Rows, words: Iterable[str]) -> str:
    by_words: dict[str, list[str]] = {}
    for name, _, exact in rows:
        if refused := ", ".join(_having(exact, "U", words)):
            by_words.setdefault(refused, []).append(f"`{name}`")
    lines = [f"- {words}: {', '.join(names)}" for words, names in by_words.items()]
    return "\n".join(lines)
