"""What ``make audit`` stored, spot-checked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.audit import result
from tests.audit.result import FILE, LANES, PAGE, ROOT, WORDS, loads, silent

STORED = loads(FILE.read_text())


def test_the_result_is_that_of_the_installed_torch():
    installed = torch.__version__.split("+")[0]
    assert STORED.torch == installed, "run `make audit` and look at what changed"


def test_the_page_shows_the_result():
    assert PAGE.read_text() == result.page(STORED), "run `make audit`"


def test_the_file_is_as_it_is_written():
    assert FILE.read_text() == result.dumps(STORED)


def test_the_worst_of_several_samples_counts():
    samples = [["right", "right", "undecided"], ["wrong", "unsupported", "right"]]
    assert result.worst(samples) == "WU."


@pytest.mark.parametrize(
    ("words", "before", "after"),
    [(WORDS, "torch", "exact"), (LANES, "lanes", "lanes_exact")],
    ids=["words", "lanes"],
)
def test_exact_makes_nothing_worse(words, before, after):
    rank = ".?UNW"
    worse = {
        (name, word)
        for name, row in STORED.rows.items()
        for word, was, now in zip(
            words, getattr(row, before), getattr(row, after), strict=True
        )
        # What was an error may turn out to be at a kink, or the other way round.
        if rank.index(now) > max(rank.index(was), rank.index("?"))
    }
    assert worse == set()


@pytest.mark.parametrize(
    "name", ["nn.functional.layer_norm", "linalg.solve", "cumprod"]
)
def test_torch_is_still_wrong_where_exact_is_needed(name):
    row = STORED.rows[name]
    assert {"FR", "FF"} <= set(silent(row.torch))
    assert silent(row.exact) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linalg.solve", {"FVV", "RFVV"}),
        ("linalg.det", {"FVV", "RFVV"}),
        ("cdist", {"RVV"}),
        ("index_fill", {"V"}),
    ],
)
def test_torch_is_still_wrong_in_lanes_where_exact_is_needed(name, words):
    row = STORED.rows[name]
    assert words <= set(silent(row.lanes, LANES))
    assert silent(row.lanes_exact, LANES) == []


# What is silently wrong under `exact` too, and why.
LEFT = {
    # Torch means the draw to be a constant; the sweep draws the same one each time.
    "normal",
    "normal number_mean",
}


def test_exact_mends_all_but_a_known_few():
    left = {name for name, row in STORED.rows.items() if silent(row.exact)}
    assert left <= LEFT


def test_exact_mends_all_lanes():
    left = {n for n, row in STORED.rows.items() if silent(row.lanes_exact, LANES)}
    assert left == set()


@pytest.mark.slow
def test_a_few_operations_come_out_again_as_they_are_stored():
    # Right ones, wrong ones, in lanes too, one that torch refuses. In a process of its own,
    # because torch's test modules change settings of torch when they are imported.
    names = [
        "cdist",
        "exp",
        "index_fill",
        "linalg.solve",
        "matmul",
        "nn.functional.group_norm",
        "nn.functional.layer_norm",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tests.audit.sweep", *names],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    again = loads(run.stdout)
    assert again.rows == {name: STORED.rows[name] for name in names}
