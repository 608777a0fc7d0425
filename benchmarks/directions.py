"""The two forms of the L-BFGS direction, timed: which should be the default where.

One step with a full memory and the gradient given, again and again from the same
state, which a pure step allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pureopt as po
from benchmarks.harness import Report, Row, progress, race, run_piece
from benchmarks.mgh_functions import rosenbrock

FORMS = ("compact", "two_loop")
WARM_UP = 30
"""Evaluations after which the memory of ten pairs is full."""


def _start(lanes: int, n: int) -> Tensor:
    """Lanes that differ, so that their searches do too."""
    pattern = torch.tensor([-1.2, 1.0], dtype=torch.float64).repeat(n // 2)
    return pattern + 0.01 * torch.arange(lanes, dtype=torch.float64)[:, None] / lanes


def _step(form: str, lanes: int, n: int, *, compiled: bool) -> Callable[[], object]:
    """The step of a batch of lanes from the state after :data:`WARM_UP` steps."""
    lbfgs = po.LBFGS(direction=form)

    def single(params: Tensor, state: Any, grads: Tensor, value: Tensor) -> Any:
        return lbfgs.step(params, state, grads, value=value)

    step = torch.func.vmap(single)
    evaluate = torch.func.vmap(torch.func.grad_and_value(rosenbrock))
    params = _start(lanes, n)
    state = torch.func.vmap(lbfgs.init)(params)
    for _ in range(WARM_UP):
        grads, value = evaluate(params)
        params, state = step(params, state, grads, value)
    grads, value = evaluate(params)
    run = torch.compile(step, fullgraph=True) if compiled else step
    return lambda: run(params, state, grads, value)


def measure(*, quick: bool = False) -> Report:
    """Milliseconds a step, eager and compiled, from small batches to one long vector."""
    cases = [(1, 10, False), (357, 4, False), (1, 100_000, False)]
    cases += [(357, 4, True), (1, 100_000, True)]
    if quick:
        cases = [(3, 4, False)]
    rows, details = [], {}
    for lanes, n, compiled in cases:
        how = "compiled" if compiled else "eager"
        name = f"step, ms, {lanes} x {n}, {how}"
        progress(f"  {name}")
        runs = {form: _step(form, lanes, n, compiled=compiled) for form in FORMS}
        times = race(runs, 3 if quick else 30)
        compact, two_loop = (1e3 * times[form].best for form in FORMS)
        rows.append(Row(f"compact {name}", compact, "two_loop", two_loop))
        details[name] = {form: time._asdict() for form, time in times.items()}
    return Report(rows, details)


if __name__ == "__main__":
    run_piece(measure, __doc__)
