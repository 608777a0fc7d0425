"""The Moré-Garbow-Hillstrom set: 40 instances with their starts and minima.

Example:
    >>> rosenbrock = PROBLEMS[0]
    >>> float(rosenbrock.fn(rosenbrock.start())), len(PROBLEMS)
    (24.199999999999996, 40)

References:
    Moré, Garbow and Hillstrom, Testing unconstrained optimization software (1981).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from benchmarks import mgh_functions as fun

Objective: TypeAlias = Callable[[Tensor], Tensor]


class Problem(NamedTuple):
    """One instance of the set.

    Attributes:
        name: The name in the paper.
        number: The number in the paper; instances of several sizes share it.
        n: The dimension of ``x``.
        fn: The objective, from ``x`` of shape ``(n,)`` to a 0-d tensor.
        x0: The standard starting point.
        minima: The known values at minimizers, the paper's first.
        common28: Whether it is one of the 28 instances that every compared solver
            solves, on which evaluations are summed.
    """

    name: str
    number: int
    n: int
    fn: Objective
    x0: list[float]
    minima: tuple[float, ...]
    common28: bool

    @property
    def label(self) -> str:
        """The name with the dimension: unique in the set."""
        return f"{self.number} {self.name} n={self.n}"

    def start(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
        """The standard starting point as a tensor."""
        return torch.tensor(self.x0, dtype=dtype, device=device)


# Instances, as (number, n), that one of the compared solvers does not bring to
# |g| <= 2e-8 in float64; the other 28 are the ones on which evaluations are summed.
_HARD = {
    *((2, 2), (3, 2), (6, 2), (10, 3), (13, 4), (16, 4), (17, 5)),
    *((20, 9), (20, 12), (24, 4), (24, 10), (35, 10)),
}


def _problem(
    number: int, name: str, fn: Objective, x0: list[float], *minima: float
) -> Problem:
    n = len(x0)
    return Problem(name, number, n, fn, x0, minima, (number, n) not in _HARD)


def _small() -> list[Problem]:
    """Problems 1 to 11, of two or three variables."""
    return [
        _problem(1, "Rosenbrock", fun.rosenbrock, [-1.2, 1.0], 0.0),
        _problem(
            2, "Freudenstein-Roth", fun.freudenstein_roth, [0.5, -2.0], 0.0, 48.98425
        ),
        _problem(3, "Powell badly scaled", fun.powell_badly_scaled, [0.0, 1.0], 0.0),
        _problem(4, "Brown badly scaled", fun.brown_badly_scaled, [1.0, 1.0], 0.0),
        _problem(5, "Beale", fun.beale, [1.0, 1.0], 0.0),
        _problem(6, "Jennrich-Sampson", fun.jennrich_sampson, [0.3, 0.4], 124.3622),
        _problem(7, "helical valley", fun.helical_valley, [-1.0, 0.0, 0.0], 0.0),
        _problem(8, "Bard", fun.bard, [1.0, 1.0, 1.0], 8.214877e-3, 17.42869),
        _problem(9, "Gaussian", fun.gaussian, [0.4, 1.0, 0.0], 1.127933e-8),
        _problem(10, "Meyer", fun.meyer, [0.02, 4000.0, 250.0], 87.94586),
        _problem(11, "Gulf", fun.gulf, [5.0, 2.5, 0.15], 0.0),
    ]


def _medium() -> list[Problem]:
    """Problems 12 to 20, of three to twelve variables."""
    biggs = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    osborne = [1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5]
    kowalik = [0.25, 0.39, 0.415, 0.39]
    return [
        _problem(12, "Box 3-D", fun.box_3d, [0.0, 10.0, 20.0], 0.0),
        _problem(
            13, "Powell singular", fun.powell_singular, [3.0, -1.0, 0.0, 1.0], 0.0
        ),
        _problem(14, "Wood", fun.wood, [-3.0, -1.0, -3.0, -1.0], 0.0),
        _problem(
            15,
            "Kowalik-Osborne",
            fun.kowalik_osborne,
            kowalik,
            3.075056e-4,
            1.027345e-3,
        ),
        _problem(
            16, "Brown-Dennis", fun.brown_dennis, [25.0, 5.0, -5.0, 1.0], 85822.20
        ),
        _problem(
            17, "Osborne 1", fun.osborne_1, [0.5, 1.5, -1.0, 0.01, 0.02], 5.464895e-5
        ),
        _problem(18, "Biggs EXP6", fun.biggs_exp6, biggs, 0.0, 5.655650e-3),
        _problem(19, "Osborne 2", fun.osborne_2, osborne, 4.013774e-2),
        _problem(20, "Watson", fun.watson, [0.0] * 6, 2.287670e-3),
        _problem(20, "Watson", fun.watson, [0.0] * 9, 1.399760e-6),
        _problem(20, "Watson", fun.watson, [0.0] * 12, 4.722381e-10),
    ]


def _sized() -> list[Problem]:
    """Problems 21 to 35, whose dimension is a choice."""
    count = [float(i) for i in range(1, 101)]
    variable = [1 - i / 10 for i in count[:10]]
    grid = [i / 11 * (i / 11 - 1) for i in count[:10]]
    chebyquads = {n: [i / (n + 1) for i in count[:n]] for n in (8, 9, 10)}
    ones, halves = [1.0] * 10, [0.5] * 10
    almost = "Brown almost-linear"
    return [
        _problem(21, "extended Rosenbrock", fun.rosenbrock, [-1.2, 1.0] * 50, 0.0),
        _problem(
            22, "extended Powell", fun.powell_singular, [3.0, -1.0, 0.0, 1.0] * 25, 0.0
        ),
        _problem(23, "penalty I", fun.penalty_1, count[:10], 7.087651e-5),
        # The paper has no value at n = 100; this one is measured.
        _problem(23, "penalty I", fun.penalty_1, count, 9.02491e-4),
        _problem(24, "penalty II", fun.penalty_2, [0.5] * 4, 9.376293e-6),
        _problem(24, "penalty II", fun.penalty_2, halves, 2.936605e-4),
        _problem(25, "variably dimensioned", fun.variably_dimensioned, variable, 0.0),
        _problem(26, "trigonometric", fun.trigonometric, [0.1] * 10, 0.0, 2.795061e-5),
        _problem(27, almost, fun.brown_almost_linear, halves, 0.0, 1.0),
        _problem(28, "discrete boundary value", fun.discrete_boundary_value, grid, 0.0),
        _problem(29, "discrete integral", fun.discrete_integral, grid, 0.0),
        _problem(30, "Broyden tridiagonal", fun.broyden_tridiagonal, [-1.0] * 10, 0.0),
        # The second value is where searches without a curvature condition may end.
        _problem(31, "Broyden banded", fun.broyden_banded, [-1.0] * 10, 0.0, 3.05728),
        _problem(32, "linear full rank", fun.linear_full_rank, ones, 10.0),
        _problem(33, "linear rank 1", fun.linear_rank_1, ones, 20 * 19 / (2 * 41)),
        _problem(35, "Chebyquad", fun.chebyquad, chebyquads[8], 3.516874e-3),
        _problem(35, "Chebyquad", fun.chebyquad, chebyquads[9], 0.0),
        _problem(35, "Chebyquad", fun.chebyquad, chebyquads[10], 6.503955e-3),
    ]


PROBLEMS: tuple[Problem, ...] = (*_small(), *_medium(), *_sized())
"""The 40 instances, in the order of the paper."""
