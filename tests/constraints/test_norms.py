"""WeightNorm, SpectralNorm, PowerSpectralNorm, Lipschitz against torch and moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import grad, grad_and_value, hessian, jacfwd, jacrev, vmap
from torch.nn.utils import parametrizations

from pureopt import (
    Adam,
    ConstraintError,
    HyperparameterError,
    constrain,
    make_step,
    random,
)
from pureopt.constraints import (
    Lipschitz,
    PowerSpectralNorm,
    SpectralNorm,
    WeightNorm,
    WeightNormParts,
)
from tests.constraints.rows_orthogonal import haar


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def weighted(y):
    return (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum()


@pytest.mark.parametrize(("axis", "dim"), [(-2, 0), (-1, 1)])
def test_weight_norm_is_torchs_value_and_gradient(axis, dim):
    linear = torch.nn.Linear(3, 5, bias=False, dtype=torch.float64)
    parametrizations.weight_norm(linear, dim=dim)
    weight = linear.parametrizations.weight
    v, g = randn(5, 3), randn(5 if dim == 0 else 3, seed=1)
    with torch.no_grad():
        weight.original0.copy_(g.unsqueeze(1 - dim))
        weight.original1.copy_(v)
    weighted(linear.weight).backward()
    c, x = WeightNorm(axis), WeightNormParts(g, v)
    slope = grad(lambda x: weighted(c.forward(x)))(x)
    # A handful of roundings of numbers of order ten.
    for got, want in (
        (c.forward(x), linear.weight.detach()),
        (slope.magnitude, weight.original0.grad.squeeze(1 - dim)),
        (slope.direction, weight.original1.grad),
    ):
        assert torch.allclose(got, want, rtol=0, atol=1e-13)


def test_a_zero_row_has_magnitude_zero_and_a_finite_gradient():
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    x = WeightNorm().right_inverse(w)
    assert torch.equal(x.magnitude, torch.tensor([5.0, 0.0]))
    assert torch.equal(x.direction, torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    slope = grad(lambda x: weighted(WeightNorm().forward(x)))(x)
    # The row leaves zero along its direction, the first basis vector: 3 is its weight.
    assert float(slope.magnitude[1]) == 3.0
    zero = WeightNormParts(torch.ones(2), torch.zeros(2, 2))
    slope = grad(lambda x: weighted(WeightNorm().forward(x)))(zero)
    assert bool(slope.direction.isfinite().all())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_weight_norm_neither_overflows_nor_vanishes(scale):
    """The squares of these numbers do in float32."""
    w = scale * randn(4, 3, dtype=torch.float32)
    c = WeightNorm()
    again = c.forward(c.right_inverse(w))
    # A norm, a quotient and a product: a few roundings.
    assert torch.allclose(again, w, rtol=1e-6, atol=0)


def test_torchs_spectral_norm_has_no_right_inverse_and_ours_does():
    """Assign a matrix with sigma = 12.3: torch reads back one that is off by 9.5."""
    w = randn(6, 4)
    w = w * 12.3 / torch.linalg.matrix_norm(w, 2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        linear = torch.nn.Linear(4, 6, bias=False, dtype=torch.float64)
        parametrizations.spectral_norm(linear).eval()
        linear.weight = w
    assert float((linear.weight - w).detach().abs().max()) > 5
    assert bool(SpectralNorm().right_inverse(w).isnan().all())
    c = SpectralNorm(norm=12.3)
    # The round trip divides by sigma / 12.3, which is one up to some eps.
    assert torch.allclose(c.forward(c.right_inverse(w)), w, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 3e38])
def test_spectral_norm_does_not_depend_on_the_scale(scale):
    w = randn(5, 3, dtype=torch.float32)
    w = w / w.abs().max()
    got = SpectralNorm(norm=2.0).forward(scale * w)
    want = 2 * w / torch.linalg.matrix_norm(w, 2)
    assert torch.allclose(got, want, rtol=0, atol=1e-6)  # some eps of float32


def test_spectral_norm_of_zero_is_in_the_set():
    y = SpectralNorm(norm=2.0).forward(torch.zeros(2, 3))
    assert torch.equal(y, torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    slope = grad(lambda x: weighted(SpectralNorm().forward(x)))(torch.zeros(2, 3))
    assert bool(slope.isfinite().all())


def test_first_derivatives_at_repeated_singular_values_are_finite():
    """Of an orthogonal matrix, where those of singular vectors are NaN."""
    y = haar(4, (), generator())
    for c in (SpectralNorm(), Lipschitz(0.5), Lipschitz(2.0)):
        for mode in (jacfwd, jacrev):
            assert bool(mode(c.forward)(y).isfinite().all())


def test_projections_are_the_nearest_points():
    u, v = haar(4, (), generator(1)), haar(3, (), generator(2))

    def matrix(*s):
        return (u[:, :3] * torch.tensor(s, dtype=u.dtype)) @ v

    for c, start, want in (
        (Lipschitz(2.0), (5.0, 2.5, 1.0), (2.0, 2.0, 1.0)),
        (SpectralNorm(2.0), (5.0, 2.5, 1.0), (2.0, 2.0, 1.0)),
        (SpectralNorm(2.0), (1.5, 1.0, 0.5), (2.0, 1.0, 0.5)),
        (PowerSpectralNorm(2.0), (1.5, 1.0, 0.5), (2.0, 1.0, 0.5)),
    ):
        # A decomposition and a product: some n eps.
        got = c.project(matrix(*start))
        assert torch.allclose(got, matrix(*want), rtol=0, atol=1e-14)


def test_lipschitz_is_the_identity_inside_with_all_its_derivatives():
    """Zero and multiples of the identity, where singular values meet."""
    for y in (torch.zeros(3, 3).double(), 0.5 * torch.eye(3).double()):
        assert torch.equal(Lipschitz().forward(y), y)
        slope = jacrev(Lipschitz().forward)(y).reshape(9, 9)
        assert torch.equal(slope, torch.eye(9, dtype=y.dtype))
        curvature = hessian(lambda y: weighted(Lipschitz().forward(y)))(y)
        assert not bool(curvature.any())


def test_the_bound_may_be_a_tensor_that_vmap_sweeps_and_grad_reaches():
    w = randn(3, 4)
    bounds = torch.tensor([0.5, 100.0], dtype=torch.float64)
    swept = vmap(lambda bound: Lipschitz(bound).forward(w))(bounds)
    for bound, got in zip(bounds.tolist(), swept, strict=True):
        # The same kernels, in a batch: some eps.
        assert torch.allclose(got, Lipschitz(bound).forward(w), rtol=0, atol=1e-15)
    slope = jacrev(lambda bound: Lipschitz(bound).forward(w))(bounds[0])
    want = w / torch.linalg.matrix_norm(w, 2)
    assert torch.allclose(slope, want, rtol=0, atol=1e-14)
    assert SpectralNorm(bounds[1]).forward(w).dtype == torch.float64


def test_samples_are_uniform_in_the_ball_and_on_its_surface():
    """Against the moments of uniform points, from a density of t^(nk - 1) along rays."""
    n, k, draws = 3, 2, 20_000
    key = random.key(3)
    ball = Lipschitz(2.0).sample(key, (draws, n, k), dtype=torch.float64)
    surface = SpectralNorm(2.0).sample(key, (draws, n, k), dtype=torch.float64)
    assert bool(Lipschitz(2.0).check(ball).all())
    assert bool(SpectralNorm(2.0).check(surface).all())
    # A column of a random orthogonal matrix of size N has entries of variance 1 / N.
    variance = 4 / (n + k + 1)
    radial = (n * k + 2) / (n * k)  # 1 over the mean of t^2
    for y, want in ((ball, variance), (surface, variance * radial)):
        # Four standard errors: the fourth moment is below 3 (Gauss), and the entries
        # of a matrix are hardly correlated.
        error = 4 * want * math.sqrt(2 / (draws * n * k))
        assert abs(float((y * y).mean()) - want) < error
        assert abs(float(y.mean())) < 4 * math.sqrt(want / (draws * n * k))
    # The largest singular value of the ball is distributed as t = u^(1 / nk).
    sigma = torch.linalg.matrix_norm(ball, 2) / 2
    mean = n * k / (n * k + 1)
    spread = math.sqrt(1 / radial - mean**2)
    assert abs(float(sigma.mean()) - mean) < 4 * spread / math.sqrt(draws)
    wide = Lipschitz().sample(key, (draws, k, n))
    assert abs(float((wide * wide).mean()) - variance / 4) < 4 * variance / math.sqrt(
        2 * draws * n * k
    )


def test_power_iteration_converges_to_the_exact_map_with_its_derivatives():
    s = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    w = (haar(5, (), generator(4))[:, :3] * s) @ haar(3, (), generator(5))
    c, exact = PowerSpectralNorm(steps=12), SpectralNorm()
    # (1 / 3)^24 = 4e-12 is left of the error of the start, a few of that of the
    # second derivatives.
    for f in (
        lambda c: c.forward(w),
        lambda c: jacfwd(c.forward)(w),
        lambda c: hessian(lambda w: weighted(c.forward(w)))(w),
    ):
        assert torch.allclose(f(c), f(exact), rtol=0, atol=1e-8)


def test_rebinding_follows_a_moving_matrix():
    """The error stays where one step of power iteration per step of training leaves it."""
    c, w = PowerSpectralNorm(norm=2.0), randn(20, 10, seed=6)
    y = SpectralNorm(norm=2.0).forward(w)
    static = c.bind(y)
    assert torch.equal(c.right_inverse(y, static), y)
    x, errors = y, []
    for step in range(40):
        x = x + 0.01 * randn(20, 10, seed=step)
        x, static = c.rebind(x, static)
        errors.append(float(c.violation(c.forward(x, static))))
    stale = float(c.violation(c.forward(x, c.bind(y))))
    assert max(errors) < 0.02  # rtol of the norm
    assert errors[-1] < 0.1 * stale


def test_a_loss_that_gains_from_the_norm_outgrows_a_stale_vector():
    """What the documentation says: five steps of iteration, and rebase now and then."""
    a, start = randn(12, 12, seed=1), SpectralNorm().project(randn(12, 12))

    def sigma(c, every):
        step = make_step(
            lambda w: -(a * w).sum(), Adam(0.02), space=constrain(start, c)
        )
        carry = step.init(start)
        for i in range(1, 41):
            carry, _ = step(carry)
            carry = carry if i % every else step.rebase(carry)
        return float(torch.linalg.matrix_norm(step.params(carry), 2))

    assert sigma(PowerSpectralNorm(steps=1), every=41) > 2
    assert sigma(PowerSpectralNorm(), every=10) < 1.1


def test_the_estimate_is_never_above_the_largest_singular_value():
    c = PowerSpectralNorm(norm=1.0, steps=2)
    y = c.forward(randn(200, 7, 5))
    # Up to the rounding of the decomposition.
    assert bool((torch.linalg.matrix_norm(y, 2) >= 1 - 1e-14).all())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SpectralNorm(0.0), "positive and finite, got 0.0"),
        (lambda: SpectralNorm(torch.ones(2)), "0-d floating-point tensor"),
        (lambda: Lipschitz(math.inf), "positive and finite"),
        (lambda: Lipschitz("1"), "number or a 0-d tensor"),
        (lambda: PowerSpectralNorm(steps=0), "at least 1"),
        (lambda: PowerSpectralNorm(steps=1.0), "integer"),
        (lambda: PowerSpectralNorm(rtol=1.0), r"in \[0, 1\)"),
        (lambda: WeightNorm(axis=0), "-2"),
    ],
)
def test_hyper_parameters_are_checked_when_made(make, match):
    with pytest.raises(HyperparameterError, match=match):
        make()


def test_wrong_free_values_and_statics_raise():
    c = WeightNorm()
    with pytest.raises(ConstraintError, match="WeightNormParts"):
        c.forward(torch.ones(3, 3))
    with pytest.raises(ConstraintError, match=r"shape \(3,\)"):
        c.forward((torch.ones(2), torch.ones(3, 2)))
    c = PowerSpectralNorm()
    with pytest.raises(ConstraintError, match=r"shape \(2,\)"):
        c.forward(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(ConstraintError, match="Take it from `bind`"):
        c.right_inverse(torch.ones(3, 2), (torch.ones(2),))


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_agrees_on_values_and_gradients():
    w = randn(3, 4)
    bound = torch.tensor(0.5, dtype=torch.float64)
    static = randn(4, seed=1)
    g = randn(3, seed=2)

    def total(w, g, bound, static):
        parts = (
            SpectralNorm(2.0).forward(w),
            Lipschitz(bound).forward(w),
            PowerSpectralNorm(steps=2).forward(w, static),
            WeightNorm().forward(WeightNormParts(g, w)),
        )
        return sum(i * weighted(y) for i, y in enumerate(parts, 1))

    both = grad_and_value(total, argnums=(0, 1))
    args = (w, g, bound, static)
    (got, got_g), got_value = torch.compile(both, fullgraph=True)(*args)
    (want, want_g), want_value = both(*args)
    # Sums of a dozen terms of order a hundred, in another order.
    for a, b in ((got, want), (got_g, want_g), (got_value, want_value)):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)
