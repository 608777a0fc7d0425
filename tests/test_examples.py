"""The examples run, and reach what their pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# torch's own modules still use it, the first time that forward mode runs.
TORCH_JIT = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"


def run(name: str) -> str:
    """What the example prints; without the compiler, whose code other tests check."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", TORCH_JIT, str(EXAMPLES / name)],
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


@pytest.mark.slow
def test_taylor():
    text = run("taylor.py")
    # A few hundred roundings of 1.1e-16; measured 8.4e-16.
    assert number(text, "largest relative error, orders 0 to 8") < 1e-13
    # Measured 700 to 1000 at order 8. A slow machine ends at a lower order.
    assert number(text, "nested grad over Taylor mode") > 20
    assert number(text, "nested jvp over Taylor mode") > 20
    for label in ("the same with exact", "and by Taylor mode"):
        assert number(text, label) == -1.68768
    assert (EXAMPLES / "output" / "taylor.png").stat().st_size > 10_000


@pytest.mark.slow
def test_pinn():
    text = run("pinn.py")
    # Measured 2.0e-4; the path of L-BFGS depends on rounding.
    assert number(text, "relative L2 error") < 1e-3
    assert (EXAMPLES / "output" / "pinn.png").stat().st_size > 10_000


@pytest.mark.slow
def test_curvature():
    text = run("curvature.py")
    # Measured 1.01 to 1.02: the eigenvalue swings about the limit, seldom below it.
    for rate in ("0.5", "0.4", "0.3"):
        ratio = f"step size {rate}: largest eigenvalue / (2 / step size)"
        assert 0.95 < number(text, ratio) < 1.1
    # Ten probes and a window of four standard errors: missed once in 300 keys, and the
    # key is fixed.
    above = number(text, "eigenvalues above 0.5, true")
    stderr = number(text, "standard error")
    assert abs(number(text, "estimated") - above) < 4 * stderr
    assert stderr < 0.2 * above
    # Twenty steps see the largest of eigenvalues 0.1 apart to 1e-3, float32 to 1e-5.
    largest = number(text, "largest eigenvalue, true")
    assert abs(number(text, "by Lanczos") / largest - 1) < 3e-3
    assert (EXAMPLES / "output" / "curvature.png").stat().st_size > 10_000
