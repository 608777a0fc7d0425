r"""357 fits of :math:`y = a e^{-b t} + c` at once, against peers.

Every lane has its own data and status. The same data, start, float64 and tolerance for
everyone; the loss and gradient at the returned points are evaluated anew, so that the
times can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pureopt as po
from benchmarks.harness import Report, Row, installed, progress, race, run_piece

LANES, POINTS, TOLERANCE, BUDGET = 357, 40, 1e-8, 1000
OURS = "pureopt, batched, compiled"
LOOP = "torch.optim.LBFGS, in a loop"


def data(lanes: int) -> tuple[Tensor, Tensor]:
    """The times, shared, and the noisy observations of every lane."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        unit = torch.rand(lanes, 1, generator=generator, dtype=torch.float64)
        return low + (high - low) * unit

    t = torch.linspace(0, 5, POINTS, dtype=torch.float64)
    a, b, c = uniform(0.5, 3.0), uniform(0.3, 2.5), uniform(-1.0, 1.0)
    noise = torch.randn(lanes, POINTS, generator=generator, dtype=torch.float64)
    return t, a * (-b * t).exp() + c + 0.02 * noise


def starts(lanes: int) -> Tensor:
    """The same start for every lane."""
    return torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64).repeat(lanes, 1)


class Fit:
    """The mean square residual of one lane: ``loss(params, y)``."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def __call__(self, params: Tensor, y: Tensor) -> Tensor:
        a, b, c = params.unbind(-1)
        return (a * (-b * self.t).exp() + c - y).square().mean()


def quality(fit: Fit, params: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and largest gradient entry of every lane."""
    grads, loss = torch.func.vmap(torch.func.grad_and_value(fit))(params, y)
    return loss, grads.abs().amax(1)


def pureopt_run(fit: Fit, y: Tensor) -> Callable[[], Tensor]:
    """One compiled graph of all lanes, called until every lane has ended."""
    start, lbfgs = starts(len(y)), po.LBFGS()

    def run() -> Tensor:
        return po.minimize(
            *(fit, start),
            solver=lbfgs,
            args=(y,),
            batched=True,
            compile=True,
            gtol=TOLERANCE,
            max_steps=BUDGET,
            # The peers look at every step; on a CPU a look costs microseconds.
            check_every=2,
        ).params

    return run


def torch_loop(fit: Fit, y: Tensor) -> Tensor:
    """A solver per lane, one after the other."""
    return torch.stack([_torch_fit(fit, lane) for lane in y])


def _torch_fit(fit: Fit, y: Tensor) -> Tensor:
    x = starts(1)[0].requires_grad_()
    solver = torch.optim.LBFGS(
        [x],
        max_iter=BUDGET,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = fit(x, y)
        loss.backward()
        return loss

    solver.step(closure)
    return x.detach()


def _jax_loss(t: Tensor) -> Callable[[Any, Any], Any]:
    import jax.numpy as jnp

    times = jnp.asarray(t.numpy())

    def loss(params: Any, y: Any) -> Any:
        a, b, c = params
        return jnp.mean((a * jnp.exp(-b * times) + c - y) ** 2)

    return loss


def _jax_run(solve: Callable[[Any, Any], Any], y: Tensor) -> Callable[[], Tensor]:
    """``jit(vmap(solve))`` on the data, from tensors to tensors."""
    import jax

    lanes = jax.numpy.asarray(y.numpy())
    start = jax.numpy.asarray(starts(len(y)).numpy())
    solved = jax.jit(jax.vmap(solve))

    def run() -> Tensor:
        return torch.from_numpy(np.array(solved(start, lanes)))

    return run


def jax_runs(fit: Fit, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The peers in jax, as far as they are installed."""
    if not installed("jax"):
        return {}
    import jax

    jax.config.update("jax_enable_x64", True)
    loss = _jax_loss(fit.t)
    runs: dict[str, Callable[[], Tensor]] = {}
    if installed("jaxopt"):
        runs["jaxopt LBFGS, jit(vmap)"] = _jax_run(_jaxopt(loss), y)
    if installed("optimistix"):
        for name in ("LBFGS", "BFGS"):
            solve = _optimistix(loss, name)
            runs[f"optimistix {name}, jit(vmap)"] = _jax_run(solve, y)
    return runs


def _jaxopt(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    import warnings

    with warnings.catch_warnings():
        # It says that it is no longer maintained.
        warnings.simplefilter("ignore", DeprecationWarning)
        import jaxopt

    solver = jaxopt.LBFGS(loss, tol=TOLERANCE, maxiter=BUDGET, history_size=10)
    return lambda start, y: solver.run(start, y=y).params


def _optimistix(
    loss: Callable[[Any, Any], Any], name: str
) -> Callable[[Any, Any], Any]:
    """It stops on the change of point and value, never on the gradient."""
    import optimistix

    solver = getattr(optimistix, name)(rtol=TOLERANCE, atol=TOLERANCE)

    def solve(start: Any, y: Any) -> Any:
        return optimistix.minimise(
            loss, solver, start, args=y, max_steps=BUDGET, throw=False
        ).value

    return solve


def _timed_loop(fit: Fit, y: Tensor, rounds: int) -> tuple[Tensor, float]:
    """The loop over all lanes, and its seconds, the least of the rounds."""
    progress(f"  torch.optim.LBFGS on {len(y)} lanes")
    torch_loop(fit, y[:2])
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        params = torch_loop(fit, y)
        seconds.append(time.perf_counter() - begin)
    return params, min(seconds)


def measure(*, quick: bool = False) -> Report:
    """Seconds for all fits, the least of the rounds; the first call is apart."""
    lanes = 16 if quick else LANES
    t, y = data(lanes)
    fit = Fit(t)
    looped, loop_seconds = _timed_loop(fit, y, 1 if quick else 3)
    runs = {OURS: pureopt_run(fit, y), **jax_runs(fit, y)}
    times = race(runs, 2 if quick else 15)
    answers = {name: run() for name, run in runs.items()} | {LOOP: looped}
    best = torch.stack([quality(fit, x, y)[0] for x in answers.values()]).amin(0)
    details: dict[str, Any] = {
        name: {
            **_quality(fit, x, y, best),
            **(times[name]._asdict() if name in times else {"best": loop_seconds}),
        }
        for name, x in answers.items()
    }
    ours = times[OURS]
    rows = [
        Row("fits, s", ours.best, LOOP, loop_seconds, ">= 100", "speedup"),
        *(
            Row("fits, s", ours.best, name, times[name].best, ">= 1", "speedup")
            for name in runs
            if name != OURS
        ),
        *(
            Row("first call, s", ours.first, name, times[name].first)
            for name in runs
            if name != OURS
        ),
        *(
            Row(
                "lanes with gradient <= 1e-6",
                *(details[OURS]["solved"], name, details[name]["solved"]),
                *(f">= {lanes}", "ours"),
            )
            for name in answers
            if name != OURS
        ),
    ]
    return Report(rows, details)


def _quality(fit: Fit, params: Tensor, y: Tensor, best: Tensor) -> dict[str, Any]:
    """How good the answers are: gradients, and losses above the best of all solvers."""
    loss, size = quality(fit, params, y)
    return {
        "lanes": len(params),
        "solved": int((size <= 1e-6).sum()),
        "largest_gradient": float(size.amax()),
        "median_gradient": float(size.median()),
        "largest_excess_loss": float((loss - best).amax()),
    }


if __name__ == "__main__":
    run_piece(measure, __doc__)
