"""The problem sets of the benchmark against the paper, in scalar loops, and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.optimize._dcsrch import DCSRCH

from benchmarks import mgh_data as data
from benchmarks.mgh import PROBLEMS, Problem
from benchmarks.more_thuente import STARTS, TABLES, Table

Vector = Sequence[float]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.label)
every_table = pytest.mark.parametrize("table", TABLES, ids=lambda t: f"table{t.number}")


# --- The oracle: residuals as the paper prints them, one at a time, indices from one.


def _one_based(x: Vector) -> list[float]:
    return [math.nan, *x]


def rosenbrock(x: Vector) -> list[float]:
    pairs = range(0, len(x), 2)
    return [r for i in pairs for r in (10 * (x[i + 1] - x[i] ** 2), 1 - x[i])]


def freudenstein_roth(x: Vector) -> list[float]:
    _, a, b = _one_based(x)
    return [-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b]


def powell_badly_scaled(x: Vector) -> list[float]:
    return [1e4 * x[0] * x[1] - 1, math.exp(-x[0]) + math.exp(-x[1]) - 1.0001]


def brown_badly_scaled(x: Vector) -> list[float]:
    return [x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2]


def beale(x: Vector) -> list[float]:
    return [y - x[0] * (1 - x[1] ** i) for i, y in enumerate(data.BEALE, 1)]


def jennrich_sampson(x: Vector) -> list[float]:
    return [2 + 2 * i - (math.exp(i * x[0]) + math.exp(i * x[1])) for i in range(1, 11)]


def helical_valley(x: Vector) -> list[float]:
    _, a, b, c = _one_based(x)
    theta = math.atan(b / a) / (2 * math.pi) + (0.5 if a < 0 else 0.0)
    return [10 * (c - 10 * theta), 10 * (math.sqrt(a**2 + b**2) - 1), c]


def bard(x: Vector) -> list[float]:
    return [
        y - (x[0] + u / ((16 - u) * x[1] + min(u, 16 - u) * x[2]))
        for u, y in enumerate(data.BARD, 1)
    ]


def gaussian(x: Vector) -> list[float]:
    return [
        x[0] * math.exp(-x[1] * ((8 - i) / 2 - x[2]) ** 2 / 2) - y
        for i, y in enumerate(data.GAUSSIAN, 1)
    ]


def meyer(x: Vector) -> list[float]:
    return [
        x[0] * math.exp(x[1] / (45 + 5 * i + x[2])) - y
        for i, y in enumerate(data.MEYER, 1)
    ]


def gulf(x: Vector) -> list[float]:
    residuals = []
    for i in range(1, 100):
        y = 25 + (-50 * math.log(i / 100)) ** (2 / 3)
        residuals.append(math.exp(-(abs(y - x[1]) ** x[2]) / x[0]) - i / 100)
    return residuals


def box_3d(x: Vector) -> list[float]:
    return [
        math.exp(-0.1 * i * x[0])
        - math.exp(-0.1 * i * x[1])
        - x[2] * (math.exp(-0.1 * i) - math.exp(-i))
        for i in range(1, 21)
    ]


def powell_singular(x: Vector) -> list[float]:
    residuals = []
    for i in range(0, len(x), 4):
        a, b, c, d = x[i : i + 4]
        residuals += [a + 10 * b, math.sqrt(5) * (c - d)]
        residuals += [(b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2]
    return residuals


def wood(x: Vector) -> list[float]:
    _, a, b, c, d = _one_based(x)
    first = [10 * (b - a**2), 1 - a, math.sqrt(90) * (d - c**2), 1 - c]
    return [*first, math.sqrt(10) * (b + d - 2), (b - d) / math.sqrt(10)]


def kowalik_osborne(x: Vector) -> list[float]:
    return [
        y - x[0] * (u * u + u * x[1]) / (u * u + u * x[2] + x[3])
        for u, y in zip(data.KOWALIK_OSBORNE_U, data.KOWALIK_OSBORNE_Y, strict=True)
    ]


def brown_dennis(x: Vector) -> list[float]:
    return [
        (x[0] + t * x[1] - math.exp(t)) ** 2
        + (x[2] + x[3] * math.sin(t) - math.cos(t)) ** 2
        for t in (i / 5 for i in range(1, 21))
    ]


def osborne_1(x: Vector) -> list[float]:
    return [
        y - (x[0] + x[1] * math.exp(-t * x[3]) + x[2] * math.exp(-t * x[4]))
        for t, y in zip(range(0, 330, 10), data.OSBORNE_1, strict=True)
    ]


def biggs_exp6(x: Vector) -> list[float]:
    return [
        x[2] * math.exp(-t * x[0])
        - x[3] * math.exp(-t * x[1])
        + x[5] * math.exp(-t * x[4])
        - (math.exp(-t) - 5 * math.exp(-10 * t) + 3 * math.exp(-4 * t))
        for t in (0.1 * i for i in range(1, 14))
    ]


def osborne_2(x: Vector) -> list[float]:
    p = _one_based(x)
    return [
        y
        - p[1] * math.exp(-t * p[5])
        - p[2] * math.exp(-((t - p[9]) ** 2) * p[6])
        - p[3] * math.exp(-((t - p[10]) ** 2) * p[7])
        - p[4] * math.exp(-((t - p[11]) ** 2) * p[8])
        for t, y in zip((i / 10 for i in range(65)), data.OSBORNE_2, strict=True)
    ]


def watson(x: Vector) -> list[float]:
    n, p = len(x), _one_based(x)
    residuals = []
    for i in range(1, 30):
        t = i / 29
        slope = sum((j - 1) * p[j] * t ** (j - 2) for j in range(2, n + 1))
        residuals.append(
            slope - sum(p[j] * t ** (j - 1) for j in range(1, n + 1)) ** 2 - 1
        )
    return [*residuals, p[1], p[2] - p[1] ** 2 - 1]


def penalty_1(x: Vector) -> list[float]:
    return [*(math.sqrt(1e-5) * (v - 1) for v in x), sum(v * v for v in x) - 0.25]


def penalty_2(x: Vector) -> list[float]:
    n, p, root = len(x), _one_based(x), math.sqrt(1e-5)
    residuals = [p[1] - 0.2]
    for i in range(2, n + 1):
        y = math.exp(i / 10) + math.exp((i - 1) / 10)
        residuals.append(root * (math.exp(p[i] / 10) + math.exp(p[i - 1] / 10) - y))
    residuals += [
        root * (math.exp(p[i - n + 1] / 10) - math.exp(-1 / 10))
        for i in range(n + 1, 2 * n)
    ]
    return [*residuals, sum((n - j + 1) * p[j] ** 2 for j in range(1, n + 1)) - 1]


def variably_dimensioned(x: Vector) -> list[float]:
    s = sum(j * (v - 1) for j, v in enumerate(x, 1))
    return [*(v - 1 for v in x), s, s * s]


def trigonometric(x: Vector) -> list[float]:
    n, total = len(x), sum(math.cos(v) for v in x)
    return [n - total + i * (1 - math.cos(v)) - math.sin(v) for i, v in enumerate(x, 1)]


def brown_almost_linear(x: Vector) -> list[float]:
    return [*(v + sum(x) - (len(x) + 1) for v in x[:-1]), math.prod(x) - 1]


def discrete_boundary_value(x: Vector) -> list[float]:
    n, h, p = len(x), 1 / (len(x) + 1), [0.0, *x, 0.0]
    return [
        2 * p[i] - p[i - 1] - p[i + 1] + h**2 * (p[i] + i * h + 1) ** 3 / 2
        for i in range(1, n + 1)
    ]


def discrete_integral(x: Vector) -> list[float]:
    n, h, p = len(x), 1 / (len(x) + 1), _one_based(x)
    residuals = []
    for i in range(1, n + 1):
        t = i * h
        below = sum(j * h * (p[j] + j * h + 1) ** 3 for j in range(1, i + 1))
        above = sum((1 - j * h) * (p[j] + j * h + 1) ** 3 for j in range(i + 1, n + 1))
        residuals.append(p[i] + h * ((1 - t) * below + t * above) / 2)
    return residuals


def broyden_tridiagonal(x: Vector) -> list[float]:
    p = [0.0, *x, 0.0]
    return [
        (3 - 2 * p[i]) * p[i] - p[i - 1] - 2 * p[i + 1] + 1
        for i in range(1, len(x) + 1)
    ]


def broyden_banded(x: Vector) -> list[float]:
    n, p = len(x), _one_based(x)
    residuals = []
    for i in range(1, n + 1):
        band = [j for j in range(max(1, i - 5), min(n, i + 1) + 1) if j != i]
        residuals.append(
            p[i] * (2 + 5 * p[i] ** 2) + 1 - sum(p[j] * (1 + p[j]) for j in band)
        )
    return residuals


def linear_full_rank(x: Vector) -> list[float]:
    shared = 2 / 20 * sum(x)
    return [*(v - shared - 1 for v in x), *([-shared - 1] * (20 - len(x)))]


def linear_rank_1(x: Vector) -> list[float]:
    s = sum(j * v for j, v in enumerate(x, 1))
    return [i * s - 1 for i in range(1, 21)]


def chebyquad(x: Vector) -> list[float]:
    # T_i(y) = cos(i arccos y) inside [-1, 1], by its definition.
    n = len(x)
    residuals = []
    for i in range(1, n + 1):
        mean = sum(math.cos(i * math.acos(2 * v - 1)) for v in x) / n
        residuals.append(mean + (1 / (i * i - 1) if i % 2 == 0 else 0.0))
    return residuals


def oracle(problem: Problem) -> Callable[[Vector], float]:
    residuals = globals()[problem.fn.__name__]
    return lambda x: math.fsum(r * r for r in residuals(x))


# --- The Moré-Garbow-Hillstrom set.


def test_there_are_forty_instances_and_twenty_eight_common_ones():
    assert len({p.label for p in PROBLEMS}) == 40
    assert sum(p.common28 for p in PROBLEMS) == 28
    assert all(len(p.x0) == p.n for p in PROBLEMS)


@every_problem
@pytest.mark.parametrize("shift", [0.0, 0.03])
def test_values_are_those_of_the_scalar_loops(problem: Problem, shift: float):
    # The shift varies in sign and size and keeps Chebyquad inside [0, 1].
    x = [v + shift * math.cos(7 * i) for i, v in enumerate(problem.x0)]
    got = problem.fn(torch.tensor(x, dtype=torch.float64))
    # Residuals are differences of terms at most 1e3 times larger (Gaussian), their sum
    # has no cancellation: 1e3 terms' roundings of 1e-16 each, squared and summed.
    assert float(got) == pytest.approx(oracle(problem)(x), rel=1e-12)


PUBLISHED_STARTS = {
    "1 Rosenbrock n=2": 24.2,
    "2 Freudenstein-Roth n=2": 400.5,
    "5 Beale n=2": 14.203125,
    "7 helical valley n=3": 2500.0,
    "13 Powell singular n=4": 215.0,
    "14 Wood n=4": 19192.0,
    "20 Watson n=12": 30.0,
    "30 Broyden tridiagonal n=10": 21.0,
    "31 Broyden banded n=10": 360.0,
}


@pytest.mark.parametrize("label", PUBLISHED_STARTS)
def test_values_at_the_starts_are_the_published_ones(label: str):
    problem = next(p for p in PROBLEMS if p.label == label)
    # These values are exact decimals; float64 leaves a few roundings.
    assert float(problem.fn(problem.start())) == pytest.approx(
        PUBLISHED_STARTS[label], rel=1e-14
    )


MINIMIZERS = [
    ("1 Rosenbrock n=2", [1.0, 1.0]),
    ("2 Freudenstein-Roth n=2", [5.0, 4.0]),
    ("4 Brown badly scaled n=2", [1e6, 2e-6]),
    ("5 Beale n=2", [3.0, 0.5]),
    ("7 helical valley n=3", [1.0, 0.0, 0.0]),
    ("11 Gulf n=3", [50.0, 25.0, 1.5]),
    ("12 Box 3-D n=3", [1.0, 10.0, 1.0]),
    ("12 Box 3-D n=3", [10.0, 1.0, -1.0]),
    ("13 Powell singular n=4", [0.0] * 4),
    ("14 Wood n=4", [1.0] * 4),
    ("18 Biggs EXP6 n=6", [1.0, 10.0, 1.0, 5.0, 4.0, 3.0]),
    ("21 extended Rosenbrock n=100", [1.0] * 100),
    ("22 extended Powell n=100", [0.0] * 100),
    ("25 variably dimensioned n=10", [1.0] * 10),
    ("26 trigonometric n=10", [0.0] * 10),
    ("27 Brown almost-linear n=10", [1.0] * 10),
    ("32 linear full rank n=10", [-1.0] * 10),
]


@pytest.mark.parametrize(("label", "minimizer"), MINIMIZERS)
def test_the_exact_minimizers_have_the_first_minimum(
    label: str, minimizer: list[float]
):
    problem = next(p for p in PROBLEMS if p.label == label)
    value = problem.fn(torch.tensor(minimizer, dtype=torch.float64))
    # Residuals are zero up to the rounding of terms of at most 1e2 (1e-14 each).
    assert float(value) == pytest.approx(problem.minima[0], rel=1e-14, abs=1e-24)


@every_problem
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_the_start_are_finite(problem: Problem, dtype: torch.dtype):
    x = problem.start(dtype)
    grads, value = torch.func.grad_and_value(problem.fn)(x)
    assert value.dtype == grads.dtype == dtype
    assert value.dim() == 0
    assert bool(grads.isfinite().all())
    assert torch.equal(x, problem.start(dtype))


@every_problem
def test_lanes_of_a_vmap_are_single_calls(problem: Problem):
    lanes = torch.stack([problem.start(), 1.01 * problem.start()])
    got = torch.func.vmap(problem.fn)(lanes)
    alone = torch.stack([problem.fn(lane) for lane in lanes])
    # Batched reductions may add in another order; conditions as in the test above.
    torch.testing.assert_close(got, alone, rtol=1e-12, atol=0)


def _scipy_solve(problem: Problem):
    def value_and_grad(x: np.ndarray) -> tuple[float, np.ndarray]:
        grads, value = torch.func.grad_and_value(problem.fn)(torch.from_numpy(x.copy()))
        return float(value), grads.numpy()

    return minimize(
        value_and_grad,
        np.array(problem.x0),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-8, "maxcor": 10, "maxiter": 5000},
    )


# Evaluations that scipy's L-BFGS-B is known to take to |g| <= 1e-8 in float64, by
# problem and dimension.
SCIPY_EVALUATIONS = {
    1: {2: 46},
    2: {2: 22},
    4: {2: 28},
    5: {2: 17},
    7: {3: 34},
    8: {3: 27},
    9: {3: 11},
    11: {3: 58},
    12: {3: 39},
    13: {4: 61},
    15: {4: 38},
    18: {6: 45},
    19: {11: 113},
    20: {6: 62},
    21: {100: 49},
    22: {100: 58},
    23: {10: 71, 100: 71},
    25: {10: 20},
    26: {10: 34},
    27: {10: 20},
    28: {10: 57},
    29: {10: 9},
    30: {10: 27},
    31: {10: 18},
    32: {10: 3},
    33: {10: 3},
    35: {8: 29, 9: 38, 10: 35},
}


@pytest.mark.parametrize(
    "problem",
    [p for p in PROBLEMS if p.n in SCIPY_EVALUATIONS.get(p.number, {})],
    ids=lambda p: p.label,
)
def test_scipy_takes_its_known_evaluations_to_a_known_minimum(problem: Problem):
    result = _scipy_solve(problem)
    known = SCIPY_EVALUATIONS[problem.number][problem.n]
    # Another order of additions changes the path in its last digits; a wrong constant,
    # sign or start changes the count by far more.
    assert abs(result.nfev - known) <= max(3, 0.05 * known)
    # Minima are printed to six or seven digits. Next to a minimum of zero,
    # |g| <= 1e-8 leaves f = |g|^2 / (2 lambda) at a curvature lambda >= 1e-6, and
    # f = O(|g|^(4/3)) = 1e-10 for Powell's quartic.
    close = [
        math.isclose(result.fun, f, rel_tol=1e-5, abs_tol=1e-9) for f in problem.minima
    ]
    assert any(close), result.fun


# --- The line-search functions of Moré and Thuente.


def test_the_reported_evaluations_sum_to_179():
    assert sum(sum(table.evaluations) for table in TABLES) == 179


@every_table
def test_slopes_are_the_derivatives(table: Table):
    # Points inside and outside of the middle piece of function 5.3, |t - 1| <= 0.01.
    t = torch.tensor([0.0, 1e-3, 0.1, 0.5, 0.995, 1.004, 1.3, 2.0, 10.0]).double()
    _, slopes = table.phi(t)
    derivative = torch.func.vmap(torch.func.grad(lambda s: table.phi(s)[0]))(t)
    # The ripple's slope is a cosine of an argument up to 39 pi 10 / 2 = 6e2, whose
    # rounding is 1e-13; the other slopes cancel less.
    torch.testing.assert_close(slopes, derivative, rtol=1e-11, atol=1e-12)


@every_table
def test_the_start_descends(table: Table):
    assert float(table.phi(torch.zeros((), dtype=torch.float64))[1]) < 0


def test_the_pieces_of_the_oscillating_function_join():
    phi = TABLES[2].phi
    edges = torch.tensor([0.99, 1.01], dtype=torch.float64)
    gap = 1e-9
    inside, outside = phi(edges - gap), phi(edges + gap)
    # Slopes are at most 2 and curvatures at most 1 / beta = 100, plus the ripple's 60.
    torch.testing.assert_close(inside[0], outside[0], rtol=0, atol=2 * 2 * gap)
    torch.testing.assert_close(inside[1], outside[1], rtol=0, atol=2 * 160 * gap)


@every_table
@pytest.mark.parametrize("start", range(4))
def test_the_search_of_minpack_reproduces_the_table(table: Table, start: int):
    evaluated: list[float] = []

    def phi(t: float) -> tuple[float, float]:
        value, slope = table.phi(torch.tensor(float(t), dtype=torch.float64))
        return float(value), float(slope)

    def value(t: float) -> float:
        evaluated.append(t)
        return phi(t)[0]

    search = DCSRCH(value, lambda t: phi(t)[1], table.mu, table.eta, 1e-15, 0.0, 1e10)
    phi0, slope0 = phi(0.0)
    step, *_, task = search(STARTS[start], phi0=phi0, derphi0=slope0, maxiter=100)
    assert task == b"CONVERGENCE"
    assert len(evaluated) == table.evaluations[start]
    # The steps are printed to two to five digits; "1.0" stands for 0.9999988.
    assert float(step) == pytest.approx(table.steps[start], rel=2e-5)
