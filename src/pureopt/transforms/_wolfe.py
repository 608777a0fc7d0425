"""A line search for the strong Wolfe conditions, one evaluation at a time.

The method of Moré and Thuente (1994) in reverse communication: :func:`advance` takes the
value and slope at the trial step and says whether it is accepted, and else where to
try next. All decisions are ``torch.where``, so lanes of a ``vmap`` search side by side.

It differs from the paper where numbers are not real numbers:

- a non-finite trial becomes the far end of the bracket, and the next trial moves in;
- values that differ by no more than ``noise`` count as equal, steps are then chosen from
  slopes alone, and a step is accepted by the approximate Wolfe conditions of Hager and
  Zhang (2005), which do not compare values below their rounding error.

References:
    J. J. Moré and D. J. Thuente, Line search algorithms with guaranteed sufficient
    decrease, ACM TOMS 20 (1994), sections 2 to 4.
    W. W. Hager and H. Zhang, A new conjugate gradient method with guaranteed descent
    and an efficient line search, SIAM J. Optim. 16 (2005), equation (4.1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pureopt._tree import tree_select
from pureopt._typing import Scalar

SHRINK = 0.66
"""A bracket must shrink by this factor in two trials, else it is halved (section 4)."""
EXPAND_LOW, EXPAND_HIGH = 1.1, 4.0
"""Without a bracket the next step lies between these multiples of the last move."""
BACK_OFF = 0.1
"""How far a trial goes toward a non-finite end."""
APPROXIMATE = 0.1
"""The delta of the approximate Wolfe conditions."""


class Point(NamedTuple):
    """A step length with the value and slope of the objective along the direction."""

    t: Tensor
    f: Tensor
    slope: Tensor


class Search(NamedTuple):
    """The whole memory of a search between two evaluations; every field is 0-d.

    ``lo`` is the step with the least auxiliary value so far, ``hi`` the other end of
    the interval of uncertainty. ``hi`` holds values only where ``hi_finite``.
    """

    t: Tensor
    lo: Point
    hi: Point
    bracketed: Tensor
    hi_finite: Tensor
    first_stage: Tensor
    width: Tensor
    last_width: Tensor
    trials: Tensor


def start(f0: Tensor, slope0: Tensor, t: Tensor) -> Search:
    """The search from value ``f0`` and slope ``slope0 < 0`` with ``t`` as first trial."""
    base = Point(torch.zeros_like(t), f0.clone(), slope0.clone())
    endless = torch.full_like(t, torch.finfo(t.dtype).max / 4)
    no = torch.zeros_like(t, dtype=torch.bool)
    return Search(
        t=t.clone(),
        lo=base,
        hi=Point(*(torch.zeros_like(t) for _ in range(3))),
        bracketed=no,
        hi_finite=no.clone(),
        first_stage=torch.ones_like(no),
        width=endless,
        last_width=endless.clone(),
        trials=torch.zeros_like(t, dtype=torch.int64),
    )


def advance(
    search: Search,
    base: Point,
    trial: Point,
    *,
    c1: Scalar,
    c2: Scalar,
    noise: Scalar,
    resolution: float,
    max_trials: int,
) -> tuple[Search, Tensor, Tensor]:
    """Judge the trial and choose the next one.

    Args:
        search: From :func:`start` or the last call.
        base: The point at step 0.
        trial: The point at step ``search.t``.
        c1: Sufficient decrease, in (0, 1/2).
        c2: Curvature, in (c1, 1).
        noise: Rounding error of the value; differences up to it count as zero.
        resolution: Relative length at which a bracket is empty.
        max_trials: How many trials a search may take.

    Returns:
        The next search, whether the trial is accepted, and whether the search failed.
    """
    finite = torch.isfinite(trial.f) & torch.isfinite(trial.slope)
    # Only finite numbers go into the arithmetic, so that no NaN reaches a gradient
    # through the branch that is not taken.
    trial = Point(
        search.t,
        torch.where(finite, trial.f, search.lo.f),
        torch.where(finite, trial.slope, search.lo.slope),
    )
    sufficient = trial.f <= base.f + c1 * trial.t * base.slope
    accepted = finite & _wolfe(base, trial, sufficient, c2, noise)
    first_stage = search.first_stage & ~(finite & sufficient & (trial.slope >= 0))
    tilt = _tilt(first_stage, search, base, trial, sufficient, c1)
    stepped = _step(search._replace(first_stage=first_stage), trial, tilt, noise)
    retreated = _retreat(search, trial)
    following = tree_select(finite, stepped, retreated)
    following, collapsed = _guard(following, finite, resolution)
    trials = search.trials + 1
    failed = ~accepted & (collapsed | (trials >= max_trials))
    return following._replace(trials=trials), accepted, failed


def _wolfe(
    base: Point, trial: Point, sufficient: Tensor, c2: Scalar, noise: Scalar
) -> Tensor:
    """Strong Wolfe, or approximate Wolfe where the values are equal but for noise."""
    strong = sufficient & (trial.slope.abs() <= -c2 * base.slope)
    level = (trial.f - base.f).abs() <= noise
    rising = trial.slope <= (2 * APPROXIMATE - 1) * base.slope
    return strong | (level & rising & (trial.slope >= c2 * base.slope))


def _tilt(
    first_stage: Tensor,
    search: Search,
    base: Point,
    trial: Point,
    sufficient: Tensor,
    c1: Scalar,
) -> Tensor:
    """The slope to subtract: section 2's auxiliary function psi in the first stage."""
    auxiliary = first_stage & (trial.f <= search.lo.f) & ~sufficient
    slope = c1 * base.slope
    return torch.where(auxiliary, slope, torch.zeros_like(slope))


def _tilted(point: Point, tilt: Tensor) -> Point:
    return Point(point.t, point.f - point.t * tilt, point.slope - tilt)


def _step(search: Search, trial: Point, tilt: Tensor, noise: Scalar) -> Search:
    """Section 4's trial value selection and the update of the interval."""
    lo, hi, p = (_tilted(q, tilt) for q in (search.lo, search.hi, trial))
    higher = p.f > lo.f + noise
    turned = (p.slope * torch.sign(lo.slope)) < 0
    flatter = p.slope.abs() < lo.slope.abs()
    level = (p.f - lo.f).abs() <= noise
    t = torch.where(
        higher,
        _case_1(lo, p),
        torch.where(
            turned,
            _case_2(lo, p, level),
            torch.where(
                flatter,
                _case_3(search, lo, hi, p, level),
                _case_4(search, lo, hi, p, level),
            ),
        ),
    )
    lower = ~higher
    return search._replace(
        t=t,
        lo=tree_select(lower, trial, search.lo),
        hi=tree_select(higher, trial, tree_select(turned, search.lo, search.hi)),
        hi_finite=search.hi_finite | higher | turned,
        bracketed=search.bracketed | higher | turned,
    )


def _cubic(a: Point, b: Point) -> tuple[Tensor, Tensor]:
    """Fraction r of the way from ``b`` to ``a`` of the minimizer of the cubic, and gamma.

    Interpolates values and slopes at both ends (section 4; also Nocedal and Wright,
    2006, equation (3.59)), scaled against overflow.
    """
    theta = 3 * _ratio(a.f - b.f, b.t - a.t) + a.slope + b.slope
    scale = torch.maximum(theta.abs(), torch.maximum(a.slope.abs(), b.slope.abs()))
    square = _ratio(theta, scale) ** 2 - _ratio(a.slope, scale) * _ratio(b.slope, scale)
    gamma = scale * _sqrt(square)
    gamma = torch.where(b.t > a.t, -gamma, gamma)
    p = (gamma - b.slope) + theta
    q = ((gamma - b.slope) + gamma) + a.slope
    return _ratio(p, q), gamma


def _secant(a: Point, b: Point) -> Tensor:
    """Fraction of the way from ``b`` to ``a`` where the interpolated slope vanishes."""
    return _ratio(b.slope, b.slope - a.slope)


def _case_1(lo: Point, p: Point) -> Tensor:
    """A higher value: the cubic step, or between it and the quadratic one."""
    r, _ = _cubic(p, lo)
    cubic = lo.t + r * (p.t - lo.t)
    bend = _ratio(lo.f - p.f, p.t - lo.t) + lo.slope
    quadratic = lo.t + _ratio(lo.slope, bend) / 2 * (p.t - lo.t)
    near = (cubic - lo.t).abs() < (quadratic - lo.t).abs()
    return torch.where(near, cubic, cubic + (quadratic - cubic) / 2)


def _case_2(lo: Point, p: Point, level: Tensor) -> Tensor:
    """A lower value, the slope turned: the farther of cubic and secant from ``p``."""
    r, _ = _cubic(lo, p)
    cubic = p.t + r * (lo.t - p.t)
    secant = p.t + _secant(lo, p) * (lo.t - p.t)
    far = ((cubic - p.t).abs() > (secant - p.t).abs()) & ~level
    return torch.where(far, cubic, secant)


def _case_3(search: Search, lo: Point, hi: Point, p: Point, level: Tensor) -> Tensor:
    """A lower value, the slope of the same sign and flatter."""
    r, gamma = _cubic(lo, p)
    outward = (r < 0) & (gamma != 0)
    limit = _limit(lo, p)
    cubic = torch.where(outward, p.t + r * (lo.t - p.t), limit)
    secant = p.t + _secant(lo, p) * (lo.t - p.t)
    cubic = torch.where(level, secant, cubic)
    cubic_nearer = (cubic - p.t).abs() < (secant - p.t).abs()
    inside = torch.where(cubic_nearer, cubic, secant)
    edge = p.t + SHRINK * (hi.t - p.t)
    inside = torch.where(
        p.t > lo.t, torch.minimum(edge, inside), torch.maximum(edge, inside)
    )
    outside = torch.where(cubic_nearer, secant, cubic)
    low = p.t + EXPAND_LOW * (p.t - lo.t).abs()
    outside = torch.minimum(torch.maximum(outside, low), limit)
    return torch.where(search.bracketed, inside, outside)


def _case_4(search: Search, lo: Point, hi: Point, p: Point, level: Tensor) -> Tensor:
    """A lower value, the slope of the same sign and no flatter."""
    r, _ = _cubic(hi, p)
    usable = search.hi_finite & ~level
    inside = torch.where(usable, p.t + r * (hi.t - p.t), (p.t + hi.t) / 2)
    return torch.where(search.bracketed, inside, _limit(lo, p))


def _limit(lo: Point, p: Point) -> Tensor:
    """The farthest step to extrapolate to; never beyond what a float can hold."""
    return p.t + EXPAND_HIGH * (p.t - lo.t).abs()


def _retreat(search: Search, trial: Point) -> Search:
    """After a non-finite trial: it is the far end, and the next trial is closer."""
    t = search.lo.t + BACK_OFF * (trial.t - search.lo.t)
    yes = torch.ones_like(search.bracketed)
    return search._replace(
        t=t, hi=search.hi._replace(t=trial.t), bracketed=yes, hi_finite=~yes
    )


def _guard(search: Search, finite: Tensor, resolution: float) -> tuple[Search, Tensor]:
    """Force the bracket to shrink, and see when it is empty."""
    lo, hi = search.lo.t, search.hi.t
    width = (hi - lo).abs()
    slow = search.bracketed & finite & (width >= SHRINK * search.last_width)
    t = torch.where(slow, (lo + hi) / 2, search.t)
    low, high = torch.minimum(lo, hi), torch.maximum(lo, hi)
    empty = (t <= low) | (t >= high) | (width <= resolution * high)
    guarded = search._replace(
        t=t,
        # A non-finite end says nothing about how fast the bracket shrinks.
        last_width=torch.where(
            search.bracketed & finite, search.width, search.last_width
        ),
        width=torch.where(search.bracketed, width, search.width),
    )
    return guarded, search.bracketed & empty


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0, with a finite derivative there."""
    zero = denominator == 0
    safe = torch.where(zero, torch.ones_like(denominator), denominator)
    return torch.where(zero, torch.zeros_like(denominator), numerator / safe)


def _sqrt(x: Tensor) -> Tensor:
    """The root of the positive part, with a finite derivative at 0."""
    positive = x > 0
    root = torch.sqrt(torch.where(positive, x, torch.ones_like(x)))
    return torch.where(positive, root, torch.zeros_like(x))
