"""The whole benchmark: one table on standard output, and ``results.json``.

Every piece runs in a process of its own, so that no piece finds the threads, caches
or compiled code of another. ``--quick`` is for tests: its numbers mean nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, arguments, machine, progress, table, use_threads

PIECES = ("mgh_bench", "fits", "adam", "syncs", "import_time")
RESULTS = Path(__file__).parent / "results.json"


def run_apart(piece: str, *, quick: bool, threads: int) -> dict[str, Any]:
    """The report of one piece, or its error as text."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.{piece}"]
        command += ["--json", str(target), "--threads", str(threads)]
        command += ["--quick"] if quick else []
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return {"rows": [], "details": {}, "error": done.stderr[-2000:]}
        return json.loads(target.read_text(encoding="utf-8"))


def _rows(report: dict[str, Any]) -> list[Row]:
    return [Row(**{name: row[name] for name in Row._fields}) for row in report["rows"]]


def main() -> int:
    """Run all pieces; the exit status is 1 if one of them broke down."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=PIECES, default=PIECES)
    options = parser.parse_args()
    use_threads(options.threads)
    reports: dict[str, dict[str, Any]] = {}
    for piece in options.only:
        progress(f"{piece} ...")
        reports[piece] = run_apart(piece, quick=options.quick, threads=options.threads)
    result = {"machine": machine(), "quick": options.quick, "pieces": reports}
    target = options.json or RESULTS
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table((name, row) for name, r in reports.items() for row in _rows(r)))
    broken = {name: r["error"] for name, r in reports.items() if "error" in r}
    for name, error in broken.items():
        progress(f"{name} broke down:\n{error}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
