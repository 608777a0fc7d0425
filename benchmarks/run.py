"""The whole benchmark: a table of each piece, in ``results.md``, and ``results.json``.

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

from benchmarks.harness import Row, arguments, progress, table

PIECES = (
    "mgh_bench",
    "fits",
    "directions",
    "adam",
    "constraint_maps",
    "taylor",
    "per_sample",
    "curvature",
    "syncs",
    "import_time",
)
RESULTS = Path(__file__).parent / "results.json"


def run_apart(piece: str, *, quick: bool, threads: int) -> dict[str, Any]:
    """The report of one piece, or its error as text."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        command = [sys.executable, "-m", f"benchmarks.{piece}"]
        command += ["--json", str(target), "--threads", str(threads)]
        command += ["--quick"] if quick else []
        done = subprocess.run(
            command,
            check=False,
            cwd=RESULTS.parents[1],  # where `benchmarks` can be imported from
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            return {"rows": [], "details": {}, "error": done.stderr[-2000:]}
        report = json.loads(target.read_text(encoding="utf-8"))
        return {"quick": quick, **report}


def _rows(report: dict[str, Any]) -> list[Row]:
    return [Row(**{name: row[name] for name in Row._fields}) for row in report["rows"]]


def _stored(path: Path) -> dict[str, dict[str, Any]]:
    """The reports of an earlier run, if there was one."""
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def page(reports: dict[str, dict[str, Any]]) -> str:
    """A heading and a table for each piece."""
    return "\n\n".join(
        f"### {name}\n\n{table(_rows(report))}" for name, report in reports.items()
    )


def main() -> int:
    """Run the pieces; the exit status is 1 if one of them broke down."""
    parser = arguments(__doc__)
    parser.add_argument(
        *("--only", "-o"),
        nargs="+",
        choices=PIECES,
        help="run these again; the others keep the numbers they have",
    )
    options = parser.parse_args()
    target = options.json or RESULTS
    reports = _stored(target) if options.only else {}
    for piece in options.only or PIECES:
        progress(f"{piece} ...")
        reports[piece] = run_apart(piece, quick=options.quick, threads=options.threads)
    reports = {name: reports[name] for name in PIECES if name in reports}
    target.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    text = page(reports)
    target.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    broken = {name: r["error"] for name, r in reports.items() if "error" in r}
    for name, error in broken.items():
        progress(f"{name} broke down:\n{error}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
