"""The pieces of `make bench` run, in small; their numbers are not judged here."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import harness, run
from benchmarks.harness import Report, Row

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.json"


def _not_compiled(model=None, **_):
    return model if model is not None else lambda function: function


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    """Measure a piece in this process, eagerly and without the peers in jax."""
    monkeypatch.setattr(torch, "compile", _not_compiled)
    for name in ("fits", "adam"):
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(module, "installed", lambda *_: False)

    def measure(piece: str) -> Report:
        return importlib.import_module(f"benchmarks.{piece}").measure(quick=True)

    return measure


@pytest.mark.parametrize("piece", run.PIECES)
def test_every_piece_runs_and_its_report_can_be_stored(quick, piece: str):
    report = quick(piece)
    assert report.rows
    assert all(math.isfinite(row.ours) for row in report.rows)
    stored = json.loads(json.dumps(harness.as_json(report)))
    restored = [Row(*(row[name] for name in Row._fields)) for row in stored["rows"]]
    assert restored == report.rows


def test_the_solvers_of_the_fits_agree(quick):
    details = quick("fits").details
    assert set(details) == {
        "pureopt, batched, compiled",
        "torch.optim.LBFGS, in a loop",
    }
    for answer in details.values():
        assert answer["solved"] == answer["lanes"]
        # A gradient below 1e-6 leaves a loss within 1e-12 / (2 lambda) of the minimum,
        # and the curvature lambda of these fits is above 1e-3.
        assert answer["largest_excess_loss"] < 1e-9


def test_counted_waits_are_those_of_the_program():
    syncs = importlib.import_module("benchmarks.syncs")
    x = torch.ones(3)
    assert syncs.count(lambda: x + 1) == 0
    assert syncs.count(lambda: float(x.sum())) == 1
    assert syncs.count(lambda: [bool(v > 0) for v in x.unbind()]) == 3
    assert syncs.count(lambda: x[x > 0]) == 1
    assert syncs.count(lambda: x[torch.tensor([0, 2])]) == 0
    assert syncs.count(lambda: torch.equal(x, x)) == 1
    assert syncs.count(x.nonzero) == 1


def test_counted_memory_is_that_of_the_program():
    memory = importlib.import_module("benchmarks.memory")
    x = torch.ones(1000)  # 4000 bytes
    kept = [x.neg()]

    def replace() -> None:
        kept[0] = x.neg()

    assert memory.peak_bytes(lambda: x) == 0
    assert memory.peak_bytes(x.neg) == 4000
    assert memory.peak_bytes(lambda: x.neg().neg().neg()) == 8000
    assert memory.peak_bytes(lambda: [x.neg() for _ in range(3)]) == 12000
    assert memory.peak_bytes(replace) == 4000


def test_targets_are_judged_on_the_ratio_the_speedup_or_the_number():
    assert Row("time", 2.0, "peer", 1.0, "<= 1.1").met is False
    assert Row("time", 2.0, "peer", 1.0, ">= 1", "speedup").met is False
    assert Row("time", 1.0, "peer", 200.0, ">= 100", "speedup").met is True
    assert Row("count", 38, "peer", 36, ">= 38", "ours").met is True
    assert Row("count", 38, "peer", 36).met is None
    assert Row("ratio to nothing", 38, "peer", 0, "<= 1").met is False


def test_the_table_is_markdown_with_one_line_a_row():
    rows = [Row("x", 2, "peer", 4, "<= 1.0"), Row("y", 0.12345)]
    lines = harness.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells == ["", "x", "2", "peer", "4", "0.5", "<= 1.0: met", ""]
    assert "0.1235" in lines[3]


def test_a_race_times_every_run_as_often():
    calls: list[str] = []
    times = harness.race(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 4
    )
    # The first call, one to warm up, and the rounds.
    assert calls.count("a") == calls.count("b") == 1 + 1 + 4
    assert all(t.best <= t.median and t.first > 0 for t in times.values())


def test_a_piece_that_breaks_down_is_reported_not_raised():
    report = run.run_apart("no_such_piece", quick=True, threads=1)
    assert report["rows"] == []
    assert "no_such_piece" in report["error"]


def test_the_stored_results_are_of_a_whole_run_and_of_this_code():
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(stored) == set(run.PIECES)
    assert not [name for name, report in stored.items() if "error" in report]
    assert not [name for name, report in stored.items() if report["quick"]]
    bench = importlib.import_module("benchmarks.mgh_bench")
    counts = stored["mgh_bench"]["details"]["torch.float64"]["pureopt"]
    for problem in (p for p in bench.PROBLEMS if p.n == 2 and p.common28):
        now = bench.pureopt_run(problem, torch.float64).evaluations
        then = counts[problem.label]["evaluations"]
        # Other processors round otherwise, which moves a path by an evaluation or two.
        assert abs(now - then) <= 2 + 0.1 * then, problem.label


def test_the_stored_tables_are_tables_of_the_stored_numbers():
    text = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    assert text == run.page(json.loads(RESULTS.read_text(encoding="utf-8"))) + "\n"
    # A bar in a cell would break the row on the page that includes it.
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) > 20
    assert {line.count("|") for line in lines} == {7}
