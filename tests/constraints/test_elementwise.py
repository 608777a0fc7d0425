"""Positive numbers and numbers between bounds, against closed forms and mpmath."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from torch import distributions
from torch.func import grad, jacfwd, jacrev, vmap

import pureopt as po
from pureopt import CompositionError, ConstraintError, HyperparameterError
from pureopt.constraints import (
    Box,
    Cayley,
    GreaterThan,
    Interval,
    LessThan,
    Positive,
    PositiveExp,
    Symmetric,
)
from pureopt.constraints._positive import softplus, softplus_inverse

INF = torch.inf
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
ALL = [
    Positive(),
    Positive(eps=0.1),
    PositiveExp(),
    PositiveExp(eps=0.1),
    GreaterThan(-2.0),
    LessThan(5.0),
    Interval(2, 3),
    Interval(-0.5, 100),
    Box(),
    Box(low=1.0),
    Box(high=1.0),
    Box(-1.0, 1.0),
]
all_maps = pytest.mark.parametrize("c", ALL, ids=repr)
# Both ends of the exponents, the switches of the formulas, where exp under- or overflows,
# and where torch's softplus stops being smooth.
HARD = [
    0.0, 1e-45, -1e-45, 1e-8, 0.5, -0.5, 1.0, -1.0, 17.0, -17.0, 19.9, 20.1, 40.0,
    -40.0, 87.0, -87.0, 88.7, -88.7, -103.0, -104.5, 500.0, -500.0,
]  # fmt: skip


def test_positive_keeps_its_digits_over_the_whole_range_of_the_dtype():
    """The textbook inverse log(expm1(y)) is inf from 89 on, with a NaN gradient."""
    for dtype, low, high in ((torch.float32, -30, 38), (torch.float64, -300, 308)):
        y = torch.logspace(low, high, 100_001, dtype=torch.float64).to(dtype)
        y = y[:-1]
        for c in (Positive(), PositiveExp()):
            x = c.right_inverse(y)
            error = (c.forward(x) - y).abs() / y
            slope = x.clamp(max=0) if isinstance(c, Positive) else x
            # x is a logarithm, off by one unit in its last place, at most |x| eps;
            # nothing of it where softplus is the identity. The rest: the functions.
            allowed = torch.finfo(dtype).eps * (slope.abs() + 4)
            assert bool((error <= allowed).all())
            slopes = grad(lambda y, c=c: c.right_inverse(y).sum())(y)
            assert bool(slopes.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_softplus_and_its_inverse_are_those_of_mpmath(dtype):
    x = torch.tensor([x for x in HARD if x > -87], dtype=dtype)
    y = torch.tensor([1e-37, 1e-20, 1e-3, 0.5, math.log(2), 0.7, 5, 60, 1e37]).to(dtype)
    with mpmath.workdps(60):
        exact = [mpmath.log1p(mpmath.exp(float(v))) for v in x]
        inverse = [float(v) + mpmath.log(-mpmath.expm1(-float(v))) for v in y]
        for got, want in zip(softplus(x).tolist(), exact, strict=True):
            # exp and log1p, each within two units in the last place.
            assert abs(got - want) <= 4 * torch.finfo(dtype).eps * want
        for got, v, want in zip(softplus_inverse(y), y, inverse, strict=True):
            # The two terms cancel next to log 2: relative to the larger one.
            size = max(abs(want), float(v))
            assert abs(float(got) - want) <= 4 * torch.finfo(dtype).eps * size


def test_derivatives_of_softplus_are_exact_where_torch_is_linear():
    """Its second derivative at 21 is 0, and that of logaddexp is NaN at -89."""
    x = torch.tensor(HARD, dtype=torch.float32)
    wide = x.double()
    want = torch.sigmoid(wide) * torch.sigmoid(-wide)
    for outer, inner in itertools.product((jacfwd, jacrev), repeat=2):
        second = vmap(outer(inner(softplus)))(x)
        # Quotients of exponentials: some roundings, down to the subnormal numbers.
        assert torch.allclose(second.double(), want, rtol=2e-6, atol=2e-45)
    first = vmap(grad(softplus))(x)
    assert torch.allclose(first.double(), torch.sigmoid(wide), rtol=1e-6, atol=2e-45)
    assert float(vmap(grad(grad(torch.nn.functional.softplus)))(x[11:12])) == 0.0


def test_a_saturated_interval_does_not_leave_its_open_set():
    """A plain sigmoid gives exactly 2.0 and 3.0 at -20 and 20."""
    x = torch.tensor([-INF, -1e30, -20.0, 20.0, 1e30, INF])
    for c, low, high in (
        (Interval(2, 3), 2, 3),
        (Interval(1000, 1001), 1000, 1001),
        (Interval(0, 1e-20), 0, 1e-20),
        (Interval(-1e20, -1), -1e20, -1),
    ):
        for dtype in (torch.float32, torch.float64):
            y = c.forward(x.to(dtype))
            assert bool(c.check(y).all())
            assert bool(((y > low) & (y < torch.tensor(high, dtype=dtype))).all())
            assert bool((y.diff() >= 0).all())


@pytest.mark.parametrize(
    ("low", "high"), [(2, 3), (1000, 1001), (0, 1), (-1e-3, 1e3), (0, 1e30), (-7, -6)]
)
def test_an_interval_loses_no_digits_next_to_either_bound(low, high):
    c = Interval(low, high)
    part = torch.logspace(-30, -0.302, 20_001, dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        y = torch.cat([low + (high - low) * part, high - (high - low) * part]).to(dtype)
        y = y[c.check(y)]
        x = c.right_inverse(y)
        distance = torch.minimum(y - low, torch.tensor(high, dtype=dtype) - y)
        eps = torch.finfo(dtype).eps
        # Half a rounding of the result, and of x times the slope, which is at most the
        # distance to the nearer bound; a few more for the functions.
        allowed = eps * (y.abs() + (0.5 * x.abs() + 6) * distance)
        assert bool(((c.forward(x) - y).abs() <= allowed).all())


def test_the_inverse_of_an_interval_is_that_of_mpmath():
    y = torch.tensor([1e-300, 1e-9, 0.25, 0.5, 0.9, 1e30 - 1e14], dtype=torch.float64)
    for high in (1.0, 1e30):
        inside = y[y < high]
        x = Interval(0, high).right_inverse(inside)
        with mpmath.workdps(60):
            for got, v in zip(x.tolist(), inside.tolist(), strict=True):
                want = mpmath.log(mpmath.mpf(v) / (mpmath.mpf(high) - v))
                # One quotient and one logarithm, or the logarithms of both.
                assert abs(got - want) <= 4 * 2.3e-16 * max(1, abs(want))


@all_maps
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_finite_number_gives_a_value_in_the_set_that_comes_back(c, dtype):
    """For a scale of any size: weights after weight decay, clipping, a wild step."""
    radius = c.radius(1, dtype)
    x = torch.tensor([*HARD, 0.999 * radius, -0.999 * radius], dtype=torch.float64)
    x = x[x.abs() < radius].to(dtype)
    y = c.forward(x)
    assert y.dtype == dtype
    assert bool(c.check(y).all())
    back = c.right_inverse(y)
    error = (c.forward(back).double() - y.double()).abs()
    assert bool((error <= c.rounding(back, y).double()).all())


@all_maps
def test_derivatives_are_finite_and_those_of_the_smooth_map(c):
    """Also where the value was moved off a bound, and in the branches not taken."""
    x = torch.tensor([x for x in HARD if abs(x) < 88], dtype=torch.float32)
    log_slope = c.log_abs_det(x)
    for mode in (jacfwd, jacrev):
        slope = vmap(mode(c.forward))(x)
        # exp of a logarithm of up to 88 multiplies its rounding by as much.
        assert torch.allclose(slope, log_slope.exp(), rtol=5e-5, atol=1e-38)
        second = vmap(mode(mode(c.forward)))(x)
        assert bool(second.isfinite().all())
    y = c.forward(x)
    assert bool(grad(lambda y: c.right_inverse(y).sum())(y).isfinite().all())


def test_log_abs_det_is_that_of_torch_distributions():
    x = torch.linspace(-15, 15, 61, dtype=torch.float64)
    softplus_map = distributions.transforms.SoftplusTransform()
    sigmoid = distributions.transforms.SigmoidTransform()
    for c, want in (
        (Positive(), softplus_map.log_abs_det_jacobian(x, softplus_map(x))),
        (GreaterThan(4.0), softplus_map.log_abs_det_jacobian(x, softplus_map(x))),
        (LessThan(4.0), softplus_map.log_abs_det_jacobian(-x, softplus_map(-x))),
        (PositiveExp(), x),
        (Interval(0, 1), sigmoid.log_abs_det_jacobian(x, sigmoid(x))),
        (Interval(-3, 4), math.log(7) + sigmoid.log_abs_det_jacobian(x, sigmoid(x))),
    ):
        # Two softplus functions and a logarithm.
        assert torch.allclose(c.log_abs_det(x), want, rtol=1e-15, atol=1e-14)


def test_a_box_is_four_maps_at_once():
    low = torch.tensor([-INF, 1.0, -INF, -2.0])
    high = torch.tensor([INF, INF, 1.0, 3.0])
    parts = [Box(), GreaterThan(1.0), LessThan(1.0), Interval(-2, 3)]
    x = torch.linspace(-50, 50, 101)[:, None].expand(-1, 4)
    c = Box(low, high)
    y = c.forward(x)
    for i, part in enumerate(parts):
        assert torch.equal(y[:, i], part.forward(x[:, i]))
        assert torch.equal(c.right_inverse(y)[:, i], part.right_inverse(y[:, i]))
        assert torch.equal(c.log_abs_det(x)[:, i], part.log_abs_det(x[:, i]))
        assert torch.equal(c.project(2 * x)[:, i], part.project(2 * x[:, i]))


def test_bounds_that_are_tensors_vmap_and_have_gradients():
    bounds = torch.tensor([-1.0, 0.0, 2.0])
    x = torch.linspace(-3, 3, 5)
    swept = vmap(lambda low: Interval(low, 3.0).forward(x))(bounds)
    for y, low in zip(swept, bounds, strict=True):
        assert torch.equal(y, Interval(float(low), 3.0).forward(x))
    low = torch.tensor(-1.0)
    slope = grad(lambda low: Interval(low, 3.0).forward(x[0]))(low)
    assert float(slope) == pytest.approx(float(1 - x[0].sigmoid()), rel=1e-6)


def test_bad_bounds_in_a_tensor_give_nan_lanes_only():
    nan = torch.nan
    low = torch.tensor([0.0, 1.0, nan, 0.0, -INF, 1.0])
    high = torch.tensor([1.0, 1.0, 1.0, nan, 1.0, 0.0])
    y = torch.full((6,), 0.5)
    good = [True, False, False, False, False, False]
    assert Interval(low, high).check(y).tolist() == good
    for out in (
        Interval(low, high).forward(torch.zeros(6)),
        Interval(low, high).right_inverse(y),
        Interval(low, high).project(y),
    ):
        assert out.isfinite().tolist() == good
    box = Box(low, high)
    assert box.forward(torch.zeros(6)).isfinite().tolist() == [*good[:4], True, False]
    bad = torch.tensor([INF, -INF, nan])
    for c in (GreaterThan(bad), LessThan(bad)):
        assert bool(c.forward(torch.zeros(3)).isnan().all())
        assert not bool(c.check(torch.zeros(3)).any())
    # Their distance overflows: no number has a free one, and check says so.
    for c in (Interval(-3e38, 3e38), Box(-3e38, 3e38)):
        assert not bool(c.check(torch.zeros(1)))
        assert bool(c.forward(torch.zeros(1)).isnan())
        assert bool(c.right_inverse(torch.zeros(1)).isnan())
    # No float32 number lies between 1 and the next one.
    assert bool(Interval(1, 1 + 1e-7).forward(torch.zeros(1)).isnan())


@all_maps
def test_nan_and_infinities_stay_in_their_lane(c):
    y = c.forward(torch.tensor([0.5, torch.nan, -0.5]))
    assert y.isnan().tolist() == [False, True, False]
    odd = torch.tensor([torch.nan, INF, -INF])
    assert not bool(c.check(odd).any())
    assert bool(c.right_inverse(odd).isnan().all())
    assert bool(c.violation(odd).isnan()[0])
    assert c.violation(odd)[1:].tolist() == [INF, INF]
    assert bool(c.project(odd).isnan()[0])


@all_maps
def test_shapes_of_every_rank_and_leaves_that_require_gradients(c):
    for shape in ((), (0,), (0, 3), (2, 3)):
        x = torch.zeros(shape, requires_grad=True)
        y = c.forward(x)
        assert y.shape == c.check(y).shape == c.log_abs_det(x).shape == shape
        assert c.right_inverse(y).shape == c.project(y).shape == shape
        assert c.dim(shape) == math.prod(shape)
        assert c.free_shape(shape) == shape
        y.sum().backward()
        assert x.grad is not None
        assert bool((x.grad > 0).all())


def test_project_clamps_into_the_open_set():
    y = torch.tensor([-5.0, 2.0, 2.5, 3.0, 9.0])
    nearest = Interval(2, 3).project(y)
    assert bool(Interval(2, 3).check(nearest).all())
    # At most two roundings of a bound away from it.
    assert torch.allclose(nearest, y.clamp(2, 3), rtol=2.4e-7, atol=0)
    assert float(nearest[2]) == 2.5
    assert Positive().project(torch.tensor([-3.0, 0.0, 4.0])).tolist()[2] == 4.0
    assert bool(Positive().check(Positive().project(torch.tensor(-3.0))))


def test_samples_of_an_interval_are_uniform():
    n = 200_000
    y = Interval(-1.0, torch.tensor([1.0, 7.0])).sample(po.random.key(0), (n, 2))
    width = torch.tensor([2.0, 8.0])
    # Five standard errors of the mean, width / sqrt(12 n), and of the variance,
    # width^2 / sqrt(180 n).
    assert bool(
        ((y.mean(0) - (width / 2 - 1)).abs() < 5 * width / (12 * n) ** 0.5).all()
    )
    spread = (y.var(0) - width**2 / 12).abs()
    assert bool((spread < 5 * width**2 / (180 * n) ** 0.5).all())
    assert bool(
        Interval(0, 1).check(Interval(0, 1).sample(po.random.key(1), (n,))).all()
    )
    with pytest.raises(ConstraintError, match="implements `sample`"):
        Positive().sample(po.random.key(0), (3,))


def test_wrong_bounds_are_refused_at_construction():
    for make, message in (
        (lambda: Positive(eps=-1.0), r"`Positive\(eps=...\)` must be finite and >= 0"),
        (lambda: PositiveExp(eps=INF), "must be finite and >= 0"),
        (lambda: Positive(eps=torch.tensor(1.0)), "must be a number, got `Tensor`"),
        (lambda: GreaterThan(INF), "must be finite, got inf. `Box` takes infinite"),
        (lambda: LessThan(torch.nan), "must be finite, got nan"),
        (lambda: LessThan("1"), "must be a number or a tensor, got `str`"),
        (lambda: Box([0.0, 1.0]), "got `list`. Convert several with `torch.tensor`"),
        (lambda: Box(None, 1.0), "got `NoneType`.*`inf` stands for none"),
        (lambda: GreaterThan(True), "got `bool`"),
        (lambda: GreaterThan(torch.tensor(1)), "floating-point tensor, got dtype"),
        (lambda: Interval(1, 1), "low < high, got 1 and 1. Leave a fixed number out"),
        (lambda: Interval(2, 1), "must have low < high, got 2 and 1"),
        (lambda: Box(1.0, 1.0), "Leave a fixed number out of the parameters"),
        (lambda: Box(low=INF), r"`Box\(low=...\)` must not be inf"),
        (lambda: Box(high=torch.nan), "must be a number, not NaN"),
    ):
        with pytest.raises(HyperparameterError, match=message):
            make()


def test_bounds_must_broadcast_to_the_values():
    c = Interval(torch.zeros(3), 1.0)
    assert c.forward(torch.zeros(2, 3)).shape == (2, 3)
    for shape in ((), (1,), (3, 2)):
        with pytest.raises(
            ConstraintError, match=r"low=.*broadcast.*bound of shape \(3,"
        ):
            c.forward(torch.zeros(shape))
    with pytest.raises(
        ConstraintError, match=r"bound of shape \(3,\), a value of \(2,"
    ):
        po.constrain(torch.full((2,), 0.5), c)
    with pytest.raises(ConstraintError, match=r"Positive.forward\(x\).*be a tensor"):
        Positive().forward(1.0)


def test_constrain_tells_the_bound_and_the_distance():
    params = {"scale": torch.tensor([1.0, -0.5])}
    with pytest.raises(ConstraintError, match=r"scale.*distance to \{Y > 0\}.*0\.5"):
        po.constrain(params, {"scale": Positive()})


def test_they_are_links_of_chains():
    chain = Positive() >> LessThan(5.0)
    y = torch.tensor([4.7, 4.9])
    x = chain.right_inverse(y, chain.bind(y))
    assert torch.allclose(chain.forward(x), y)
    # Increasing maps of positive numbers: the image of 0 is the other bound.
    low = LessThan(5.0).forward(torch.tensor(0.0))
    assert chain.check(torch.stack([low - 0.1, low + 0.1])).tolist() == [False, True]
    # Elementwise on a matrix, whose structure is then gone.
    matrix = (Symmetric() >> Positive()).forward(torch.tensor([0.0, 1.0, 2.0]))
    assert bool(Positive().check(matrix).all())
    with pytest.raises(CompositionError, match="a positive number from"):
        Positive() >> Cayley()


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_values_and_gradients_right():
    """One box has all four maps; the smallest numbers are not flushed to zero."""
    x = torch.tensor([*HARD, 1e4, -1e4], dtype=torch.float64)[:, None]
    box = Box(torch.tensor([-INF, 0.0, -INF, -2.0]), torch.tensor([INF, INF, 1.0, 3.0]))
    weights = torch.arange(1.0, 5, dtype=torch.float64)

    def value(x):
        y = box.forward(x.expand(-1, 4))
        return (y @ weights).sum(), y

    def both(x):
        return grad(value, has_aux=True)(x)

    slope, y = torch.compile(both, fullgraph=True)(x)
    want_slope, want_y = both(x)
    # Other kernels for exp and log1p: some roundings.
    assert torch.allclose(slope, want_slope, rtol=1e-13, atol=1e-13)
    assert torch.allclose(y, want_y, rtol=1e-13, atol=1e-300)
    assert bool(box.check(y).all())
