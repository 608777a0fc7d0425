"""Simplices and stochastic matrices against scipy, torch, integrals and hard cases."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from scipy import integrate
from torch.distributions import StickBreakingTransform
from torch.func import grad_and_value, jacfwd, jacrev

import pureopt as po
from pureopt import ConstraintError
from pureopt.constraints import (
    DoublyStochastic,
    RowStochastic,
    Simplex,
    SimplexSoftmax,
    SimplexStickBreaking,
    _doubly_stochastic,
)
from tests.constraints.rows_simplex import dirichlet, doubly_extremes

DTYPES = [torch.float32, torch.float64]
MAPS = [Simplex(), SimplexSoftmax(), SimplexStickBreaking()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_the_log_ratios_are_scipys_helmert_matrix_times_the_logarithm():
    p = dirichlet(7, (), generator())
    want = torch.from_numpy(scipy.linalg.helmert(7)) @ p.log()
    # Scipy's rows have the other sign where they begin with minus: none do.
    assert torch.allclose(Simplex().right_inverse(p), want, rtol=0, atol=1e-13)


def test_softmax_and_log_ratios_are_one_map_up_to_the_constant():
    p = dirichlet(7, (), generator())
    x = SimplexSoftmax().right_inverse(p)
    assert abs(float(x.sum())) <= 1e-13
    assert torch.allclose(Simplex().right_inverse(p).norm(), x.norm())
    assert torch.allclose(SimplexSoftmax().forward(x + 50), p, rtol=1e-13, atol=0)


def test_one_probability_is_one():
    one = torch.ones(1)
    for c in MAPS:
        assert torch.equal(c.forward(c.right_inverse(one)), one)
        assert torch.equal(c.sample(po.random.key(0), (5, 1)), torch.ones(5, 1))
        assert torch.equal(c.project(torch.tensor([-3.0])), one)


def test_stick_breaking_is_torchs():
    torchs, ours = StickBreakingTransform(), SimplexStickBreaking()
    x = normal(20, 6)
    p = torchs(x)
    assert torch.allclose(ours.forward(x), p, rtol=1e-12, atol=1e-14)
    # Torch measures in the first K - 1 entries, we in the plane of the simplex.
    want = torchs.log_abs_det_jacobian(x, p) + math.log(7) / 2
    assert torch.allclose(ours.log_abs_det(x), want, rtol=1e-10, atol=1e-10)


def test_stick_breaking_undoes_large_numbers():
    """torch 2.13 gives (17.0, 72.1, 55.5) for x = 30 in float64."""
    c, x = SimplexStickBreaking(), torch.full((3,), 30.0, dtype=torch.float64)
    # log p has a rounding of numbers up to 90.
    assert torch.allclose(c.right_inverse(c.forward(x)), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("c", MAPS, ids=repr)
def test_each_probability_keeps_its_relative_digits(c):
    """torch 2.13, stick breaking, K = 1000, float32: off by up to 4.9e-4."""
    p = dirichlet(1000, (20,), generator(3)).to(torch.float32)
    p = p / p.sum(-1, keepdim=True)
    again = c.forward(c.right_inverse(p))
    relative = (again - p).abs() / p
    # Logarithms down to -35, and cumulative sums of 1000 terms whose roundings add up
    # at random: eps (35 + sqrt(1000)) is 8e-6; twice, once each way.
    assert float(relative.max()) <= 1.6e-5


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("c", MAPS, ids=repr)
def test_vertices_come_back_from_finite_numbers(c, dtype):
    for y in torch.eye(4, dtype=dtype):
        x = c.right_inverse(y)
        assert bool(x.isfinite().all())
        assert float((c.forward(x) - y).abs().max()) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", MAPS, ids=repr)
def test_inside_the_radius_no_probability_leaves_the_normal_numbers(c, dtype):
    for n in (2, 5, 20):
        radius = c.radius(n, dtype)
        d = n if c == SimplexSoftmax() else n - 1
        signs = torch.cat([torch.eye(d), torch.ones(1, d), 1 - 2 * torch.eye(d)])
        for x in (signs * radius, -signs * radius):
            assert float(c.forward(x.to(dtype)).min()) >= torch.finfo(dtype).tiny


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_projection_satisfies_the_conditions_of_optimality(shift, dtype):
    y = (3 * normal(50, 9) + shift).to(dtype)
    p = Simplex().project(y)
    eps = torch.finfo(dtype).eps
    assert bool((p >= 0).all())
    # Nine roundings of numbers below one.
    assert float((p.sum(-1) - 1).abs().max()) <= 9 * eps
    # One multiplier: y - p is the same where p > 0, and at least y elsewhere.
    gap = (y - y.amax(-1, keepdim=True)) - p
    level = torch.where(p > 0, gap, -torch.inf).amax(-1, keepdim=True)
    assert float(torch.where(p > 0, level - gap, 0).max()) <= 9 * eps
    assert float(torch.where(p > 0, -torch.inf, gap - level).max()) <= 9 * eps


@pytest.mark.parametrize("k", [2, 5])
def test_samples_are_uniform(k):
    p = Simplex().sample(po.random.key(k), (20_000, k), dtype=torch.float64)
    for i in range(k):
        marginal = scipy.stats.kstest(p[:, i].numpy(), scipy.stats.beta(1, k - 1).cdf)
        assert marginal.pvalue > 1e-3
    # E p_1 p_2 = 1 / (k (k + 1)); the mean of 20000 numbers below 1/4.
    product = float((p[:, 0] * p[:, 1]).mean())
    assert abs(product - 1 / (k * (k + 1))) <= 5 * 0.25 / math.sqrt(20_000)


@pytest.mark.parametrize("c", [Simplex(), SimplexStickBreaking()], ids=repr)
def test_the_volume_of_the_chart_is_that_of_the_simplex(c):
    grid = torch.arange(-60, 60, 0.25, dtype=torch.float64)
    segment = c.log_abs_det(grid.unsqueeze(-1)).exp().sum() * 0.25
    triangle = c.log_abs_det(torch.cartesian_prod(grid, grid)).exp().sum() * 0.25**2
    # The trapezoidal rule is exact up to exp(-2 pi^2 / 0.25 / ...) for such functions.
    assert abs(float(segment) - math.sqrt(2)) <= 1e-9
    assert abs(float(triangle) - math.sqrt(3) / 2) <= 1e-9


def test_the_volume_of_doubly_stochastic_two_by_two_is_the_length_of_the_segment():
    c = DoublyStochastic()

    def density(x):
        return float(c.log_abs_det(torch.tensor([x], dtype=torch.float64)).exp())

    # From the identity to the other permutation.
    assert abs(integrate.quad(density, -80, 80, points=[0])[0] - 2) <= 1e-8


def test_log_abs_det_of_a_steep_map_keeps_its_digits():
    """The singular values of its Jacobian span more than float64 has digits."""
    c, x = DoublyStochastic(), 10 * normal(9)
    helmert = scipy.linalg.helmert(4)
    with mpmath.workdps(60):
        basis = mpmath.matrix(np.kron(helmert, helmert))
        p = [mpmath.mpf(v) for v in c.forward(x).flatten().tolist()]
        inverse = basis * mpmath.diag([1 / v for v in p]) * basis.T
        want = -float(mpmath.log(mpmath.det(inverse)))
    # Sixteen logarithms down to -60, of entries with some ten roundings.
    assert abs(float(c.log_abs_det(x)) - want) <= 1e-11


def test_doubly_stochastic_is_the_limit_of_sinkhorns_alternation():
    x = normal(10, 16)
    c = DoublyStochastic()
    logits = scipy.linalg.helmert(5).T @ x.reshape(10, 4, 4).numpy()
    p = torch.from_numpy(logits @ scipy.linalg.helmert(5)).exp()
    for _ in range(2000):
        p = p / p.sum(-1, keepdim=True)
        p = p / p.sum(-2, keepdim=True)
    assert torch.allclose(c.forward(x), p, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0, 30.0])
def test_sums_are_one_to_rounding_error_at_every_scale_of_the_logits(scale, dtype):
    """60 plain iterations of Sinkhorn leave 2e-3 at scale 3."""
    c = DoublyStochastic()
    for n in (2, 3, 8, 33):
        x = (scale * normal(20, (n - 1) ** 2, seed=n)).to(dtype)
        p = c.forward(x)
        # Sums of n numbers below one, after a correction that is itself rounded.
        assert float(c.violation(p).max()) <= 2 * math.sqrt(n) * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [2, 5, 33])
def test_corners_of_the_radius_of_doubly_stochastic_are_feasible(n, dtype):
    c = DoublyStochastic()
    ones = torch.ones(1, (n - 1) ** 2, dtype=torch.float64)
    random = normal(10, (n - 1) ** 2, seed=1).sign()
    x = c.radius(n, dtype) * torch.cat([ones, -ones, random]).to(dtype)
    assert bool(c.check(c.forward(x)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_far_out_doubly_stochastic_is_nan_or_right_but_never_wrong(dtype):
    """Without the check sums were off by up to 4."""
    c = DoublyStochastic()
    x = (300 * normal(30, 32**2)).to(dtype)
    y = c.forward(x)
    lost = y.isnan().flatten(1).all(-1)
    assert bool(lost.any())
    assert torch.equal(c.check(y), ~lost)
    assert torch.equal(c.log_abs_det(x).isnan(), lost)
    near = c.forward(x.clamp(-c.radius(33, dtype), c.radius(33, dtype)))
    assert bool(c.check(near).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_probabilities_of_few_digits_still_add_up(dtype):
    """Ten roundings times the root of the length were one half in bfloat16."""
    y = torch.full((64,), 1 / 64, dtype=dtype)
    more = y * (1 + 16 * torch.finfo(dtype).eps)
    for c in MAPS:
        assert bool(c.check(y))
        assert not bool(c.check(more))
        assert bool(c.right_inverse(more).isnan().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_permutations_come_back(dtype):
    """geoopt 0.5.1: its own origin, the identity, gives NaN."""
    c = DoublyStochastic()
    for n in (2, 5, 12):
        for y in torch.stack(doubly_extremes(n)).to(dtype):
            x = c.right_inverse(y)
            assert bool(c.check(c.forward(x)))
            # Free numbers up to 708 n round by eps each.
            assert bool((c.forward(x) - y).abs().max() <= c.rounding(x, y))
            slope = torch.func.grad(lambda x: c.forward(x).square().sum())(x)
            assert bool(slope.isfinite().all())


def test_derivatives_of_doubly_stochastic_are_those_of_the_implicit_function():
    c, x = DoublyStochastic(), 2 * normal(9)
    p = c.forward(x)
    helmert = torch.from_numpy(scipy.linalg.helmert(4))
    basis = torch.kron(helmert, helmert)
    # dP = B dw and dx = B^T (dP / P): the Jacobian is the inverse of B^T diag(1/P) B.
    inverse = basis @ torch.diag(1 / p.flatten()) @ basis.mT
    want = basis.mT @ torch.linalg.inv(inverse)
    for mode in (jacfwd, jacrev):
        assert torch.allclose(mode(c.forward)(x).reshape(16, 9), want, atol=1e-12)


def test_the_third_derivative_of_doubly_stochastic_is_right_too():
    c, x, h = DoublyStochastic(), normal(4), 1e-3
    second = jacfwd(jacrev(c.forward))
    third = jacfwd(second)(x)
    for i, e in enumerate(torch.eye(4, dtype=torch.float64)):
        a, b, d, f = (second(x + k * h * e) for k in (-2, -1, 1, 2))
        want = (a - 8 * b + 8 * d - f) / (12 * h)
        # Fourth-order differences: rounding eps / h, truncation h^4.
        assert torch.allclose(third[..., i], want, rtol=0, atol=1e-10)


def test_a_bad_lane_is_alone():
    x = normal(4, 9).index_fill(0, torch.tensor([1]), torch.nan)
    x[2] = torch.inf
    p = DoublyStochastic().forward(x)
    assert p.isfinite().all(-1).all(-1).tolist() == [True, False, False, True]
    assert torch.equal(p[0], DoublyStochastic().forward(x[:1])[0])


def test_entries_below_zero_by_rounding_are_taken():
    y = torch.tensor([1.0, 1e-7, -1e-7])
    assert bool(Simplex().check(y))
    assert bool(Simplex().right_inverse(y).isfinite().all())
    assert not bool(Simplex().check(torch.tensor([1.0, 0.1, -0.1])))


def test_shapes_that_do_not_fit_raise():
    with pytest.raises(ConstraintError, match="at least one entry"):
        Simplex().check(torch.zeros(2, 0))
    with pytest.raises(ConstraintError, match="at least one entry"):
        SimplexSoftmax().forward(torch.zeros(0))
    with pytest.raises(ConstraintError, match=r"\(n - 1\)\^2: 0, 1, 4, 9"):
        DoublyStochastic().forward(torch.zeros(3))
    c = RowStochastic()
    static = c.bind(torch.full((2, 4), 0.25))
    with pytest.raises(ConstraintError, match=r"2 \(4 - 1\) by the static"):
        c.forward(torch.zeros(5), static)
    with pytest.raises(ConstraintError, match="be an empty tensor of shape"):
        c.forward(torch.zeros(3, 6), static)
    with pytest.raises(ConstraintError, match="be an empty tensor of shape"):
        c.right_inverse(torch.eye(3), static)
    with pytest.raises(ConstraintError, match=r"n \(n - 1\) without static"):
        c.forward(torch.zeros(5))


def test_rows_that_cannot_be_raise_in_sample():
    for shape in ((3,), (3, 0), (0, 3)):
        with pytest.raises(ConstraintError, match="have a shape"):
            RowStochastic().sample(po.random.key(0), shape)


def test_what_is_no_probability_is_told():
    with pytest.raises(ConstraintError, match=r"sum\(Y\) - 1"):
        po.constrain(torch.ones(3), Simplex())


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_values_and_gradients_right(monkeypatch):
    # Only the steps that carry derivatives: each takes seconds to compile. Enough for
    # small logits.
    monkeypatch.setattr(_doubly_stochastic, "_HALVINGS", 0)
    monkeypatch.setattr(_doubly_stochastic, "_LAST", 0)
    maps = [Simplex(), SimplexStickBreaking(), RowStochastic()]

    def total(x):
        parts = [c.forward(x) for c in maps]
        parts.append(DoublyStochastic().forward(x[:4] / 100))
        flat = torch.cat([part.flatten() for part in parts])
        weights = torch.arange(flat.shape[0], dtype=x.dtype)
        return (flat * weights).sum()

    x = normal(6)
    compiled = torch.compile(grad_and_value(total), fullgraph=True)(x)
    for got, want in zip(compiled, grad_and_value(total)(x), strict=True):
        # Sums of some thirty products of order ten, in another order.
        assert torch.allclose(got, want, rtol=0, atol=1e-12)
