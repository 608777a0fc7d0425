"""``make audit``: the derivatives of torch's own operations, with and without ``exact``.

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
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from pureopt.derivatives._auditing._audit import _directions
from pureopt.derivatives._auditing._words import Path, Word, judge, outputs
from pureopt.random import key, split
from tests.audit import database, result

ORDER = 3
# Without what it was built for.
VERSION = torch.__version__.split("+")[0]
PROCESSES = 2
# For one sample of one operation; what takes longer counts as if torch had raised.
SECONDS = 60


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
    found = [words for f, start in database.cases(op) if (words := _words(f, start))]
    if not found:
        return None
    return name, result.Row(
        result.worst([[word.verdict for word in words] for words in found]),
        result.worst([[word.exact for word in words] for words in found]),
    )


def _words(f: Any, start: tuple[torch.Tensor, ...]) -> tuple[Word, ...]:
    """The verdicts on one sample; none if it cannot be called."""
    along, across, weights = split(key(0), 3)
    path = Path(f, start, _directions(along, start), _directions(across, start))
    try:
        if not any(y.numel() for y in outputs(f(*start))):
            return ()
    except Exception:  # noqa: BLE001 (a sample that shows how it fails)
        return ()
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        return judge(path, weights, ORDER)
    except TooLongError:
        n = 2 ** (ORDER + 1) - 2
        return (Word("", "unsupported", 0, 0, 0, "unsupported", "too long"),) * n
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _too_long(number: int, frame: Any) -> None:
    raise TooLongError


if __name__ == "__main__":
    main(sys.argv[1:])
