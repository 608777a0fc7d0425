"""What torch cannot compile: each in a process of its own, which it may leave broken.

These are the rows of the table in docs/guide/compile-and-vmap.md. A test that fails
here is good news: torch compiles the nesting, and the table loses a row.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "compile-and-vmap.md").read_text()

SCRIPT = """
import torch
from torch.func import jvp, vmap
import pureopt as po
po = po.derivatives
def f(x):
    return x.sin().sum()
def slope(h):
    return lambda t: jvp(h, (t,), (torch.ones_like(t),))[1]
def compiled(g):
    return torch.compile(g, fullgraph=True, backend="aot_eager")
x, v = torch.ones(3), torch.ones(3)
torch.testing.assert_close(compiled({instead})(x), ({instead})(x))
print("instead compiles")
try:
    compiled({fails})(x)
except Exception as error:
    print("fails:", type(error).__name__)
"""

# As in the page: what fails, what to write in its place.
LIMITS = {
    "`jvp` of `jvp` along a line": (
        "lambda x: slope(slope(lambda t: f(x + t * v)))(x.new_zeros(()))",
        "lambda x: po.directional_derivatives(f, x, v, 2)[2]",
    ),
    "`vmap(vmap(hvp))`": (
        "vmap(lambda x: vmap(lambda v: po.hvp(f, x, v))(torch.eye(3)))",
        "vmap(lambda x: vmap(lambda v: po.vhp(f, x, v))(torch.eye(3)))",
    ),
    "`vmap(torch.func.hessian(f))`": (
        "vmap(torch.func.hessian(f))",
        "vmap(po.hessian(f))",
    ),
}


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("name", LIMITS)
def test_torch_does_not_compile_it_and_there_is_something_that_does(name):
    assert name in PAGE
    fails, instead = LIMITS[name]
    batch = "x, v = torch.ones(2, 3), torch.ones(3)\n" if "vmap" in name else ""
    script = SCRIPT.format(fails=fails, instead=instead)
    script = script.replace("torch.testing", batch + "torch.testing")
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert "instead compiles" in done.stdout, done.stderr
    # A crash is a failure too.
    assert "fails:" in done.stdout or done.returncode
