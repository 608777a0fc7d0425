"""Derivatives of high order and Laplacians of a network, against nested transforms.

The network is R^50 -> R with three layers of width 256 and tanh, at 64 points. Of its
derivatives along a direction, order by order, the peers are the nestings that torch.func
offers: the gradient times the direction again and again; ``grad`` of ``grad`` along a
line, of all points at once (of a sum, since they do not mix) or under ``vmap``; and
``jvp`` of ``jvp``. torch-jet, the other Taylor mode for torch, needs
Python 3.12 or later and is not compared with here.

The Laplacians run at a point, and under ``vmap``, as those of a batch do, at 1, 16 and
64 points. The one by hand is for this network alone and writes to memory that it keeps.
Its products alone are what no method can do without that carries a vector for each
dimension: how many times faster than the trace they are bounds all such methods that
multiply by ``torch.mm``. At last, what ``exact`` costs where nothing asks for it: one
gradient of a network with layer norms.

Every contender is checked for the right numbers before it is timed, and timed in bursts
as long as one call of the slowest: each pays for the caches and the memory that another
one left, and none more often than the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap

import pureopt as po
from benchmarks.harness import Report, Row, Timing, race, race_in_bursts, run_piece

Run = Callable[[], Tensor]
OURS = "pureopt"
SLOPES = "nested <torch.func.grad, v>"
NESTED_GRAD = "nested torch.func.grad along t"
EACH_POINT = "vmap of nested torch.func.grad along t"
NESTED_JVP = "nested torch.func.jvp"
TRACE = "trace of torch.func.hessian"
BY_HAND = "by hand, in place"
PRODUCTS = "matrix products alone"
# No burst takes less, in seconds.
SHORTEST = 0.02
# How far apart two right answers may be, relative to the largest number: the layers add
# up 256 products, and each order multiplies the error of the one before.
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-9}


class Weights(NamedTuple):
    """Three layers of weights and biases, and the weights of the sum of their outputs."""

    layers: list[tuple[Tensor, Tensor]]
    last: Tensor


def drawn(inputs: int, width: int, dtype: torch.dtype) -> Weights:
    """The weights of the network."""
    draw = torch.Generator().manual_seed(0)
    layers = [
        (
            torch.randn(n, m, generator=draw, dtype=dtype) / m**0.5,
            torch.randn(n, generator=draw, dtype=dtype) / 10,
        )
        for m, n in ((inputs, width), (width, width), (width, width))
    ]
    return Weights(layers, torch.randn(width, generator=draw, dtype=dtype) / width**0.5)


def network(weights: Weights) -> Callable[[Tensor], Tensor]:
    """The function of a point; it maps over leading dimensions."""

    def f(x: Tensor) -> Tensor:
        for weight, bias in weights.layers:
            x = torch.tanh(nn.functional.linear(x, weight, bias))
        return x @ weights.last

    return f


def points(batch: int, inputs: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """Where the derivatives are taken, or along what."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, inputs, generator=draw, dtype=dtype)


def nested_slopes(
    f: Callable[[Tensor], Tensor], v: Tensor, order: int
) -> Callable[[Tensor], Tensor]:
    """As the definition has it: the gradient times the direction, again and again."""
    for _ in range(order):
        f = lambda x, f=f: (grad(lambda x: f(x).sum())(x) * v).sum(-1)  # noqa: E731
    return f


def nested_grad(
    f: Callable[[Tensor], Tensor], order: int
) -> Callable[[Tensor], Tensor]:
    """``grad`` of ``grad``; lanes of ``t`` do not mix, so the sum takes them all."""
    for _ in range(order):
        f = grad(lambda t, f=f: f(t).sum())
    return f


def nested_jvp(f: Callable[[Tensor], Tensor], order: int) -> Callable[[Tensor], Tensor]:
    """``jvp`` of ``jvp``."""
    for _ in range(order):
        f = lambda t, f=f: jvp(f, (t,), (torch.ones_like(t),))[1]  # noqa: E731
    return f


def directional(
    f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int
) -> dict[str, Run]:
    """The derivative of this order along ``v``, at every point."""

    def line(t: Tensor) -> Tensor:
        return f(x + t[:, None] * v)

    def one(x: Tensor, v: Tensor) -> Tensor:
        return nested_grad(lambda t: f(x + t * v), order)(x.new_zeros(()))

    zero = x.new_zeros(len(x))
    ours = po.derivatives.directional_derivatives
    return {
        OURS: lambda: ours(f, x, v, order)[order],
        SLOPES: lambda: nested_slopes(f, v, order)(x),
        NESTED_GRAD: lambda: nested_grad(line, order)(zero),
        EACH_POINT: lambda: vmap(one)(x, v),
        NESTED_JVP: lambda: nested_jvp(line, order)(zero),
    }


def by_hand(weights: Weights, x: Tensor) -> Run:
    """The collapsed Laplacian of this network alone, in memory that it keeps.

    What it does are the two products that no such method can do without, each of every
    direction at every point with the weights, and four passes over their results.
    """
    (first, bias), *rest = weights.layers
    lengths = first.square().sum(1)
    directions = first.mT.contiguous().unsqueeze(1)
    a = x.new_empty(x.shape[1], x.shape[0], first.shape[0])
    b = torch.empty_like(a)

    def run() -> Tensor:
        y = torch.tanh(nn.functional.linear(x, first, bias))
        slope = 1 - y * y
        second = -2 * y * slope * lengths
        torch.mul(slope, directions, out=a)
        for i, (weight, shift) in enumerate(rest):
            torch.mm(a.flatten(0, 1), weight.mT, out=b.flatten(0, 1))
            y = torch.tanh(nn.functional.linear(y, weight, shift))
            slope = 1 - y * y
            squares = torch.mul(b, b, out=a).sum(0)
            second = slope * (nn.functional.linear(second, weight) - 2 * y * squares)
            if i + 1 < len(rest):
                torch.mul(b, slope, out=a)
        return second @ weights.last

    return run


def products(weights: Weights, x: Tensor) -> Run:
    """The matrix products of :func:`by_hand` and nothing else.

    In each layer those of the value, of the Laplacian and of one vector for each
    dimension; those of the first layer are the same for all points, and left out.
    """
    _, *rest = weights.layers
    rows = (x.shape[1] + 2) * x.shape[0]
    a = x.new_ones(rows, rest[0][0].shape[1])
    b = torch.empty_like(a)

    def run() -> Tensor:
        for weight, _ in rest:
            torch.mm(a, weight.mT, out=b)
        return b

    return run


def laplacian_at(weights: Weights, x: Tensor) -> dict[str, Run]:
    """The Laplacian at a point, without ``vmap``."""
    f = network(weights)
    return {
        OURS: lambda: po.derivatives.laplacian(f)(x),
        TRACE: lambda: hessian(f)(x).trace(),
    }


def laplacians(weights: Weights, x: Tensor) -> dict[str, Run]:
    """The Laplacian at every point."""
    f = network(weights)
    basis = torch.eye(x.shape[1], dtype=x.dtype)

    def along(second: Callable[[Tensor, Tensor], Tensor]) -> Run:
        every = vmap(lambda x: vmap(lambda e: second(x, e))(basis).sum())
        return lambda: every(x)

    def over_reverse(x: Tensor, e: Tensor) -> Tensor:
        return e @ jvp(grad(f), (x,), (e,))[1]

    def over_forward(x: Tensor, e: Tensor) -> Tensor:
        def first(x: Tensor) -> Tensor:
            return jvp(f, (x,), (e,))[1]

        return jvp(first, (x,), (e,))[1]

    ours = vmap(po.derivatives.laplacian(f))
    trace = vmap(lambda x: hessian(f)(x).trace())
    return {
        OURS: lambda: ours(x),
        TRACE: lambda: trace(x),
        "jvp of grad, over directions": along(over_reverse),
        "jvp of jvp, over directions": along(over_forward),
        BY_HAND: by_hand(weights, x),
    }


def gradients(width: int) -> dict[str, Run]:
    """The gradient of a network with layer norms, with ``exact`` and without."""
    torch.manual_seed(0)
    block = [nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
    model = nn.Sequential(*block, nn.Linear(width, width), nn.LayerNorm(width))
    apply, params, buffers = po.functionalize(model)
    x = points(64, width, torch.float32)

    def loss(params: Any) -> Tensor:
        return apply(params, buffers, x)[0].square().sin().mean()

    def flat(f: Callable[[Any], Tensor]) -> Run:
        return lambda: torch.cat([g.flatten() for g in grad(f)(params).values()])

    return {
        "grad(exact(f))": flat(po.derivatives.exact(loss)),
        "grad(f)": flat(loss),
    }


def contest(
    runs: dict[str, Run],
    dtype: torch.dtype,
    rounds: int,
    unchecked: dict[str, Run] | None = None,
) -> dict[str, Timing]:
    """Time the runs, once they have been found to agree, and those without an answer."""
    answers = {name: run() for name, run in runs.items()}
    right = next(iter(answers.values()))
    for name, answer in answers.items():
        error = float((answer - right).abs().amax() / right.abs().amax())
        if not error < CLOSE[dtype]:
            raise RuntimeError(f"{name} is off by {error:.1e}")
    runs = runs | (unchecked or {})
    slowest = max(timing.best for timing in race(runs, 1).values())
    return race_in_bursts(runs, rounds, max(slowest, SHORTEST))


class Rows:
    """The table as it grows, and all times for the details."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.details: dict[str, dict[str, Any]] = {}

    def compare(
        self,
        what: str,
        times: dict[str, Timing],
        targets: dict[str, str] | None = None,
    ) -> None:
        """The first of these against each of the others."""
        ours, *peers = times
        against = f"{what}, against {' and '.join(peers)}"
        self.details[against] = {name: t._asdict() for name, t in times.items()}
        self.rows += [
            Row(
                f"{what}, ms",
                1e3 * times[ours].best,
                peer,
                1e3 * times[peer].best,
                (targets or {}).get(peer, ""),
                judged="speedup",
            )
            for peer in peers
        ]


def measure(*, quick: bool = False) -> Report:
    """The rows: milliseconds a call, the least of the rounds."""
    inputs, width, batch = (4, 8, 8) if quick else (50, 256, 64)
    orders = (2, 4) if quick else (2, 4, 8)
    table = Rows()

    f = network(drawn(inputs, width, torch.float64))
    x, v = (points(batch, inputs, torch.float64, seed) for seed in (1, 2))
    for order in orders:
        what = f"derivative {order} along a line, float64"
        runs = directional(f, x, v, order)
        # One call of the last one takes seconds at order 8: it has a race of its own.
        slow = runs.pop(NESTED_JVP)
        rounds = 2 if quick else max(12, 40 // order)
        times = contest(runs, x.dtype, rounds)
        reverse = dict.fromkeys((SLOPES, NESTED_GRAD, EACH_POINT), ">= 100")
        table.compare(what, times, reverse if order == 8 else None)
        runs = {OURS: runs[OURS], NESTED_JVP: slow}
        table.compare(what, contest(runs, x.dtype, 1 if order == 8 else rounds))

    for dtype in (torch.float32, torch.float64):
        weights = drawn(inputs, width, dtype)
        where = f"Laplacian in {inputs} dimensions, {named(dtype)}"
        runs = laplacian_at(weights, points(1, inputs, dtype)[0])
        times = contest(runs, dtype, 2 if quick else 15)
        table.compare(f"{where}, at a point", times, {TRACE: ">= 3"})
        for count in (1, batch // 4, batch):
            what = f"{where}, {count} point"
            x = points(count, inputs, dtype)
            what += "s" if count > 1 else ""
            runs = laplacians(weights, x)
            bare = {PRODUCTS: products(weights, x)}
            if count < batch:
                runs, bare = {name: runs[name] for name in (OURS, TRACE)}, {}
            times = contest(runs, dtype, 2 if quick else 15, bare)
            table.compare(what, times, {TRACE: ">= 3"})

    runs = gradients(8 if quick else 256)
    times = contest(runs, torch.float32, 3 if quick else 100)
    exact, plain = (1e3 * timing.best for timing in times.values())
    what = "gradient through layer norms, grad(exact(f)), ms"
    table.rows.append(Row(what, exact, "grad(f)", plain))
    what = "gradient through layer norms"
    table.details[what] = {k: t._asdict() for k, t in times.items()}
    return Report(table.rows, {"times": table.details})


def named(dtype: torch.dtype) -> str:
    """As users write it, without the module."""
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    run_piece(measure, __doc__)
