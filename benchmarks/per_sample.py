"""The norms of the gradients per sample, and what memory they take.

Three networks: an MLP 784-320-256-10 of 335,946 parameters at a batch of 256, a small
convolutional network, and a small transformer. The peers are ``vmap(grad)``, with all
samples at once and 32 at a time, which forms each gradient; BackPACK's ``BatchL2Grad``
and opacus with its ghost clipping, which do not; and opacus' ``GradSampleModule``, which
does. BackPACK and opacus look into the modules they know, so the transformer, whose
attention is written out, is not for them. Single precision, and every contender is
checked for the right norms before it is timed.

Memory is the most that is live at once of what a call allocates, by torch's profiler;
the yardstick is one gradient of the whole batch.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

import pureopt as po
from benchmarks.harness import Report, Row, Timing, installed, race, run_piece
from benchmarks.memory import peak_bytes

Run = Callable[[], Tensor]
OURS = "pureopt"
ALL = "vmap(grad)"
CHUNKS = "vmap(grad), 32 at a time"
CHUNK = 32
GRADIENT = "one gradient of the batch"


class Problem(NamedTuple):
    """A network and its batch."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    known: bool  # whether all its modules are known to BackPACK and opacus


class Block(nn.Module):
    """A transformer block, norms first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.transpose(-2, -4).unbind(-3)
        # Torch's fused attention has no rule for vmap and would fall back to a loop.
        attended = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
        x = x + self.out(attended.transpose(-2, -3).flatten(-2))
        return x + self.mlp(self.norms[1](x))


class Mean(nn.Module):
    """Over the positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-2)


def mlp(batch: int, widths: tuple[int, ...]) -> Problem:
    """Linear layers and ReLU."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for m, n in itertools.pairwise(widths):
        layers += [nn.Linear(m, n), nn.ReLU()]
    name = f"MLP {'-'.join(map(str, widths))}, batch {batch}"
    x, y = torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))
    return Problem(name, nn.Sequential(*layers[:-1]), x, y, known=True)


def cnn(batch: int, size: int) -> Problem:
    """Two convolutions and a linear layer."""
    torch.manual_seed(0)
    side = ((size - 5) // 2 + 1 - 3) // 2 + 1
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten()),
        nn.Linear(32 * side**2, 10),
    )
    x, y = torch.randn(batch, 1, size, size), torch.randint(10, (batch,))
    return Problem(f"CNN, {size} x {size}, batch {batch}", model, x, y, known=True)


def transformer(batch: int, tokens: int, width: int) -> Problem:
    """An embedding, two blocks and a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(64, width), Block(width, 4), Block(width, 4), Mean()
    )
    model.append(nn.Linear(width, 10))
    x, y = torch.randint(64, (batch, tokens)), torch.randint(10, (batch,))
    name = f"transformer, {tokens} tokens, batch {batch}"
    return Problem(name, model, x, y, known=False)


def pure(problem: Problem) -> tuple[Callable[..., Tensor], Any]:
    """The loss of one sample, or of a batch where it is given one; and the parameters."""
    apply, params, buffers = po.functionalize(problem.model)

    def loss(params: Any, x: Tensor, y: Tensor) -> Tensor:
        single = y.dim() == 0
        x, y = (x[None], y[None]) if single else (x, y)
        return F.cross_entropy(apply(params, buffers, x)[0], y, reduction="sum")

    return loss, params


def _square(grads: Any) -> Tensor:
    return torch.stack([g.square().sum() for g in grads.values()]).sum()


def norms(problem: Problem) -> dict[str, Run]:
    """Who computes the norms, and how."""
    (loss, params), x, y = pure(problem), problem.x, problem.y
    ours = po.derivatives.per_sample_grad_norms(loss)

    def one(params: Any, x: Tensor, y: Tensor) -> Tensor:
        return _square(grad(loss)(params, x, y)).sqrt()

    every = vmap(one, (None, 0, 0))
    chunked = vmap(one, (None, 0, 0), chunk_size=CHUNK)
    runs: dict[str, Run] = {
        OURS: lambda: ours(params, x, y),
        ALL: lambda: every(params, x, y),
        CHUNKS: lambda: chunked(params, x, y),
    }
    if problem.known and installed("backpack-for-pytorch"):
        runs["BackPACK BatchL2Grad"] = _quietly(_backpack(problem))
    if problem.known and installed("opacus"):
        runs["opacus, ghost clipping"] = _quietly(_opacus_ghost(problem))
        runs["opacus, GradSampleModule"] = _quietly(_opacus_grads(problem))
    return runs


def _backpack(problem: Problem) -> Run:
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    model = extend(copy.deepcopy(problem.model))
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    params = list(model.parameters())

    def run() -> Tensor:
        model.zero_grad()
        value = loss(model(problem.x), problem.y)
        with backpack(BatchL2Grad()):
            value.backward()
        return torch.stack([p.batch_l2 for p in params]).sum(0).sqrt()

    return run


def _opacus_ghost(problem: Problem) -> Run:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost

    model = Ghost(copy.deepcopy(problem.model), loss_reduction="sum")

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        value = F.cross_entropy(model(problem.x), problem.y, reduction="sum")
        value.backward()
        return model.get_norm_sample()

    return run


def _quietly(run: Run) -> Run:
    """Torch warns of hooks on a module whose input needs no gradient, as these set."""

    def quiet() -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook", UserWarning)
            return run()

    return quiet


def _opacus_grads(problem: Problem) -> Run:
    from opacus.grad_sample import GradSampleModule

    model = GradSampleModule(copy.deepcopy(problem.model), loss_reduction="sum")
    params = list(model.parameters())

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        value = F.cross_entropy(model(problem.x), problem.y, reduction="sum")
        value.backward()
        squares = [p.grad_sample.flatten(1).square().sum(1) for p in params]
        return torch.stack(squares).sum(0).sqrt()

    return run


def grams(problem: Problem) -> dict[str, Run]:
    """All inner products of the gradients."""
    (loss, params), x, y = pure(problem), problem.x, problem.y
    ours = po.derivatives.grad_gram(loss)
    every = vmap(grad(loss), (None, 0, 0))

    def formed() -> Tensor:
        grads = [g.flatten(1) for g in every(params, x, y).values()]
        return torch.stack([g @ g.mT for g in grads]).sum(0)

    return {OURS: lambda: ours(params, x, y), ALL: formed}


def of_batch(problem: Problem) -> Run:
    """One gradient of the whole batch."""
    loss, params = pure(problem)
    return lambda: _square(grad(loss)(params, problem.x, problem.y))


def check(runs: dict[str, Run]) -> None:
    """Wrong numbers are not worth timing."""
    answers = {name: run() for name, run in runs.items()}
    right = answers[ALL]
    for name, answer in answers.items():
        # Sums of a few hundred products in single precision, in another order.
        error = float((answer - right).abs().amax() / right.abs().amax())
        if not error < 1e-4:
            raise RuntimeError(f"{name} is off by {error:.1e}")


def compete(
    what: str, runs: dict[str, Run], rounds: int, target: str
) -> tuple[list[Row], dict[str, Timing]]:
    """The times of contenders that agree; the target is about ``vmap(grad)``."""
    check(runs)
    times = race(runs, rounds)
    ours = 1e3 * times[OURS].best
    rows = [
        Row(
            f"{what}, ms",
            *(ours, name, 1e3 * timing.best, target if name == ALL else ""),
            judged="speedup",
        )
        for name, timing in times.items()
        if name != OURS
    ]
    return rows, times


def memory(problem: Problem, runs: dict[str, Run], shown: set[str]) -> dict[str, int]:
    """The peaks, that of one gradient among them."""
    peaks = {name: peak_bytes(run) for name, run in runs.items() if name in shown}
    return {**peaks, GRADIENT: peak_bytes(of_batch(problem))}


def measure(*, quick: bool = False) -> Report:
    """The rows of the three networks."""
    rounds = 2 if quick else 10
    if quick:
        problems = [mlp(6, (7, 5, 4)), cnn(3, 12), transformer(3, 4, 8)]
    else:
        problems = [mlp(256, (784, 320, 256, 10)), cnn(128, 28)]
        problems.append(transformer(64, 32, 64))
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for problem in problems:
        headline = problem is problems[0]
        runs = norms(problem)
        what = f"{problem.name}: norms"
        new, times = compete(what, runs, rounds, ">= 30" if headline else "")
        # A gradient is the least that any of them could cost.
        base = race({GRADIENT: of_batch(problem)}, rounds)
        ours = 1e3 * times[OURS].best
        new.append(Row(f"{what}, ms", ours, GRADIENT, 1e3 * base[GRADIENT].best))
        peaks = memory(problem, runs, set(runs) if headline else {OURS, ALL})
        new += [
            Row(
                f"{problem.name}: peak memory of the norms, MB",
                *(peaks[OURS] / 1e6, name, peak / 1e6),
                "<= 2" if headline and name == GRADIENT else "",
            )
            for name, peak in peaks.items()
            if name != OURS
        ]
        rows += new
        details[problem.name] = {
            "parameters": sum(p.numel() for p in problem.model.parameters()),
            "peak_bytes": peaks,
            "times": {n: timing._asdict() for n, timing in (times | base).items()},
        }
    for problem in problems:
        what = f"{problem.name}: inner products"
        new, times = compete(what, grams(problem), rounds, "")
        details[what] = {name: timing._asdict() for name, timing in times.items()}
        rows += new
    return Report(rows, details)


if __name__ == "__main__":
    run_piece(measure, __doc__)
