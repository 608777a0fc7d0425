"""Curvature of small networks: products, the dense Hessian, traces and spectra.

The products are those of an MLP 784-64-10 with tanh at a batch of 256, in single
precision, and the peers of ``hvp`` are the bare composition of torch.func, which is not
corrected as pureopt's is, and curvlinops. The dense Hessian is that of a network 12-12-8.

All else is about the Gauss-Newton matrix of a network 64-10-10 on scikit-learn's digits,
in double precision, whose spectrum is known because the matrix is small: estimates cost
each contender the same number of products, and their errors are those of 10 seeds. The
log-determinant, which curvlinops lacks, and the top eigenpairs stand beside dense
linear algebra, ARPACK (scipy's ``eigsh``) and LOBPCG on the matrix.

Every contender is checked before it is timed: products and eigenvalues against the
dense matrix, estimates to be near the number that they estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, hessian, jvp

import pureopt as po
from benchmarks.harness import Report, Row, Timing, installed, race, run_piece
from benchmarks.memory import peak_bytes
from benchmarks.networks import Network, Tree, digits, flat, like, noise

Run = Callable[[], Any]
OURS = "pureopt"


def compare(
    what: str, runs: dict[str, Run], rounds: int, details: dict[str, Any]
) -> list[Row]:
    """The rows of a race, in milliseconds."""
    times: dict[str, Timing] = race(runs, rounds)
    details[what] = {name: timing._asdict() for name, timing in times.items()}
    ours = 1e3 * times[OURS].best
    return [
        Row(f"{what}, ms", ours, name, 1e3 * timing.best, judged="speedup")
        for name, timing in times.items()
        if name != OURS
    ]


def agree(runs: dict[str, Run], tolerance: float) -> dict[str, Run]:
    """The runs, once their first numbers are the same."""
    answers = {name: run() for name, run in runs.items()}
    right = next(iter(answers.values()))
    for name, answer in answers.items():
        error = float((answer - right).abs().amax() / right.abs().amax())
        if not error < tolerance:
            raise RuntimeError(f"{name} is off by {error:.1e}")
    return runs


def products(net: Network, rounds: int, details: dict[str, Any]) -> list[Row]:
    """Hessian and Gauss-Newton matrix times a vector."""
    d = po.derivatives
    params = net.params
    size = sum(leaf.numel() for leaf in params.values())
    v = torch.randn(size, generator=torch.Generator().manual_seed(2))
    tree = like(params, v)
    gradient = grad(net.loss)
    peers = installed("curvlinops-for-pytorch")
    runs = {
        OURS: lambda: flat(d.hvp(net.loss, params, tree)),
        "jvp of grad": lambda: flat(jvp(gradient, (params,), (tree,))[1]),
    }
    if peers:
        exact_hessian = net.curvlinops("Hessian")
        runs["curvlinops"] = lambda: exact_hessian @ v
    # Sums of a few hundred products in single precision, in another order.
    rows = compare(f"hvp, {size} parameters", agree(runs, 1e-4), rounds, details)
    if peers:
        gauss_newton = net.curvlinops("GGN")
        runs = {
            OURS: lambda: flat(d.ggnvp(net.outputs, net.of_outputs, params, tree)),
            "curvlinops": lambda: gauss_newton @ v,
        }
        what = f"ggnvp, {size} parameters"
        rows += compare(what, agree(runs, 1e-4), rounds, details)
    return rows


def dense(net: Network, chunk: int, rounds: int, details: dict[str, Any]) -> list[Row]:
    """The Hessian as a matrix: all columns at once, and so many at a time."""
    params = flat(net.params)

    def loss(x: Tensor) -> Tensor:
        return net.loss(like(net.params, x))

    by_chunks = po.derivatives.hessian(loss, chunk_size=chunk)
    chunks = f"pureopt, {chunk} columns at a time"
    runs = {
        OURS: lambda: po.derivatives.hessian(loss)(params),
        chunks: lambda: by_chunks(params),
        "torch.func.hessian": lambda: hessian(loss)(params),
    }
    what = f"hessian, {len(params)} parameters"
    rows = compare(what, agree(runs, 1e-4), rounds, details)
    peaks = {name: peak_bytes(run) / 1e6 for name, run in runs.items()}
    ours = f"{what}: peak memory, {chunk} columns at a time, MB"
    rows += [
        Row(ours, peaks[chunks], name, peak)
        for name, peak in peaks.items()
        if name != chunks
    ]
    return rows


class Spectrum(NamedTuple):
    """The Gauss-Newton matrix, as an operator and in full."""

    net: Network
    matvec: Callable[[Tree], Tree]
    matrix: Tensor
    eigenvalues: Tensor


def gauss_newton(net: Network) -> Spectrum:
    """The operator of the estimates."""

    def matvec(v: Tree) -> Tree:
        return po.derivatives.ggnvp(net.outputs, net.of_outputs, net.params, v)

    n = sum(leaf.numel() for leaf in net.params.values())
    eye = torch.eye(n, dtype=torch.float64)
    columns = torch.func.vmap(lambda v: flat(matvec(like(net.params, v))))(eye)
    matrix = (columns + columns.mT) / 2
    return Spectrum(net, matvec, matrix, torch.linalg.eigvalsh(matrix))


def error_of(
    estimate: Callable[[int], Tensor], right: Tensor, seeds: int, name: str
) -> float:
    """The root of the mean squared relative error over seeds; one far off is wrong."""
    scale = right.abs().sum()
    errors = [
        float((estimate(seed) - right).abs().sum() / scale) for seed in range(seeds)
    ]
    error = math.sqrt(sum(e**2 for e in errors) / seeds)
    # Worse than any of these methods does with a few dozen products.
    if not error < 0.5:
        raise RuntimeError(f"{name} is off by {error:.1e}")
    return error


def estimates(
    what: str,
    contenders: dict[str, Callable[[int], Tensor]],
    right: Tensor,
    rounds: int,
    details: dict[str, Any],
) -> list[Row]:
    """Errors, over as many seeds as rounds, and times of estimates of the same."""
    errors = {
        name: error_of(estimate, right, rounds, name)
        for name, estimate in contenders.items()
    }
    rows = [
        Row(f"{what}: relative error", errors[OURS], name, error)
        for name, error in errors.items()
        if name != OURS
    ]
    runs = {
        name: lambda estimate=estimate: estimate(0)
        for name, estimate in contenders.items()
    }
    return rows + compare(what, runs, rounds, details)


def traces(a: Spectrum, matvecs: int, rounds: int, details: dict) -> list[Row]:
    """Hutchinson, Hutch++ and XTrace at as many products."""
    d, params = po.derivatives, a.net.params
    if not installed("curvlinops-for-pytorch"):
        return []
    import curvlinops

    operator = a.net.curvlinops("GGN")

    def theirs(method: Callable[..., Tensor]) -> Callable[[int], Tensor]:
        def estimate(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return method(operator, matvecs)

        return estimate

    def ours(method: Callable[..., Any]) -> Callable[[int], Tensor]:
        def estimate(seed: int) -> Tensor:
            key = po.random.key(seed)
            return method(a.matvec, params, key=key, matvecs=matvecs).value

        return estimate

    methods = {
        "Hutchinson": (ours(d.trace_hutchinson), theirs(curvlinops.hutchinson_trace)),
        "Hutch++": (ours(d.trace_hutchpp), theirs(curvlinops.hutchpp_trace)),
        "XTrace": (ours(d.trace_xtrace), theirs(curvlinops.xtrace)),
    }
    rows: list[Row] = []
    for name, (mine, peer) in methods.items():
        what = f"trace, {name}, {matvecs} products"
        contenders = {OURS: mine, "curvlinops": peer}
        right = a.eigenvalues.sum()
        rows += estimates(what, contenders, right, rounds, details)
    return rows


def densities(
    a: Spectrum, probes: int, steps: int, rounds: int, details: dict
) -> list[Row]:
    """The spectral density by Lanczos quadrature, smoothed alike."""
    if not installed("curvlinops-for-pytorch"):
        return []
    from curvlinops import lanczos_approximate_spectrum

    operator = a.net.curvlinops("GGN")
    low, high = float(a.eigenvalues[0]), float(a.eigenvalues[-1])
    points, kappa, margin = 256, 3.0, 0.05
    # The grid and the width of the kernel that curvlinops chooses.
    half = (high - low) * (1 + 2 * margin) / 2
    grid = (high + low) / 2 + torch.linspace(-half, half, points, dtype=torch.float64)
    width = half * 2 / (steps - 1) / math.sqrt(8 * math.log(kappa))
    z = (grid[:, None] - a.eigenvalues) / width
    right = ((-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * width)).mean(1)

    def mine(seed: int) -> Tensor:
        spectrum = po.derivatives.spectral_density(
            a.matvec, a.net.params, key=po.random.key(seed), probes=probes, steps=steps
        )
        return spectrum.density(grid, width=width).value

    def theirs(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return lanczos_approximate_spectrum(
            *(operator, steps, points, probes, kappa),
            boundaries=(low, high),
            margin=margin,
        )[1]

    what = f"spectral density, {probes} x {steps} products"
    contenders = {OURS: mine, "curvlinops": theirs}
    return estimates(what, contenders, right, rounds, details)


def log_determinants(
    a: Spectrum, probes: int, steps: int, rounds: int, details: dict
) -> list[Row]:
    """Of the damped matrix, against forming and factorizing it."""
    damping = 0.1
    params = a.net.params
    eye = torch.eye(len(a.matrix), dtype=a.matrix.dtype)

    def damped(v: Tree) -> Tree:
        return {name: g + damping * v[name] for name, g in a.matvec(v).items()}

    def mine(seed: int) -> Tensor:
        return po.derivatives.log_determinant(
            damped, params, key=po.random.key(seed), probes=probes, steps=steps
        ).value

    def factorized() -> Tensor:
        matrix = torch.func.vmap(lambda v: flat(damped(like(params, v))))(eye)
        return 2 * torch.linalg.cholesky(matrix).diagonal().log().sum()

    what = f"log-determinant, {probes} x {steps} products"
    right = (a.eigenvalues + damping).log().sum()
    error = error_of(mine, right, rounds, what)
    agree({"dense": lambda: right, "factorized": factorized}, 1e-10)
    runs = {OURS: lambda: mine(0), "all columns and Cholesky": factorized}
    row = Row(f"{what}: relative error", error)
    return [row, *compare(what, runs, rounds, details)]


def eigenpairs(
    a: Spectrum, k: int, steps: int, rounds: int, details: dict
) -> list[Row]:
    """The top of the spectrum, to six digits at least."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    params, n = a.net.params, len(a.matrix)
    counted = {"eigsh": 0}

    def product(v: Any) -> Any:
        counted["eigsh"] += 1
        out = a.matvec(like(params, torch.from_numpy(v.reshape(-1).copy())))
        return flat(out).numpy()

    operator = LinearOperator((n, n), matvec=product, dtype="float64")
    draw = torch.Generator().manual_seed(3)
    start = torch.randn(n, k, generator=draw, dtype=torch.float64)

    def mine() -> Tensor:
        key = po.random.key(0)
        return po.derivatives.top_eigenpairs(
            a.matvec, params, k, key=key, steps=steps
        ).values

    def arpack() -> Tensor:
        counted["eigsh"] = 0
        v0 = start[:, 0].numpy()
        found = eigsh(operator, k, which="LA", tol=1e-6, v0=v0)[0]
        return torch.from_numpy(found.copy()).flip(0)

    def lobpcg() -> Tensor:
        eye = torch.eye(n, dtype=torch.float64)
        matrix = torch.func.vmap(lambda v: flat(a.matvec(like(params, v))))(eye)
        return torch.lobpcg(matrix, X=start, tol=1e-6)[0]

    def eigh() -> Tensor:
        return a.eigenvalues[-k:].flip(0)

    runs = {OURS: mine, "scipy eigsh on the product": arpack}
    runs["all columns and torch.lobpcg"] = lobpcg
    agree({"dense": eigh, **runs}, 1e-6)
    what = f"top {k} eigenvalues of {n}"
    rows = compare(what, runs, rounds, details)
    products = k * (steps + 1)
    rows.append(Row(f"{what}: products", products, "scipy eigsh", counted["eigsh"], ""))
    return rows


def measure(*, quick: bool = False) -> Report:
    """The rows of all quantities."""
    details: dict[str, Any] = {}
    rounds = 2 if quick else 10
    rows = products(
        noise((6, 5, 4) if quick else (784, 64, 10), 8 if quick else 256),
        *(3 if quick else 100, details),
    )
    small = noise((3, 3, 2) if quick else (12, 12, 8), 8 if quick else 64)
    rows += dense(small, 5 if quick else 32, rounds, details)
    a = gauss_newton(digits(*((2, 32) if quick else (10, 512))))
    rows += traces(a, 60 if quick else 96, rounds, details)
    probes, steps = (2, 10) if quick else (10, 40)
    rows += densities(a, probes, steps, rounds, details)
    rows += log_determinants(a, probes, steps, rounds, details)
    rows += eigenpairs(a, *((2, 20) if quick else (5, 20)), rounds, details)
    return Report(rows, {"times": details})


if __name__ == "__main__":
    run_piece(measure, __doc__)
