"""What the pieces of the benchmark share: rows, timing, the command line, the table."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

PACKAGES = (
    *("pureopt", "torch", "numpy", "scipy", "jax", "jaxlib"),
    *("jaxopt", "optax", "optimistix", "equinox", "lineax", "optree", "geotorch"),
    *("opacus", "backpack-for-pytorch", "curvlinops-for-pytorch"),
)


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        measure: What was measured, with its unit.
        ours: The number of pureopt.
        peer: The name of who is compared with, or ``""``.
        theirs: The number of the peer in the same run.
        target: What :attr:`number` must be, such as ``"<= 1.15"``, or ``""``.
        judged: The number that the target is about: ``"ours"``, ``"ratio"`` (ours /
            theirs) or ``"speedup"`` (theirs / ours).
    """

    measure: str
    ours: float
    peer: str = ""
    theirs: float | None = None
    target: str = ""
    judged: str = "ratio"

    @property
    def number(self) -> float | None:
        """The ratio or speedup to the peer, or the plain number without a peer."""
        if self.judged == "ours" or self.theirs is None:
            return self.ours
        over, under = self.ours, self.theirs
        if self.judged == "speedup":
            over, under = under, over
        return over / under if under else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` where there is none."""
        if not self.target:
            return None
        relation, bound = self.target.split()
        number = self.number
        if number is None:
            return False
        return number <= float(bound) if relation == "<=" else number >= float(bound)


class Report(NamedTuple):
    """What a piece returns: its rows, and anything else worth keeping."""

    rows: list[Row]
    details: dict[str, Any]


class Timing(NamedTuple):
    """Seconds per call; the first call (compilation) is apart."""

    best: float
    median: float
    first: float


def race(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time each run once per round, so that a busy machine slows all of them alike.

    Args:
        runs: Functions that return when their work is done.
        rounds: How often each is called after its first, separately timed, call.
    """
    first = {name: _seconds(run) for name, run in runs.items()}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run))
    return {
        name: Timing(min(t), statistics.median(t), first[name])
        for name, t in times.items()
    }


def race_in_bursts(
    runs: dict[str, Callable[[], object]], rounds: int, seconds: float = 0.02
) -> dict[str, Timing]:
    """As :func:`race`, each round in calls that fill this time; the times are of a call.

    So none is timed with the caches and the memory that another one left.
    """
    calls = {name: _calls(run, seconds) for name, run in runs.items()}
    bursts = {name: _burst(run, calls[name]) for name, run in runs.items()}
    return {
        name: Timing(*(t / calls[name] for t in timing))
        for name, timing in race(bursts, rounds).items()
    }


def _calls(run: Callable[[], object], seconds: float) -> int:
    """How often a run fits into this time, at least once."""
    run()
    return 1 + int(seconds / _seconds(run))


def _burst(run: Callable[[], object], calls: int) -> Callable[[], None]:
    def burst() -> None:
        for _ in range(calls):
            run()

    return burst


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def installed(*names: str) -> bool:
    """Whether the peers are there; without them their rows are left out."""
    found = [_version(name) for name in names]
    return all(version is not None for version in found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Where and with what the numbers were measured."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: v for name, v in versions.items() if v is not None},
    }


def _cpu() -> str:
    """Its name, and where Linux tells them the numbers that one name may hide."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    said: dict[str, str] = {}
    for line in info.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        said.setdefault(name.strip(), value.strip())
    name = said.get("model name", platform.processor())
    numbers = [f"{n} {said[n]}" for n in ("cpu family", "model") if n in said]
    return ", ".join([name, *numbers])


def use_threads(threads: int) -> None:
    """Bind this process to so many cores, for torch and for its peers alike."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        # jax has no setting of its own; it starts one thread per core it may use.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-threads:])


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line of a piece and of the whole."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--threads", type=int, default=1, help="cores to use")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    return parser


def run_piece(measure: Callable[..., Report], description: str | None) -> None:
    """What ``python -m benchmarks.<piece>`` does."""
    options = arguments(description).parse_args()
    use_threads(options.threads)
    report = measure(quick=options.quick)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(report)), encoding="utf-8")
    else:
        print(table(report.rows))


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data, with the derived numbers and where they come from."""
    rows = [
        {**row._asdict(), "number": row.number, "met": row.met} for row in report.rows
    ]
    return {"machine": machine(), "rows": rows, "details": report.details}


def table(rows: Iterable[Row]) -> str:
    """The rows in columns, as Markdown."""
    heads = ("measure", "pureopt", "peer", "", "ratio", "target")
    lines = [heads, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    texts = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    theirs = "" if row.theirs is None else _short(row.theirs)
    number = "" if row.theirs is None or row.judged == "ours" else _short(row.number)
    if number and row.judged == "speedup":
        number += "x faster"
    met = {None: "", True: ": met", False: ": MISSED"}[row.met]
    return row.measure, _short(row.ours), row.peer, theirs, number, row.target + met


def _short(number: float | None) -> str:
    if number is None:
        return "-"
    return str(number) if isinstance(number, int) else f"{number:.4g}"


def progress(text: str) -> None:
    """One line on standard error: standard output is the table."""
    print(text, file=sys.stderr, flush=True)
