"""Vectors in order, against scipy, torch.distributions and brute force."""

from __future__ import annotations

import itertools

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression, minimize
from torch import distributions
from torch.func import grad, vmap

import pureopt as po
from pureopt import ConstraintError, HyperparameterError
from pureopt.constraints import Ordered, PositiveOrdered, Separated
from pureopt.constraints._gaps import isotonic

KINDS = [Ordered, PositiveOrdered, Separated]
all_kinds = pytest.mark.parametrize("kind", KINDS)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def round_trip(c, y):
    static = c.bind(y)
    return c.forward(c.right_inverse(y, static), static)


def test_a_thousand_numbers_at_an_offset_keep_their_order_in_float32():
    """Gaps of 1e-4 at 1000: a good part are ties in the data, of which exp makes -inf."""
    y = (1000 + 0.1 * draw(1000).sigmoid().sort().values).float()
    assert int((y.diff() == 0).sum()) > 200
    z = round_trip(Ordered(), y)
    assert bool((z.diff() >= 0).all())
    assert bool(Ordered().check(z))
    # The result rounds by half a unit at 1000, 3.1e-5; half a thousand gaps of 1e-4 that
    # are off by |x| eps = 1e-6 of themselves add up to 5e-8.
    assert float((z - y).abs().max()) <= 6.2e-5
    x = Ordered().right_inverse(y)
    assert bool(x.isfinite().all())


def test_gaps_are_summed_from_the_middle():
    """From the first entry, the error at the far end is about twice as large."""
    x = torch.full((1001,), 3.3)
    x[500] = 0.0
    y = Ordered().forward(x)
    with mpmath.workdps(40):
        gap = mpmath.log1p(mpmath.exp(mpmath.mpf(float(x[0]))))
        want = torch.tensor([float(gap * (i - 500)) for i in range(1001)])
    # 500 equal gaps, each off by 2 eps in the same direction, and the roundings of sums.
    assert bool(((y - want).abs() <= 4 * 1.2e-7 * want.abs() + 1e-30).all())
    assert float(y[500]) == 0.0
    assert bool((y == -y.flip(0)).all())


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_the_formula_entry_by_entry(k, gap):
    x = draw(k, seed=k)
    y = Ordered(gap).forward(x).tolist()
    softplus = torch.nn.functional.softplus(x).tolist()
    c = max(k - 1, 0) // 2
    for i in range(k - 1):
        # Entry i + 1 holds the gap above the middle, entry i below it.
        want = gap + (softplus[i + 1] if i >= c else softplus[i])
        # Roundings of sums of a few numbers of order one.
        assert y[i + 1] - y[i] == pytest.approx(want, abs=1e-14)
    if k:
        assert y[c] == float(x[c])
    positive = PositiveOrdered(gap).forward(x)
    want = (torch.nn.functional.softplus(x) + gap).cumsum(-1)
    assert torch.allclose(positive, want, rtol=1e-15, atol=0)


def test_log_abs_det_is_the_sum_over_the_gaps_by_torch_distributions():
    x = draw(50, 6)
    softplus = distributions.transforms.SoftplusTransform()
    slopes = softplus.log_abs_det_jacobian(x, softplus(x))
    for c, gaps in (
        (PositiveOrdered(), slopes),
        (Ordered(0.3), torch.cat([slopes[:, :2], slopes[:, 3:]], -1)),
        (Separated(0.3), torch.cat([slopes[:, :2], slopes[:, 3:]], -1)),
    ):
        assert torch.allclose(c.log_abs_det(x), gaps.sum(-1), rtol=1e-14, atol=1e-14)


@given(k=st.integers(1, 40), seed=st.integers(0, 10**6), scale=st.integers(-8, 8))
def test_isotonic_regression_is_that_of_scipy(k, seed, scale):
    y = 10.0**scale * draw(k, seed=seed)
    got = isotonic(y)
    want = torch.from_numpy(isotonic_regression(y.numpy()).x)
    # Means of differences of sums: k roundings of numbers of the size of the largest.
    assert torch.allclose(got, want, rtol=0, atol=1e-15 * k * float(y.abs().max()))
    assert bool((got.diff() >= 0).all())
    assert torch.equal(isotonic(y.sort().values), y.sort().values)


@all_kinds
@pytest.mark.parametrize("gap", [0.0, 0.7])
def test_project_is_the_minimizer_of_the_distance(kind, gap):
    c = kind(gap)
    for seed in range(4):
        y = draw(5, seed=seed)
        nearest = c.project(y)
        assert bool(c.check(nearest))
        candidates = [torch.arange(5)]
        if kind is Separated:
            candidates = [torch.tensor(p) for p in itertools.permutations(range(5))]
        best = min(by_scipy(kind, gap, y[order].numpy()) for order in candidates)
        assert best < torch.inf
        # The accuracy of SLSQP.
        assert float((nearest - y).square().sum()) <= best + 1e-7


def by_scipy(kind, gap: float, y) -> float:
    """The squared distance to the ordered vectors, by a solver for inequalities."""
    constraints = [
        {"type": "ineq", "fun": lambda z, i=i: z[i + 1] - z[i] - gap}
        for i in range(len(y) - 1)
    ]
    if kind is PositiveOrdered:
        constraints.append({"type": "ineq", "fun": lambda z: z[0] - gap})
    start = sorted(abs(y)) + (1 + gap) * torch.arange(1, len(y) + 1).numpy()
    found = minimize(
        lambda z: ((z - y) ** 2).sum(),
        start,
        jac=lambda z: 2 * (z - y),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    return float(found.fun) if found.success else float("inf")


@all_kinds
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str
)
def test_any_free_vector_gives_a_value_in_the_set_that_comes_back(kind, dtype):
    for gap, scale in itertools.product((0.0, 0.25), (0.0, 1e-8, 1.0, 30.0, 1e3)):
        c = kind(gap)
        x = (scale * draw(50, 7)).to(dtype)
        y = c.forward(x)
        assert y.dtype == dtype
        assert bool(c.check(y).all())
        static = c.bind(y)
        back = c.right_inverse(y, static)
        error = (c.forward(back, static).double() - y.double()).abs().amax(-1)
        assert bool((error <= c.rounding(back, y).double()).all())


def test_ties_stay_ties_and_have_finite_free_numbers():
    for k in (2, 5, 1000):
        for value in (0.0, 1.0, 1000.0, -1e30):
            y = torch.full((k,), value)
            x = Ordered().right_inverse(y)
            assert bool(x.isfinite().all())
            # At zero there is nothing to round away: gaps are the smallest numbers.
            assert torch.allclose(Ordered().forward(x), y, rtol=0, atol=k * 1e-44)


def test_small_positive_entries_keep_their_digits_below_large_ones():
    y = torch.tensor([1e-30, 1e-20, 1e-10, 1.0, 1e30])
    # The logarithm of the smallest rounds by 4e-6.
    assert torch.allclose(round_trip(PositiveOrdered(), y), y, rtol=8e-6, atol=0)


def test_zero_is_not_positive_and_a_rounding_below_is_not_either():
    c = PositiveOrdered()
    y = torch.tensor([[0.0, 1.0], [-1e-9, 1.0], [1e-45, 1.0], [0.0, 0.0], [-0.0, 1e30]])
    inside = [False, False, True, False, False]
    assert c.check(y).tolist() == inside
    assert c.right_inverse(y).isfinite().all(-1).tolist() == inside
    assert bool((c.violation(y)[:2] > c.tolerance(y)[:2]).all())
    low = c.forward(torch.full((3,), -200.0))
    assert bool((low > 0).all())
    assert bool(c.check(low))


def test_the_check_takes_roundings_only():
    y = torch.tensor([0.0, 1.0, 2.0])
    assert bool(Ordered(1.0).check(y))
    assert bool(Ordered(1.0).check(y + torch.tensor([0.0, 1e-6, 0.0])))
    assert not bool(Ordered(1.0).check(y + torch.tensor([0.0, 1e-5, 0.0])))
    assert float(Ordered(1.5).violation(y)) == 0.5
    assert float(Ordered().violation(y)) == 0.0
    half = torch.tensor([1.0, 0.95], dtype=torch.bfloat16)
    assert not bool(Ordered().check(half))


def test_every_order_of_entries_has_its_chart_and_comes_back():
    c = Separated(min_gap=0.1)
    y = torch.tensor(list(itertools.permutations([-1.0, 0.0, 0.1, 7.0])))
    ranks = c.bind(y)
    assert len(ranks.unique(dim=0)) == 24
    x = c.right_inverse(y, ranks)
    # All orders have the same free vector: that of the sorted values.
    assert bool((x == x[0]).all())
    # The free numbers of order ten round by a few units in the last place.
    assert torch.allclose(c.forward(x, ranks), y, rtol=0, atol=4e-6)
    assert torch.equal(vmap(c.forward)(x, ranks), c.forward(x, ranks))


def test_entries_never_cross_while_the_free_vector_moves():
    c = Separated(min_gap=0.1)
    y = draw(8, 6).argsort(-1).double()
    ranks = c.bind(y)
    for seed, scale in enumerate((0.1, 10.0, 1e3)):
        moved = c.forward(scale * draw(8, 6, seed=seed), ranks)
        assert torch.equal(c.bind(moved), ranks)
        assert bool(c.check(moved).all())


def test_another_order_is_off_the_chart():
    c = Separated()
    y = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    ranks = c.bind(y)
    assert bool(c.check(y).all())
    assert bool(c.right_inverse(y, ranks.flip(0)).isnan().all())
    assert c.right_inverse(y).isnan().all(-1).tolist() == [True, False]


def test_ties_of_separated_vectors_keep_their_places():
    y = torch.tensor([2.0, 1.0, 2.0, 1.0])
    assert Separated().bind(y).tolist() == [2, 0, 3, 1]
    assert torch.equal(round_trip(Separated(), y), y)


@all_kinds
def test_nan_and_infinities_stay_in_their_lane(kind):
    c = kind()
    y = torch.tensor([[1.0, 2.0, 3.0]]).repeat(4, 1)
    y[1, 1] = torch.nan
    y[2, 2] = torch.inf
    static = c.bind(y)
    x = c.right_inverse(y, static)
    good = [True, False, False, True]
    assert c.check(y).tolist() == good
    assert x.isfinite().all(-1).tolist() == good
    assert x[1:3].isnan().all(-1).tolist() == [True, True]
    assert c.project(y).isfinite().all(-1).tolist() == good
    slope = grad(lambda x: c.forward(x, static)[[0, 3]].sum())(x)
    assert bool(slope[[0, 3]].isfinite().all())


@all_kinds
def test_the_largest_numbers_are_projected_and_a_gap_that_overflows_is_nan(kind):
    y = torch.tensor([[3e38, 2e38, 1e38, 3e38], [1.0, 0.0, 5.0, 4.0]])
    nearest = kind().project(y)
    assert bool(nearest.isfinite().all())
    # Sums of a few numbers, scaled by a power of two.
    want = kind().project(y / 1e38)
    assert torch.allclose(nearest[0], 1e38 * want[0], rtol=1e-6)
    wide = torch.tensor([-3e38, 3e38])
    if kind is not PositiveOrdered:
        assert bool(kind().right_inverse(wide, kind().bind(wide)).isnan().all())


@all_kinds
def test_empty_vectors_empty_batches_and_leaves_that_require_gradients(kind):
    c = kind(0.5)
    for shape in ((0,), (0, 3), (2, 0), (1,), (2, 3)):
        x = torch.zeros(shape, requires_grad=True)
        y = c.forward(x)
        static = c.bind(y)
        assert y.shape == c.right_inverse(y, static).shape == shape
        assert c.project(y).shape == shape
        assert c.check(y).shape == c.log_abs_det(x).shape == shape[:-1]
        assert bool(c.check(y).all())
        assert c.dim(shape) == shape[-1]
        y.sum().backward()
        assert x.grad is not None


def test_wrong_ranks_gaps_and_shapes_are_refused():
    for kind in KINDS:
        with pytest.raises(HyperparameterError, match=r"min_gap=.*finite and >= 0"):
            kind(min_gap=-1.0)
        with pytest.raises(ConstraintError, match=r"forward\(x\).*have a shape"):
            kind().forward(torch.tensor(1.0))
    c = Separated()
    with pytest.raises(
        ConstraintError, match=r"ranks of shape \(3,\), got a tensor of shape \(2,\)"
    ):
        c.forward(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConstraintError, match=r"int64 ranks .* dtype torch.float32"):
        c.forward(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ConstraintError, match="int64 ranks"):
        c.right_inverse(torch.zeros(3), "no")


def test_constrain_tells_the_missing_gap():
    with pytest.raises(ConstraintError, match=r"cut.*1 - \(Y\[i\+1\] - Y\[i\]\).*0\.5"):
        po.constrain({"cut": torch.tensor([0.0, 0.5])}, {"cut": Ordered(1.0)})


@pytest.mark.parametrize("min_gap", [0.0, 1e-3])
def test_neighbors_at_the_smallest_gap_stay_and_others_part(min_gap):
    goal = torch.arange(5.0, dtype=torch.float64)

    def left_of(start):
        space = po.constrain(start, Ordered(min_gap))

        def objective(free):
            return (space.forward(free) - goal).square().sum()

        return float(po.minimize(objective, space.free).value)

    ties = torch.zeros(5, dtype=torch.float64)
    # All in the middle, 10 = 4 + 1 + 0 + 1 + 4, but for the smallest gaps.
    assert left_of(Ordered(min_gap).project(ties)) > 9.9
    # The square of a gradient of 1.5e-8, over the slopes of the gaps.
    assert left_of(Ordered(min_gap=0.1).project(ties)) < 1e-12


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_values_and_gradients_right():
    """The gather with a batch of ranks, the flips, the sums, under vmap."""
    x, ranks = draw(4, 5), Separated().bind(draw(4, 5, seed=1))
    weights = torch.arange(1.0, 6, dtype=torch.float64)

    def value(x, ranks):
        y = Separated(0.1).forward(x, ranks), PositiveOrdered(0.1).forward(x)
        return (y[0] + y[1].square()) @ weights, y

    def both(x, ranks):
        return vmap(grad(value, has_aux=True))(x, ranks)

    slope, y = torch.compile(both, fullgraph=True)(x, ranks)
    want_slope, want_y = both(x, ranks)
    # Other kernels for exp and log1p, sums in another order: some roundings.
    assert torch.allclose(slope, want_slope, rtol=1e-12, atol=1e-12)
    for got, want in zip(y, want_y, strict=True):
        assert torch.allclose(got, want, rtol=1e-13, atol=1e-13)
