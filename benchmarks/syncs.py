"""How often an L-BFGS solve waits for the device: counted, not timed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pureopt as po
from benchmarks.harness import Report, Row, run_piece
from benchmarks.mgh import PROBLEMS


class SyncCounter(TorchDispatchMode):
    """Counts the operators for which the host waits for the device.

    Example:
        >>> with SyncCounter() as counter:
        ...     _ = bool(torch.ones(()) > 0)
        >>> counter.total
        1
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.seen.values())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if _waits(func, args):
            self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether it returns a Python value, or a tensor whose shape depends on values."""
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if func is torch.ops.aten.index.Tensor:
        # Only masks must be counted before the result has a shape.
        return any(i is not None and i.dtype == torch.bool for i in args[1])
    return torch.Tag.dynamic_output_shape in func.tags


def count(run: Callable[[], object]) -> int:
    """The waits while ``run`` runs."""
    with SyncCounter() as counter:
        run()
    return counter.total


def evaluation_and_step(evaluations: int) -> int:
    """The waits of so many evaluations with their L-BFGS steps."""
    problem, solver = PROBLEMS[0], po.LBFGS()
    value_and_grad = torch.func.grad_and_value(problem.fn)

    def run() -> None:
        params = problem.start()
        state = solver.init(params)
        for _ in range(evaluations):
            grads, value = value_and_grad(params)
            params, state = solver.step(params, state, grads, value=value)

    return count(run)


def solve(check_every: int) -> tuple[int, int]:
    """The waits of a whole solve, and how many it may have."""
    problem, solutions = PROBLEMS[0], []

    def run() -> None:
        solutions.append(
            po.minimize(
                *(problem.fn, problem.start()),
                solver=po.LBFGS(),
                gtol=1e-8,
                max_steps=1000,
                check_every=check_every,
            )
        )

    waits = count(run)
    return waits, math.ceil(int(solutions[0].evaluations) / check_every)


def torch_solve() -> tuple[int, int]:
    """The waits and evaluations of ``torch.optim.LBFGS`` on the same problem."""
    problem = PROBLEMS[0]
    params = problem.start().requires_grad_()
    calls = 0
    solver = torch.optim.LBFGS(
        [params],
        max_iter=1000,
        tolerance_grad=1e-8,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        solver.zero_grad()
        loss = problem.fn(params)
        loss.backward()
        return loss

    return count(lambda: solver.step(closure)), calls


def measure(*, quick: bool = False) -> Report:
    """Rosenbrock's function, eagerly: a compiled graph can only have fewer."""
    evaluations = 5 if quick else 40
    theirs, calls = torch_solve()
    rows = [
        Row(
            f"host waits in {evaluations} evaluations",
            evaluation_and_step(evaluations),
            *("torch.optim.LBFGS", theirs * evaluations / calls, "<= 0", "ours"),
        )
    ]
    details: dict[str, Any] = {"torch": {"waits": theirs, "evaluations": calls}}
    for check_every in (10, 25):
        waits, allowed = solve(check_every)
        name = f"host waits in a solve, check_every={check_every}"
        rows.append(Row(name, waits, "reads allowed", allowed, "<= 1"))
        details[f"check_every={check_every}"] = {"waits": waits, "allowed": allowed}
    return Report(rows, details)


if __name__ == "__main__":
    run_piece(measure, __doc__)
