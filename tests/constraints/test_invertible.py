"""Invertible matrices and bounded condition numbers against torch, scipy, mpmath."""

from __future__ import annotations

import math

import mpmath
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch.func import grad, grad_and_value, jacfwd, vmap

from pureopt import ConstraintError, HyperparameterError
from pureopt.constraints import (
    AlmostOrthogonal,
    BoundedCondition,
    Invertible,
    LUStatic,
    Orthogonal,
    PositiveDeterminant,
    UnitDeterminant,
)
from tests.constraints.rows_invertible import conditioned, oriented, spread, unimodular
from tests.constraints.rows_orthogonal import haar

LU_FORMS = [Invertible(), PositiveDeterminant(), UnitDeterminant()]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def weighted(y):
    return (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum()


def round_trip(c, y):
    static = c.bind(y)
    x = c.right_inverse(y, static)
    return x, c.forward(x, static)


def test_the_factors_are_scipys():
    y = randn(6, 6)
    p, lower, upper = map(torch.from_numpy, scipy.linalg.lu(y.numpy()))
    c = Invertible()
    static = c.bind(y)
    x = c.right_inverse(y, static)
    assert torch.equal(p.argmax(-1), static.permutation)
    assert torch.equal(upper.diagonal().sign().to(torch.int8), static.signs)
    want = lower.tril(-1) + upper
    off = ~torch.eye(6, dtype=torch.bool)
    # The same eliminations, in another order of additions: some n eps.
    assert torch.allclose(x[:6], upper.diagonal().abs().log(), rtol=0, atol=1e-13)
    assert torch.allclose(x[6:], want[off], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 5, 8, 33])
def test_a_condition_number_of_a_million_is_invertible(n, dtype):
    """geotorch raises InManifoldError for it in both dtypes: its eps is absolute."""
    y = conditioned(n, 1e6).to(dtype)
    x, again = round_trip(Invertible(), y)
    assert bool(Invertible().check(y))
    # Backward stable: some n eps of the largest entry, for any condition number.
    tolerance = n * torch.finfo(dtype).eps * float(y.abs().max())
    assert float((again - y).abs().max()) <= tolerance
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_the_scale_does_not_matter(scale, dtype):
    y = (scale * spread(5, (), generator(), 2.0)).to(dtype)
    c = Invertible()
    x, again = round_trip(c, y)
    # exp(log|u|) has a relative error of |log u| eps, here up to 75 eps.
    tolerance = 200 * torch.finfo(dtype).eps * float(y.abs().max())
    assert float((again - y).abs().max()) <= tolerance
    assert float((again - y).abs().max()) <= float(c.rounding(x, y))


def test_negative_determinants_are_refused():
    """geotorch accepts them in its group of positive ones."""
    y = oriented(spread(4, (), generator(1), 1.0))
    mirrored = y.flip(0).flip(-1)[[1, 0, 2, 3]]
    assert float(torch.det(mirrored)) < 0 < float(torch.det(y))
    for c in (PositiveDeterminant(), UnitDeterminant()):
        assert not bool(c.check(mirrored))
        assert bool(c.right_inverse(mirrored, c.bind(mirrored)).isnan().all())
    assert bool(PositiveDeterminant().check(y))
    assert bool(Invertible().check(mirrored))


def test_signs_of_determinants_are_those_of_the_permutation_and_the_pivots():
    y = randn(500, 5, 5)
    want = torch.linalg.det(y) > 0
    assert torch.equal(PositiveDeterminant().check(y), want)
    assert 0 < int(want.sum()) < 500


@pytest.mark.parametrize("c", LU_FORMS[:2], ids=repr)
def test_the_sign_of_the_determinant_never_changes_on_a_path(c):
    y = oriented(spread(3, (), generator(2), 1.0))
    static = c.bind(y)
    x = c.right_inverse(y, static)
    for step in range(50):
        x = x + 0.3 * randn(9, seed=step)
        assert float(torch.linalg.det(c.forward(x, static))) > 0


def test_the_determinant_is_one_in_exact_arithmetic():
    c = UnitDeterminant()
    y = unimodular(spread(5, (), generator(3), 2.0))
    static = c.bind(y)
    x = c.right_inverse(y, static) + randn(24, seed=4)
    y = c.forward(x, static)
    with mpmath.workdps(40):
        exact = mpmath.det(mpmath.matrix(y.tolist()))
    # The entries are rounded, once or a few times each: less than ten times.
    assert abs(float(exact) - 1) <= float(c.tolerance(y))


def test_rank_deficient_matrices_are_singular_to_rounding():
    """Their last pivot is some eps, not zero, with no scale to compare it with."""
    for n in (2, 3, 5, 33):
        u, v = randn(100, n, n - 1, seed=n), randn(100, n - 1, n, seed=n + 1)
        rows = 10 ** randn(100, n, 1, seed=n + 2)
        # Rounded once: a relative error of eps / 2 in each entry is all that is left,
        # and the sensitivity is 2 / eps or more. The computed one has a relative error
        # of order one there, so that it is below 1 / (2 eps) for a few in a hundred.
        y = (rows * u @ v).float()
        assert int(Invertible().check(y).sum()) <= 3
        assert bool(Invertible().check((rows * randn(100, n, n)).float()).all())


def test_another_chart_is_nan_and_the_standard_chart_has_no_exchange():
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    for c in LU_FORMS:
        y = swap if c == Invertible() else swap @ torch.diag(torch.tensor([-1.0, 1.0]))
        assert bool(c.right_inverse(y).isnan().all())
        assert torch.equal(round_trip(c, y)[1], y)
    x = torch.tensor([0.0, 0.0, 2.0, 3.0])
    want = torch.tensor([[1.0, 2.0], [3.0, 7.0]])
    assert torch.equal(Invertible().forward(x), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (4, 6)])
def test_the_ends_of_the_interval_are_almost_orthogonal(shape, dtype):
    """geotorch raises InManifoldError at 1 - lam and 1 + lam, for each of its maps."""
    c, k = AlmostOrthogonal(0.25), min(shape)
    u, v = haar(shape[0], (), generator()), haar(shape[1], (), generator(1))
    for ends in ([1.25] * k, [0.75] * k, [1.25, 1.25, 0.75, 0.75]):
        y = ((u[:, :k] * torch.tensor(ends, dtype=u.dtype)) @ v[:k]).to(dtype)
        assert bool(c.check(y))
        x, again = round_trip(c, y)
        # tanh stops at a distance of eps / 4 from one; some n eps for the factors.
        tolerance = 20 * max(shape) * torch.finfo(dtype).eps
        assert float((again - y).abs().max()) <= tolerance
        assert bool(c.check(again))
        slope = grad(lambda x: weighted(c.forward(x, c.bind(y))))(x)  # noqa: B023
        assert bool(slope.isfinite().all())


@pytest.mark.parametrize("c", [AlmostOrthogonal(0.5), BoundedCondition(9.0)], ids=repr)
def test_orthogonal_matrices_are_regular_points(c):
    """With singular vectors as coordinates, the Jacobian would lose half its rank."""
    y = haar(3, (), generator(4))
    static = c.bind(y)
    x = c.right_inverse(y, static)
    jacobian = jacfwd(c.forward)(x, static).reshape(9, 9)
    assert float(torch.linalg.svdvals(jacobian)[-1]) > 0.1
    # The orthogonal factor alone is that of Orthogonal.
    q = Orthogonal().right_inverse(y, Orthogonal().bind(y))
    assert torch.allclose(x[:3], q, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kappa", [1.5, 50.0, 1e6])
def test_condition_numbers_stay_below_the_bound_and_reach_it(kappa):
    c = BoundedCondition(kappa)
    static = c.bind(torch.eye(4, 3, dtype=torch.float64))
    x = 5 * randn(200, 12, seed=5)
    cond = torch.linalg.cond(vmap(lambda x: c.forward(x, static))(x))
    # The smallest singular value is known to kappa eps.
    assert float(cond.max()) <= kappa * (1 + 1e-14 * kappa)
    assert float(cond.max()) > kappa**0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lopsided_spectra_at_the_bound_have_a_center(dtype):
    """All but one singular value at one end: the trace of T puts the last far out."""
    kappa, n = 100.0, 33
    c = BoundedCondition(kappa)
    for many, one in ((1.0, kappa), (kappa, 1.0)):
        s = torch.full((n,), many, dtype=torch.float64)
        s[7] = one
        y = ((haar(n, (), generator()) * s) @ haar(n, (), generator(1))).to(dtype)
        x, again = round_trip(c, y)
        assert float((again - y).abs().max()) <= float(c.rounding(x, y))
        assert bool(c.check(again))


def test_the_center_is_that_of_a_root_finder():
    s = torch.tensor([[8.0, 3.0, 2.5, 1.0]], dtype=torch.float64)
    kappa = 10.0
    c = BoundedCondition(kappa)
    static = c.bind(s[0].diag())
    x = c.right_inverse(s[0].diag(), static)
    half = math.log(kappa) / 2
    logs = s[0].log().tolist()

    def trace(center):
        return sum(math.atanh((l - center) / half) for l in logs)

    ends = logs[0] - half + 1e-12, logs[-1] + half - 1e-12
    want = scipy.optimize.brentq(trace, *ends, xtol=1e-15)
    assert abs(float(x[6]) - want) < 1e-13  # some eps of numbers of order one


def test_the_nearest_matrix_of_bounded_condition_is_that_of_a_minimizer():
    s = torch.tensor([10.0, 6.0, 1.0, 0.1], dtype=torch.float64)
    kappa = 3.0
    got = BoundedCondition(kappa).project(s.diag()).diagonal()

    def cost(low):
        return float(((s.clamp(low, kappa * low) - s) ** 2).sum())

    best = scipy.optimize.minimize_scalar(cost, bounds=(0.1, 10.0), method="bounded")
    want = s.clamp(best.x, kappa * best.x)
    # A minimizer finds its point to the square root of eps times the scale.
    assert torch.allclose(got, want, rtol=0, atol=1e-4)
    assert float(((got - s) ** 2).sum()) <= best.fun * (1 + 1e-12)
    assert bool(BoundedCondition(kappa).check(got.diag()))
    inside = s.clamp(min=5).diag()
    assert torch.equal(BoundedCondition(kappa).project(inside), inside)


def test_an_ensemble_has_a_chart_for_each_member():
    y = torch.stack([conditioned(4, 1e3), torch.eye(4).double().flip(0), -randn(4, 4)])
    c = Invertible()
    static = vmap(c.bind)(y)
    x = vmap(c.right_inverse)(y, static)
    # Numbers of order ten, in a batch: some eps.
    assert torch.allclose(vmap(c.forward)(x, static), y, rtol=0, atol=1e-13)
    with pytest.raises(ConstraintError, match="map over the free value"):
        c.forward(x[0], static)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: AlmostOrthogonal(0.0), r"in \(0, 1\), got 0.0. For zero"),
        (lambda: AlmostOrthogonal(1), r"in \(0, 1\)"),
        (lambda: AlmostOrthogonal("1"), "a number"),
        (lambda: BoundedCondition(1.0), "greater than 1 and finite, got 1.0"),
        (lambda: BoundedCondition(math.inf), "greater than 1 and finite"),
    ],
)
def test_hyper_parameters_are_checked_when_made(make, match):
    with pytest.raises(HyperparameterError, match=match):
        make()


def test_lengths_and_statics_that_do_not_fit_raise():
    with pytest.raises(ConstraintError, match="1, 4, 9, 16"):
        Invertible().forward(torch.zeros(8))
    with pytest.raises(ConstraintError, match="0, 3, 8, 15"):
        UnitDeterminant().forward(torch.zeros(9))
    with pytest.raises(ConstraintError, match="an `LUStatic` of shape"):
        Invertible().right_inverse(torch.eye(2), torch.ones(2))
    static = LUStatic(torch.arange(3), torch.ones(3, dtype=torch.int8))
    with pytest.raises(ConstraintError, match=r"shape \(2,\), got shape \(3,\)"):
        Invertible().forward(torch.zeros(4), static)
    with pytest.raises(ConstraintError, match="Without static the matrix is square"):
        BoundedCondition(2.0).forward(torch.zeros(6))


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_agrees_on_values_and_gradients():
    """Of the maps that no other family has: its own are below the other ones."""
    y = oriented(spread(3, (2,), generator(6), 1.0))
    static = Invertible().bind(y)
    x = 0.3 * randn(2, 9, seed=7)

    def total(x, static):
        parts = (
            Invertible().forward(x, static),
            UnitDeterminant().forward(x[:8], static),
        )
        return sum(i * weighted(y) for i, y in enumerate(parts, 1))

    def both(x, static):
        return vmap(grad_and_value(total))(x, static)

    got = torch.compile(both, fullgraph=True)(x, static)
    for a, b in zip(got, both(x, static), strict=True):
        # Sums of some dozen terms of order a hundred, in another order.
        assert torch.allclose(a, b, rtol=0, atol=1e-11)
