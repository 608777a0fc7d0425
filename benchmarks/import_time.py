"""What ``import pureopt`` adds to ``import torch``, and whether it is silent."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from benchmarks.harness import Report, Row, run_piece

# Both in one process: the second import then costs what it adds, and a machine that
# is busy slows both.
_SCRIPT = """
import time
begin = time.perf_counter()
import torch
middle = time.perf_counter()
import pureopt
end = time.perf_counter()
print(f"[{middle - begin}, {end - middle}]")
"""


def _seconds() -> tuple[float, float, str]:
    """Seconds of importing torch, then pureopt, and what was said meanwhile."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SCRIPT],
        capture_output=True,
        check=True,
        text=True,
    )
    *said, numbers = done.stdout.splitlines()
    torch_seconds, added = json.loads(numbers)
    return torch_seconds, added, "\n".join([*said, done.stderr.strip()]).strip()


def measure(*, quick: bool = False) -> Report:
    """Medians over fresh interpreters; the first one warms the file system."""
    runs = [_seconds() for _ in range(1 if quick else 10)]
    runs = runs[1:] or runs
    torch_seconds = statistics.median(run[0] for run in runs)
    added = statistics.median(run[1] / run[0] for run in runs)
    said = sorted({run[2] for run in runs if run[2]})
    rows = [
        Row(
            "import, seconds, pureopt after torch",
            statistics.median(run[1] for run in runs),
            *("torch", torch_seconds, "<= 0.10"),
        ),
        Row("lines said under -W error", len(said), "", None, "<= 0", "ours"),
    ]
    return Report(rows, {"added_fraction": added, "said": said, "runs": runs})


if __name__ == "__main__":
    run_piece(measure, __doc__)
