"""Definite and low-rank matrices against torch, scipy and closed forms."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from torch.func import grad, jacfwd, vmap

from pureopt import CompositionError, ConstraintError, HyperparameterError
from pureopt.constraints import (
    BoundedSpectrum,
    CholeskyFactor,
    Correlation,
    CorrelationCholesky,
    FixedRank,
    FixedRankStatic,
    LogEuclidean,
    LowRank,
    PositiveDefinite,
    PositiveSemidefinite,
    Skew,
    Symmetric,
)
from tests.constraints.row import randn
from tests.constraints.rows_definite import of_spectrum, rotation, spread

EPS = torch.finfo(torch.float64).eps


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_factor_is_torchs_cholesky_factor():
    y = spread(6, 1e4)
    x = PositiveDefinite().right_inverse(y)
    factor = CholeskyFactor().forward(x)
    # The same factorization; softplus and its inverse add a few roundings per entry.
    assert torch.allclose(factor, torch.linalg.cholesky(y), rtol=0, atol=8 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("condition", [1e6, 1e10, 1e15])
@pytest.mark.parametrize("n", [3, 32])
def test_the_round_trip_does_not_see_the_condition_number(n, condition, scale, dtype):
    """Float32 factors of condition 1e10 raise in torch; geotorch refuses 1e6 in both."""
    y = (scale * spread(n, condition)).to(dtype)
    c = PositiveDefinite()
    again = c.forward(c.right_inverse(y))
    # Backward stable: 20 n eps |Y|, where the largest eigenvalue is the scale.
    assert float((again - y).abs().max()) <= 20 * n * torch.finfo(dtype).eps * scale


def test_the_factor_keeps_what_the_matrix_cannot_hold():
    """A diagonal of softplus(-9): NaN for the matrix in a float32 prototype."""
    n = 40
    x = torch.zeros(n * (n + 1) // 2)
    i = torch.arange(n)
    x[i * (i + 3) // 2] = -9.0
    x = torch.where(x == 0, 1.0, x)
    factor = CholeskyFactor().forward(x)
    # Relative rounding of exp(-9) is 9 eps there and back.
    assert torch.allclose(CholeskyFactor().right_inverse(factor), x, rtol=4e-7)
    y = PositiveDefinite().forward(x)
    assert bool(PositiveDefinite().check(y))
    back = PositiveDefinite().right_inverse(y)
    assert bool(back.isfinite().all())
    tolerance = float(PositiveDefinite().rounding(back, y))
    assert float((PositiveDefinite().forward(back) - y).abs().max()) <= tolerance


def test_the_gradient_at_repeated_eigenvalues_is_finite():
    """Maps that go through eigenvectors have NaN at the identity."""
    eye = torch.eye(4, dtype=torch.float64)
    for c in (PositiveDefinite(), Symmetric() >> LogEuclidean()):
        x = c.right_inverse(eye)
        jacobian = jacfwd(lambda x, c=c: c.forward(x).flatten())(x)
        assert int(torch.linalg.matrix_rank(jacobian)) == 10


def test_log_euclidean_is_scipys_matrix_exponential_and_turns_with_its_argument():
    a = randn(5, 5, generator=generator())
    a = a + a.mT
    c = LogEuclidean()
    want = torch.from_numpy(scipy.linalg.expm(a.numpy()))
    # Each has a relative error of |A| times some eps; |A| is below 10 here.
    assert torch.allclose(c.forward(a), want, rtol=0, atol=100 * EPS * want.max())
    q = rotation(5, (), generator(1))
    turned = q @ c.forward(a) @ q.mT
    assert torch.allclose(
        c.forward(q @ a @ q.mT), turned, rtol=0, atol=200 * EPS * float(want.max())
    )


def test_the_volume_of_the_exponential_is_smooth_where_eigenvalues_meet():
    c = LogEuclidean()
    near = torch.diag(torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))
    # d/dA of (n + 1)/2 tr A, plus gaps whose derivative is odd: zero for equal ones.
    slope = grad(c.log_abs_det)(near)
    coth = 1 / math.tanh(1) - 1
    # Two gaps of 2: the derivative of log(sinh(d)/d) at d = 1 is coth(1) - 1, and
    # d moves by half the eigenvalue.
    want = torch.tensor([2 - coth / 2, 2 - coth / 2, 2 + coth], dtype=torch.float64)
    assert torch.allclose(slope.diagonal(), want, rtol=0, atol=1e-13)
    both = torch.linspace(0.2499, 0.2501, 9, dtype=torch.float64)
    volumes = torch.stack(
        [c.log_abs_det(torch.diag(torch.stack([g, -g]))) for g in both]
    )
    exact = (both.sinh() / both).log()  # the trace is zero, the only gap is 2g
    # Three logarithms of order one are subtracted.
    assert torch.allclose(volumes, exact, rtol=0, atol=10 * EPS)


def test_project_clips_eigenvalues():
    y = spread(5, 10.0) - 0.3 * torch.eye(5, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(y)
    want = of_spectrum(vectors, values.clamp(min=0))
    for c in (PositiveDefinite(), LogEuclidean(), PositiveSemidefinite()):
        # The floor of the open sets is n eps |Y|.
        assert torch.allclose(c.project(y), want, rtol=0, atol=50 * EPS)
    assert bool(PositiveDefinite().check(PositiveDefinite().project(0 * y)))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_every_semidefinite_matrix_has_a_chart(rank):
    """Zero rows first: without the order of the pivots the top is singular."""
    u = randn(7, rank, generator=generator())
    u[:3] = 0
    y = u @ u.mT
    c = PositiveSemidefinite(rank)
    order = c.bind(y)
    assert order.sort().values.tolist() == list(range(7))
    assert bool((order[:rank] >= 3).all())
    x = c.right_inverse(y, order)
    assert x.shape == (c.dim((7, 7)),)
    # An eigendecomposition and a QR decomposition, each some n eps |Y|.
    assert torch.allclose(c.forward(x, order), y, rtol=0, atol=50 * EPS * y.max())


def test_the_boundary_of_lower_rank_has_finite_free_values():
    y = torch.ones(4, 4, dtype=torch.float64)
    c = PositiveSemidefinite(3)
    x = c.right_inverse(y, c.bind(y))
    assert bool(x.isfinite().all())
    assert torch.allclose(c.forward(x, c.bind(y)), y, rtol=0, atol=20 * EPS)


@pytest.mark.parametrize("make", [LowRank, FixedRank])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_project_is_the_truncated_decomposition_and_round_trips(make, shape):
    a = randn(*shape, generator=generator())
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    c = make(2)
    y = c.project(a)
    assert torch.allclose(y, (u[:, :2] * s[:2]) @ vh[:2], rtol=0, atol=20 * EPS)
    x = c.right_inverse(y, c.bind(y))
    # Some n eps |Y| with |Y| below 5.
    assert torch.allclose(c.forward(x, c.bind(y)), y, rtol=0, atol=100 * EPS)


def test_the_factors_of_low_rank_are_balanced():
    a = LowRank(2).project(randn(6, 4, generator=generator()))
    x = LowRank(2).right_inverse(a, LowRank(2).bind(a))
    u, v = x[:12].reshape(6, 2), x[12:].reshape(4, 2)
    assert torch.allclose(u.mT @ u, v.mT @ v, rtol=0, atol=50 * EPS)


def test_fixed_rank_never_loses_rank_and_low_rank_may():
    a = LowRank(2).project(randn(5, 4, generator=generator()))
    fixed, low = FixedRank(2), LowRank(2)
    x = fixed.right_inverse(a, fixed.bind(a))
    y = fixed.forward(0 * x, fixed.bind(a))
    assert int(torch.linalg.matrix_rank(y)) == 2
    assert bool((low.forward(torch.zeros(18), low.bind(a)) == 0).all())
    assert low.dim((5, 4)) == fixed.dim((5, 4)) == len(x) == 14


def test_a_static_per_member_of_an_ensemble():
    y = torch.stack([torch.eye(3), torch.eye(3).flip(0)]) * torch.tensor([0.0, 1, 1])
    c = FixedRank(2)
    static = vmap(c.bind)(y)
    assert not torch.equal(static.order[0], static.order[1])
    x = vmap(c.right_inverse)(y, static)
    # Some n eps of float32.
    assert torch.allclose(vmap(c.forward)(x, static), y, atol=2e-6)


def test_impossible_ranks_and_lengths_raise_and_say_what_to_do():
    with pytest.raises(HyperparameterError, match="be an integer >= 1, got 0"):
        LowRank(0)
    with pytest.raises(HyperparameterError, match=r"be an integer >= 1, got 2\.0"):
        FixedRank(2.0)
    with pytest.raises(HyperparameterError, match="be an integer >= 1, got True"):
        PositiveSemidefinite(True)
    for c in (LowRank(3), FixedRank(3), PositiveSemidefinite(3)):
        for call in (c.bind, c.check, c.right_inverse, c.project):
            with pytest.raises(ConstraintError, match="at least 3 rows and columns"):
                call(torch.ones(2, 2))
        with pytest.raises(ConstraintError, match="Choose a smaller rank"):
            c.dim((2, 2))
        with pytest.raises(ConstraintError, match="have a last dimension"):
            c.forward(torch.ones(4))
    with pytest.raises(ConstraintError, match=r"n \(n \+ 1\) / 2: 1, 3, 6, 10"):
        PositiveDefinite().forward(torch.ones(4))
    with pytest.raises(ConstraintError, match=r"shape \(\.\.\., n, n\)"):
        PositiveDefinite().check(torch.ones(2, 3))


def test_a_static_of_another_shape_raises():
    y = torch.ones(4, 3)
    c = FixedRank(1)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    with pytest.raises(ConstraintError, match="map over the free value and the static"):
        c.forward(x.expand(2, -1), static)
    with pytest.raises(ConstraintError, match="be a `FixedRankStatic`"):
        c.forward(x, static.order)
    with pytest.raises(ConstraintError, match="row numbers of shape"):
        c.right_inverse(y, FixedRankStatic(static.order[:3], static.rows))
    with pytest.raises(ConstraintError, match="row numbers of shape"):
        PositiveSemidefinite(1).forward(torch.ones(3), torch.arange(2))
    with pytest.raises(ConstraintError, match="empty tensor of shape"):
        LowRank(1).forward(torch.ones(7), torch.ones(4, 3))


def test_what_is_no_static_raises():
    y = torch.eye(3)
    for static in (None, 0, [], {}):
        with pytest.raises(ConstraintError, match="be an empty tensor of shape"):
            LowRank(3).right_inverse(y, static)
        with pytest.raises(ConstraintError, match="be an empty tensor of shape"):
            LowRank(3).forward(torch.zeros(18), static)
    c = PositiveSemidefinite(2)
    with pytest.raises(ConstraintError, match="be an int64 tensor of row numbers"):
        c.forward(c.right_inverse(torch.diag(torch.tensor([1.0, 2.0, 0.0]))), y[0])


def test_a_factor_that_is_not_finite_is_no_factor_and_has_no_projection():
    factor = torch.eye(2).repeat(5, 1, 1)
    factor[1, 0, 0] = -torch.inf
    factor[2, 1, 1] = torch.inf
    factor[3, 1, 0] = torch.inf
    factor[4, 1, 0] = torch.nan
    for c in (CholeskyFactor(), CorrelationCholesky()):
        assert c.check(factor).tolist() == [True, False, False, False, False]
        assert bool(c.right_inverse(factor)[1:].isnan().all())
        assert bool(c.project(factor)[1:].isnan().all())


@pytest.mark.parametrize(
    "c", [PositiveDefinite(), PositiveSemidefinite(), BoundedSpectrum(0, 9)], ids=repr
)
def test_asymmetry_is_measured_entry_by_entry_in_large_matrices_too(c):
    y = torch.full((300, 300), 0.01) + torch.eye(300)
    assert bool(c.check(y))
    # Two hundred times the rounding of the entries: a spectrum would not feel it.
    y[0, 1] += 200 * torch.finfo(torch.float32).eps
    assert not bool(c.check(y))


def test_composition_asks_for_symmetric_matrices():
    assert repr(Symmetric() >> LogEuclidean()) == "Symmetric() >> LogEuclidean()"
    with pytest.raises(CompositionError, match=r"Symmetric\(\) >> LogEuclidean\(\)"):
        _ = Skew() >> LogEuclidean()
    # A definite matrix is symmetric: its exponential is at least the identity.
    twice = PositiveDefinite() >> LogEuclidean()
    assert bool((torch.linalg.eigvalsh(twice.forward(torch.zeros(3))) > 1).all())


def test_weight_decay_and_averages_stay_definite():
    c = PositiveDefinite()
    x = c.right_inverse(spread(8, 1e4).float())
    other = c.right_inverse(torch.eye(8))
    for moved in (0.99 * x, 0 * x, (x + other) / 2):
        assert bool(c.check(c.forward(moved)))


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_values_and_gradients_right():
    """In one program all maps of the family that are not made of others."""
    g = generator()
    y = LowRank(2).project(randn(4, 3, generator=g))
    fixed, low = FixedRank(2), LowRank(2)
    definite = spread(4, 10.0)
    cases = [
        (c, c.bind(value), c.right_inverse(value, c.bind(value)))
        for c, value in (
            (PositiveDefinite(), definite),
            (Symmetric() >> LogEuclidean(), definite),
            (PositiveSemidefinite(2), PositiveSemidefinite(2).project(definite)),
            (low, y),
            (fixed, y),
            (Correlation(), Correlation().project(definite)),
            (BoundedSpectrum(0, 2), definite),
        )
    ]

    def total(xs):
        parts = []
        for (c, static, _), x in zip(cases, xs, strict=True):
            flat = c.forward(x, static).flatten()
            weights = torch.linspace(1, 2, len(flat), dtype=flat.dtype)
            parts.append((flat * weights).sum())
        return torch.stack(parts).sum(), torch.stack(parts)

    def program(xs):
        slopes, parts = grad(total, has_aux=True)(xs)
        return parts, slopes

    xs = [x for _, _, x in cases]
    values, slopes = torch.compile(program, fullgraph=True)(xs)
    want_values, want_slopes = program(xs)
    # Sums of some ten products of order ten, added in another order.
    assert torch.allclose(values, want_values, rtol=1e-12, atol=1e-12)
    for got, want in zip(slopes, want_slopes, strict=True):
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-11)
