"""``make audit``: torch's own operations, with and without ``exact``.

Their derivatives are compared with differences, and ``vmap`` of them with loops.

Writes ``tests/audit/result.json`` and ``docs/guide/audit.md``. With names of operations
as arguments it prints their rows and writes nothing.
"""

from __future__ import annotations

import functools
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from pureopt.derivatives._auditing._audit import _directions
from pureopt.derivatives._auditing._words import Path, Verdict, judge, outputs
from pureopt.random import key, split
from tests.audit import database, lanes, result

ORDER = 3
# Without what it was built for.
VERSION = torch.__version__.split("+")[0]
PROCESSES = 2
# For one sample of one operation; what takes longer counts as if torch had raised.
SECONDS = 60

Function = Callable[..., Any]
Start = tuple[torch.Tensor, ...]
# For some trials, the verdict on each word.
Part = list[list[Verdict]]


class TooLongError(BaseException):
    """Not an exception that the audit would take for torch's."""


def main(names: list[str]) -> None:
    """Audit and store everything, or print the rows of some operations."""
    if names:
        found = dict(filter(None, map(audited, names)))
        print(result.dumps(result.Result(VERSION, found)))  # noqa: T201
        return
    start = time.monotonic()
    # Fresh processes: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    every = sorted(_database())
    rows: list[tuple[str, result.Row]] = []
    with ProcessPoolExecutor(PROCESSES, context) as pool:
        for i, row in enumerate(pool.map(audited, every)):
            rows += [row] if row else []
            if i % 50 == 0:
                print(f"{i} of {len(every)}", flush=True)  # noqa: T201
    result.store(result.Result(VERSION, dict(rows)))
    minutes = (time.monotonic() - start) / 60
    print(f"{len(rows)} operations in {minutes:.1f} minutes")  # noqa: T201


@functools.cache
def _database() -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return database.load()


def audited(name: str) -> tuple[str, result.Row] | None:
    """The row of an operation; ``None`` if it cannot be tried."""
    op = _database()[name]
    found = [parts for f, start in database.cases(op) if (parts := _parts(f, start))]
    if not found:
        return None
    letters = (
        result.worst([verdicts for part in parts for verdicts in part])
        for parts in zip(*found, strict=True)
    )
    return name, result.Row(*letters)


def _parts(f: Function, start: Start) -> list[Part]:
    """The parts of a row on one sample; none if it cannot be called."""
    try:
        if not any(y.numel() for y in outputs(f(*start))):
            return []
    except Exception:  # noqa: BLE001 (a sample that shows how it fails)
        return []
    return [
        *_in_time(_words, f, start, len(result.WORDS)),
        *_in_time(lanes.judge, f, start, len(result.LANES)),
    ]


def _words(f: Function, start: Start) -> tuple[Part, Part]:
    along, across, weights = split(key(0), 3)
    path = Path(f, start, _directions(along, start), _directions(across, start))
    words = judge(path, weights, ORDER)
    return [[word.verdict for word in words]], [[word.exact for word in words]]


def _in_time(
    judge: Callable[[Function, Start], tuple[Part, Part]],
    f: Function,
    start: Start,
    words: int,
) -> tuple[Part, Part]:
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        return judge(f, start)
    except TooLongError:
        refused: list[Verdict] = ["unsupported"] * words
        return [refused], [refused]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _too_long(number: int, frame: Any) -> None:
    raise TooLongError


if __name__ == "__main__":
    main(sys.argv[1:])
