"""Forward and backward of a constrained weight, against torch and geotorch.

Every contender holds the same kind of weight, in float32: the time is that of reading
it and of the gradient of a weighted sum of its entries with respect to what is trained.
The peers are read through their modules, as their users do; pureopt through the
constraint. All run eagerly, in bursts of at least 20 ms, so that none is timed with the
memory that another one left. Each map is checked before it is timed: the weight is in
its set, and the gradient is not zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.harness import Report, Row, Timing, installed, race_in_bursts, run_piece
from pureopt.constraints import Orthogonal, PositiveDefinite

Run = Callable[[], tuple[Tensor, Tensor]]


def ours(constraint, y: Tensor) -> Run:
    """The constraint at ``y``."""
    static = constraint.bind(y)
    x = constraint.right_inverse(y, static).requires_grad_()
    weights = _weights(y)

    def run() -> tuple[Tensor, Tensor]:
        w = constraint.forward(x, static)
        return w, torch.autograd.grad((w * weights).sum(), x)[0]

    return run


def of_module(register: Callable[[nn.Module], object], y: Tensor) -> Run:
    """A linear layer with weight ``y``, once ``register`` has constrained it."""
    layer = nn.Linear(y.shape[1], y.shape[0], bias=False)
    layer.weight = nn.Parameter(y.clone())
    register(layer)
    layer.weight = y
    weights = _weights(y)
    # Some maps also keep numbers that get no gradient.
    trained = [p for p in layer.parameters() if p.requires_grad]

    def run() -> tuple[Tensor, Tensor]:
        w = layer.weight
        return w, torch.autograd.grad((w * weights).sum(), trained)[0]

    return run


def torch_map(name: str | None) -> Callable[[nn.Module], object]:
    """Torch's own maps; ``None`` is its default for the shape."""
    return lambda layer: parametrizations.orthogonal(layer, orthogonal_map=name)


def geotorch_map(kind: str) -> Callable[[nn.Module], object]:
    """A map of geotorch."""
    import geotorch

    return lambda layer: getattr(geotorch, kind)(layer, "weight")


def _weights(y: Tensor) -> Tensor:
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)


def _orthogonal(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)


def _positive_definite(n: int) -> Tensor:
    a = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(0))
    return a @ a.mT / (2 * n)


def _check(name: str, run: Run, y: Tensor) -> None:
    """A map that is wrong is not worth timing."""
    w, gradient = run()
    if not torch.allclose(w, y, atol=1e-3) or not bool(gradient.any()):
        raise RuntimeError(f"{name} does not return the weight that was assigned")


def contest(runs: dict[str, Run], y: Tensor, rounds: int) -> dict[str, Timing]:
    """Check and time each: seconds for one forward and backward."""
    for name, run in runs.items():
        _check(name, run, y)
    return race_in_bursts(runs, rounds)


def measure(*, quick: bool = False) -> Report:
    """The rows of the constraints."""
    rounds = 3 if quick else 30
    geo = installed("geotorch")
    tall = _orthogonal(*((48, 8) if quick else (512, 32)))
    square = _orthogonal(*((16, 16) if quick else (256, 256)))
    definite = _positive_definite(16 if quick else 256)
    rows: list[Row] = []
    details: dict[str, dict[str, Timing]] = {}

    def compare(what: str, y: Tensor, runs: dict[str, Run], targets: dict) -> None:
        times = details[what] = contest(runs, y, rounds)
        mine = 1e3 * times["pureopt"].median
        rows.extend(
            Row(
                f"{what}, forward and backward, ms",
                *(mine, peer, 1e3 * timing.median, targets.get(peer, "")),
                judged="speedup",
            )
            for peer, timing in times.items()
            if peer != "pureopt"
        )

    shape = "x".join(map(str, tall.shape))
    runs = {"pureopt": ours(Orthogonal(), tall)}
    runs["torch, default (householder)"] = of_module(torch_map(None), tall)
    runs["torch, cayley"] = of_module(torch_map("cayley"), tall)
    if geo:
        runs["geotorch, default"] = of_module(geotorch_map("orthogonal"), tall)
    targets = dict.fromkeys(("torch, default (householder)", "geotorch, default"))
    compare(f"Orthogonal {shape}", tall, runs, dict.fromkeys(targets, ">= 10"))

    shape = "x".join(map(str, square.shape))
    runs = {"pureopt": ours(Orthogonal(), square)}
    runs["torch, matrix_exp (default)"] = of_module(torch_map("matrix_exp"), square)
    runs["torch, cayley"] = of_module(torch_map("cayley"), square)
    if geo:
        runs["geotorch, default"] = of_module(geotorch_map("orthogonal"), square)
    targets = {"torch, matrix_exp (default)": ">= 3"}
    compare(f"Orthogonal {shape}", square, runs, targets)

    if geo:
        shape = "x".join(map(str, definite.shape))
        runs = {"pureopt": ours(PositiveDefinite(), definite)}
        runs["geotorch"] = of_module(geotorch_map("positive_definite"), definite)
        compare(f"PositiveDefinite {shape}", definite, runs, {})
    return Report(rows, {"times": {k: _plain(v) for k, v in details.items()}})


def _plain(times: dict[str, Timing]) -> dict[str, dict[str, float]]:
    return {name: timing._asdict() for name, timing in times.items()}


if __name__ == "__main__":
    run_piece(measure, __doc__)
