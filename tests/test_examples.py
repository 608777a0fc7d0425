"""The examples run, and reach what their pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str) -> str:
    """What the example prints; without the compiler, whose code other tests check."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1", "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def number(text: str, label: str) -> float:
    found = re.search(rf"^{re.escape(label)}\s+([\d.e+-]+)", text, re.MULTILINE)
    assert found, f"no '{label}' in:\n{text}"
    return float(found[1])


@pytest.mark.slow
def test_quickstart():
    text = run("quickstart.py")
    assert number(text, "test accuracy") >= 0.97
    assert number(text, "max |W W^T - I|") < 1e-5
    assert (EXAMPLES / "output" / "quickstart.png").stat().st_size > 10_000


def test_bowl():
    text = run("bowl.py")
    least = {
        name: number(text, f"{name:18s} least loss")
        for name in ("gradient descent", "momentum", "Adam", "L-BFGS")
    }
    assert min(least, key=least.get) == "L-BFGS"
    assert least["L-BFGS"] < 1e-6


@pytest.mark.slow
def test_orthogonal_rnn():
    text = run("orthogonal_rnn.py")
    assert number(text, "orthogonal test accuracy") >= 0.93
    assert number(text, "orthogonal max |W W^T - I|") < 1e-5
    assert number(text, "free max |W W^T - I|") > 1e-2
    assert (EXAMPLES / "output" / "orthogonal_rnn.png").stat().st_size > 10_000


@pytest.mark.slow
def test_procrustes_pca():
    text = run("procrustes_pca.py")
    assert number(text, "relative gap") < 1e-3
    optimum = number(text, "Procrustes optimum")
    assert number(text, "the other component") > 1.1 * optimum
    gap = re.search(r"^L-BFGS +gap ([\d.e+-]+)", text, re.MULTILINE)
    assert gap
    assert abs(float(gap[1])) < 1e-12
    assert (EXAMPLES / "output" / "procrustes_pca.png").stat().st_size > 10_000
