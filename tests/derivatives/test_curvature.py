"""Krylov methods and trace estimators against dense linear algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.func import vmap

import pureopt as po
from pureopt import HyperparameterError, TreeError
from pureopt._random import normal
from pureopt._tree import ravel, unravel
from pureopt.derivatives._lanczos import gauss_quadrature
from pureopt.derivatives._operator import rademacher
from tests.derivatives.row import randn
from tests.derivatives.rows_curvature import operator, symmetric

D = po.derivatives
KEY = po.random.key(0)
TRACES = [D.trace_hutchinson, D.trace_hutchpp, D.trace_xtrace]


def with_eigenvalues(values, seed=0, dtype=torch.float64):
    """A dense matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(randn(len(values), len(values), seed=seed))[0]
    return ((q * values) @ q.mT).to(dtype)


def times(a):
    return lambda v: a @ v


def dense_function(a, g):
    values, vectors = np.linalg.eigh(a.numpy())
    return torch.from_numpy((vectors * g(values)) @ vectors.T)


def rms(estimates, truth):
    return float((estimates - truth).square().mean().sqrt())


def over_keys(estimator, a, keys, **settings):
    """The values for many keys at once."""

    def one(key):
        return estimator(times(a), a[0], key=key, **settings)

    return vmap(one)(po.random.split(po.random.key(11), keys))


# ---------------------------------------------------------------- Lanczos


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A few hundred roundings of numbers up to 20, the norm of the matrix.
    [(torch.float64, 1e-12), (torch.float32, 5e-4)],
    ids=str,
)
def test_lanczos_is_tridiagonal_in_an_orthonormal_basis(dtype, tolerance):
    a = symmetric(40, dtype=dtype)
    alphas, betas, q = D.lanczos(times(a), randn(40, seed=1, dtype=dtype), 40)
    t = torch.diag(alphas) + torch.diag(betas[:-1], 1) + torch.diag(betas[:-1], -1)
    # The orthogonality is that of the arithmetic, not of the operator.
    gram_error = (q @ q.mT - torch.eye(40, dtype=dtype)).abs().max()
    assert gram_error < 40 * torch.finfo(dtype).eps
    torch.testing.assert_close(q @ a @ q.mT, t, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(t), torch.linalg.eigvalsh(a), rtol=0, atol=tolerance
    )


def test_orthogonality_survives_the_convergence_of_an_outlier():
    # Without reorthogonalization the eigenvalue 1e6 returns after some ten steps.
    a = with_eigenvalues([1e6, *np.linspace(0, 1, 79)])
    _, _, q = D.lanczos(times(a), randn(80, seed=1), 60)
    gram_error = (q @ q.mT - torch.eye(60, dtype=torch.float64)).abs().max()
    assert gram_error < 80 * torch.finfo(torch.float64).eps


def test_the_last_beta_bounds_the_error_of_a_ritz_value():
    a = symmetric(60)
    alphas, betas, _ = D.lanczos(times(a), randn(60, seed=1), 12)
    t = torch.diag(alphas) + torch.diag(betas[:-1], 1) + torch.diag(betas[:-1], -1)
    values, vectors = torch.linalg.eigh(t)
    true = torch.linalg.eigvalsh(a)
    distance = (values[:, None] - true).abs().amin(-1)
    bound = betas[-1] * vectors[-1].abs()
    assert (distance <= bound + 1e-12).all()  # 1e-12: rounding, eps times the norm 20
    assert (bound[-1] < 1).all()


def test_an_exhausted_krylov_space_ends_in_zeros():
    # Three different eigenvalues: no vector generates more than three dimensions.
    d = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64).repeat(5)
    alphas, betas, q = D.lanczos(lambda v: d * v, randn(15), 8)
    assert (betas[2:] == 0).all()
    assert (q[3:] == 0).all()
    assert (alphas[3:] == alphas[0]).all()
    t = torch.diag(alphas[:3]) + torch.diag(betas[:2], 1) + torch.diag(betas[:2], -1)
    # Some ten roundings of 9.
    torch.testing.assert_close(torch.linalg.eigvalsh(t), d[:3], rtol=0, atol=1e-13)


def test_rounding_noise_after_the_last_dimension_has_no_weight():
    # Three close eigenvectors of a matrix with more: what rounding adds to the start is
    # amplified before it is dropped, and the space goes on from there.
    a = with_eigenvalues(np.linspace(1, 2, 20))
    values, vectors = torch.linalg.eigh(a)
    spectrum = D.lanczos(times(a), vectors[:, [0, 4, 8]].sum(-1), 10)
    nodes, weights = gauss_quadrature(spectrum.alphas, spectrum.betas)
    # The weight of noise is the square of the coupling, below 1e-11 here.
    heavy = weights > 1e-20
    assert heavy.sum() == 3
    torch.testing.assert_close(nodes[heavy], values[[0, 4, 8]], rtol=0, atol=1e-12)
    assert nodes.isfinite().all()


def test_the_derivative_is_finite_where_the_krylov_space_is_exhausted():
    a = torch.eye(4, dtype=torch.float64)

    def total(a, start):
        return sum(leaf.sum() for leaf in D.lanczos(times(a), start, 3))

    for g in torch.func.grad(total, argnums=(0, 1))(a, randn(4)):
        assert g.isfinite().all()


def test_a_lane_that_is_not_finite_leaves_the_others_alone():
    a = torch.stack([symmetric(8), torch.full((8, 8), torch.nan), symmetric(8, 1)])
    a[1] = torch.where(torch.eye(8, dtype=bool), 1.0, a[1])

    def estimates(a):
        settings = {"key": KEY, "probes": 2, "steps": 4}
        return (
            D.spectral_density(times(a), a[0], **settings).nodes,
            D.top_eigenpairs(times(a), a[0], 2, key=KEY, steps=3).values,
            D.log_determinant(times(a @ a), a[0], **settings).value[None],
            *(
                trace(times(a), a[0], key=KEY, matvecs=6).value[None]
                for trace in TRACES
            ),
        )

    for lanes in vmap(estimates)(a):
        assert lanes[0].isfinite().all()
        assert lanes[1].isnan().all()
        assert lanes[2].isfinite().all()


def test_a_zero_start_is_nan():
    alphas, betas, q = D.lanczos(lambda v: v, torch.zeros(3), 2)
    assert alphas.isnan().all()
    assert betas.isnan().all()
    assert q.isnan().all()


def test_leaves_keep_their_dtypes_and_the_numbers_the_widest():
    start = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(1).double()}
    alphas, _, vectors = D.lanczos(lambda v: v, start, 2)
    assert alphas.dtype == torch.float64
    assert vectors["a"].dtype == torch.bfloat16
    assert vectors["b"].dtype == torch.float64
    assert D.lanczos(lambda v: v, start["a"], 2).alphas.dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_that_leave_the_range_of_float32_do_no_harm(scale):
    a, start = symmetric(12, dtype=torch.float32), randn(12, dtype=torch.float32)
    small = {"rtol": 1e-4, "atol": 1e-4}  # some hundred roundings of numbers near 5
    plain = D.lanczos(times(a), start, 4)
    other = D.lanczos(times(a), scale * start, 4)
    torch.testing.assert_close(other, plain, **small)
    other = D.lanczos(times(scale * a), start, 4)
    torch.testing.assert_close(other.alphas / scale, plain.alphas, **small)
    torch.testing.assert_close(other.betas / scale, plain.betas, **small)
    settings = {"key": KEY, "steps": 2}
    plain = D.top_eigenpairs(times(a), a[0], 2, **settings).residuals
    other = D.top_eigenpairs(times(scale * a), a[0], 2, **settings).residuals
    assert (plain > 0.1).all()
    torch.testing.assert_close(other / scale, plain, **small)
    plain = D.trace_hutchinson(times(a), a[0], key=KEY, matvecs=4).stderr
    other = D.trace_hutchinson(times(scale * a), a[0], key=KEY, matvecs=4).stderr
    torch.testing.assert_close(other / scale, plain, **small)


def test_the_derivative_is_that_of_finite_differences():
    a, start, da = symmetric(10), randn(10, seed=1), symmetric(10, 2)

    def coefficients(a):
        return torch.cat(D.lanczos(times(a), start, 4)[:2])

    tangent = torch.func.jvp(coefficients, (a,), (da,))[1]
    h = 1e-5
    difference = (coefficients(a + h * da) - coefficients(a - h * da)) / (2 * h)
    # h^2 times a third derivative below 1e2; rounding of 1e-15 over h is less.
    torch.testing.assert_close(tangent, difference, rtol=0, atol=1e-7)
    assert tangent.abs().min() > 1e-3


def test_the_order_of_the_keys_that_an_operator_returns_does_not_matter():
    a = symmetric(6)
    matvec, like = operator(a)

    def reordered(v):
        return dict(reversed(matvec(v).items()))

    one, two = (D.lanczos(f, like, 3) for f in (matvec, reordered))
    assert torch.equal(one.alphas, two.alphas)


# ------------------------------------------------------- spectral density


def test_the_quadrature_is_exact_for_polynomials():
    a = symmetric(30) / 8
    spectrum = D.spectral_density(times(a), a[0], key=KEY, probes=5, steps=4)
    v = rademacher(KEY, (5, 30), torch.float64)
    for degree in range(8):  # 2 steps - 1
        power = torch.linalg.matrix_power(a, degree)
        exact = ((v @ power) * v).sum(-1) / 30
        moment = (spectrum.weights * spectrum.nodes**degree).sum(-1)
        # |A| is about 2: 2^7 times some roundings.
        torch.testing.assert_close(moment, exact, rtol=0, atol=1e-12)


def test_the_standard_error_of_an_integral_is_its_spread():
    a = symmetric(30) / 8

    def one(key):
        spectrum = D.spectral_density(times(a), a[0], key=key, probes=10, steps=12)
        return spectrum.integrate(torch.exp)

    value, stderr = vmap(one)(po.random.split(KEY, 400))
    truth = dense_function(a, np.exp).trace() / 30
    z = (value - truth) / stderr
    # Student's t with 9 degrees: standard deviation 1.13. Of 400 draws the mean is
    # within 4 * 1.13 / 20 and the deviation within 4 * 0.05 of it.
    assert abs(z.mean()) < 0.25
    assert abs(z.std() - 1.13) < 0.25


def test_the_density_is_that_of_the_eigenvalues():
    values = np.concatenate([np.linspace(0, 1, 150), [3.0] * 50])
    a = with_eigenvalues(values)
    spectrum = D.spectral_density(times(a), a[0], key=KEY, probes=30, steps=60)
    grid, width = torch.linspace(-2, 5, 400, dtype=torch.float64), 0.1
    value, stderr = spectrum.density(grid, width=width)
    z = (grid[:, None] - torch.from_numpy(values)) / width
    truth = ((-z.square() / 2).exp() / (width * math.sqrt(2 * math.pi))).mean(-1)
    # Five standard errors at 400 points, of which some ten are independent; 1e-3 is what
    # a quadrature with 60 nodes misses of a kernel of this width.
    assert ((value - truth).abs() <= 5 * stderr + 1e-3).all()
    assert (stderr < 0.2).all()
    # The trapezoidal rule on normal kernels that are 6 steps wide is exact.
    assert abs(torch.trapezoid(value, grid) - 1) < 1e-6


def test_the_cumulative_density_counts_eigenvalues():
    values = np.repeat([-1.0, 0.5, 2.0], [20, 30, 50])
    a = with_eigenvalues(values)
    spectrum = D.spectral_density(times(a), a[0], key=KEY, probes=40, steps=3)
    grid = torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    value, stderr = spectrum.cumulative(grid)
    truth = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    # Inside, five standard errors; outside there is none, and rounding of 40 sums.
    assert ((value - truth).abs() <= 5 * stderr + 1e-12).all()
    assert (stderr[1:3] > 1e-3).all()


def test_a_stack_of_spectra_is_evaluated_lane_by_lane():
    lanes = torch.stack([symmetric(6), 2 * symmetric(6, 1), symmetric(6, 2)])
    # As many lanes as probes and grid points: a wrong dimension would not show.
    grid = torch.linspace(-1, 1, 3, dtype=torch.float64)

    def spectrum(a):
        return D.spectral_density(times(a), a[0], key=KEY, probes=3, steps=3)

    def evaluated(s):
        return s.density(grid, width=0.5), s.cumulative(grid), s.integrate(torch.cos)

    whole = evaluated(vmap(spectrum)(lanes))
    one_by_one = vmap(lambda a: evaluated(spectrum(a)))(lanes)
    torch.testing.assert_close(whole, one_by_one, rtol=1e-12, atol=1e-12)


def test_the_spectral_tools_know_the_hessian_of_a_network():
    x, y = randn(20, 3), randn(20, 1, seed=1)
    params = {"v": randn(4, 3, seed=2), "w": randn(1, 4, seed=3)}

    def loss(p):
        return ((x @ p["v"].mT).tanh() @ p["w"].mT - y).square().mean()

    hessian = torch.func.hessian(lambda v: loss(unravel(v, params)))(ravel(params))
    matvec = lambda v: D.hvp(loss, params, v)  # noqa: E731
    values, vectors, residuals = D.top_eigenpairs(matvec, params, 3, key=KEY)
    # The whole space: rounding, some hundred times eps times the norm 10.
    true = torch.linalg.eigvalsh(hessian).flip(0)[:3]
    torch.testing.assert_close(values, true, rtol=0, atol=1e-11)
    assert (residuals < 1e-11).all()
    assert vectors["v"].shape == (3, 4, 3)
    trace = D.trace_xtrace(matvec, params, key=KEY, matvecs=32).value
    torch.testing.assert_close(trace, hessian.trace(), rtol=0, atol=1e-11)
    damped = lambda v: {k: a + 9 * v[k] for k, a in matvec(v).items()}  # noqa: E731
    value, stderr = D.log_determinant(damped, params, key=KEY, probes=50, steps=16)
    truth = np.linalg.slogdet(hessian.numpy() + 9 * np.eye(16))[1]
    assert abs(value - truth) < 4 * stderr
    assert stderr < 0.5


# -------------------------------------------------------- log-determinant


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_log_determinant_is_within_its_error(dtype):
    a = with_eigenvalues(np.geomspace(0.1, 10, 100), dtype=dtype)
    a = (a + a.mT) / 2
    value, stderr = over_keys(D.log_determinant, a, 20, probes=20, steps=40)
    # Twenty means: four standard errors of their mean, from their own spread.
    assert abs(value.mean()) < 4 * value.std() / math.sqrt(20)
    # As for any trace by signs, with probes of which the spread is known to 1 / 6.
    log = dense_function(a.double(), np.log)
    spread = (2 * (log - torch.diag(log.diagonal())).square().sum() / 20).sqrt()
    assert (stderr > spread / 2).all()
    assert (stderr < spread * 2).all()


def test_an_indefinite_operator_has_no_log_determinant():
    d = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 2.0, 3.0], [0.0, 2.0, 3.0]])

    def one(d):
        return D.log_determinant(lambda v: d * v, d, key=KEY, probes=2, steps=3).value

    lanes = vmap(one)(d)
    assert abs(lanes[0] - math.log(6)) < 1e-5  # ten roundings of numbers near 3
    assert lanes[1].isnan()
    # Zero is a node up to its rounding: not positive, or a logarithm below -10.
    assert lanes[2].isnan() or lanes[2] < -10


# ------------------------------------------------------------- eigenpairs


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str
)
def test_repeated_eigenvalues_are_all_found(dtype, tolerance):
    # Tolerances: some hundred roundings of numbers up to the norm 9.
    values = [9.0, 9.0, 9.0, 5.0, *np.linspace(-3, 2, 196)]
    a = with_eigenvalues(values, dtype=dtype)
    found = D.top_eigenpairs(times(a), a[0], 4, key=KEY, steps=30)
    expected = torch.tensor([9.0, 9.0, 9.0, 5.0], dtype=dtype)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=tolerance)
    assert (found.residuals < tolerance).all()
    x = found.vectors
    eye = torch.eye(4, dtype=dtype)
    torch.testing.assert_close(x @ x.mT, eye, rtol=0, atol=tolerance)
    # The space of the threefold one.
    projector = dense_function(a.double(), lambda v: 1.0 * (v > 8)).to(dtype)
    torch.testing.assert_close(x[:3].mT @ x[:3], projector, rtol=0, atol=tolerance)


def test_residuals_bound_the_error_before_convergence():
    a = symmetric(100)
    values, vectors, residuals = D.top_eigenpairs(times(a), a[0], 3, key=KEY, steps=4)
    true = torch.linalg.eigvalsh(a)
    distance = (values[:, None] - true).abs().amin(-1)
    assert (distance <= residuals).all()
    assert (residuals > 1e-3).all()
    gap = vectors @ a - values[:, None] * vectors
    torch.testing.assert_close(gap.norm(dim=-1), residuals, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_the_whole_space_is_never_exceeded(k, steps):
    a = symmetric(7)
    values = D.top_eigenpairs(times(a), a[0], k, key=KEY, steps=steps).values
    assert values.shape == (k,)
    if k * steps >= 7:
        # Exact: rounding of numbers up to the norm 6.
        true = torch.linalg.eigvalsh(a).flip(0)[:k]
        torch.testing.assert_close(values, true, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_multiple_of_the_identity_exhausts_the_krylov_space_at_once(value):
    found = D.top_eigenpairs(lambda v: value * v, torch.zeros(30), 4, key=KEY, steps=5)
    # Rounding of numbers near 3 in float32.
    expected = torch.full((4,), value)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5)
    assert (found.residuals < 1e-5).all()


def test_a_diagonal_operator_with_few_values_is_exact():
    # What replaces an exhausted block must not lie in the basis, as a unit vector would.
    d = torch.cat([torch.zeros(40), torch.tensor([1.0, 1.0, 2.0])]).double()
    values = D.top_eigenpairs(lambda v: d * v, d, 5, key=KEY, steps=8).values
    expected = torch.tensor([2.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-13)


def test_the_smallest_are_the_largest_of_the_negated_operator():
    a = symmetric(40)
    found = D.top_eigenpairs(lambda v: -(a @ v), a[0], 2, key=KEY)
    true = torch.linalg.eigvalsh(a)[:2]
    torch.testing.assert_close(-found.values, true, rtol=0, atol=1e-11)


# ----------------------------------------------------------------- traces


def test_the_variance_of_hutchinson_is_that_of_the_paper():
    a = symmetric(10)
    value, stderr = over_keys(D.trace_hutchinson, a, 2000, matvecs=8)
    off = a - torch.diag(a.diagonal())
    variance = 2 * off.square().sum() / 8
    # Of 2000 draws: the mean to 4 standard errors, the variance to 4 * sqrt(2 / 2000)
    # for a normal distribution, twice that for the longer tails of a quadratic form.
    assert abs(value.mean() - a.trace()) < 4 * (variance / 2000).sqrt()
    assert abs(value.var() / variance - 1) < 0.25
    assert abs(stderr.square().mean() / variance - 1) < 0.25


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("kind", ["indefinite", "low rank and noise"])
def test_traces_are_unbiased(trace, kind):
    a = symmetric(12)
    if kind == "low rank and noise":
        a = 0.1 * a + 10 * torch.outer(a[0], a[0])
    value, _ = over_keys(trace, a, 2000, matvecs=9)
    # Four standard errors of the mean.
    assert abs(value.mean() - a.trace()) < 4 * value.std() / math.sqrt(2000)
    assert value.std() > 0


@pytest.mark.parametrize("trace", [D.trace_hutchinson, D.trace_hutchpp])
def test_two_traces_need_no_symmetry(trace):
    a = randn(12, 12)
    value, _ = over_keys(trace, a, 2000, matvecs=9)
    # Four standard errors of the mean.
    assert abs(value.mean() - a.trace()) < 4 * value.std() / math.sqrt(2000)


@pytest.mark.parametrize("trace", [D.trace_hutchpp, D.trace_xtrace])
def test_the_standard_error_is_the_spread_within_a_factor(trace):
    a = with_eigenvalues(1 / np.arange(1, 101))
    value, stderr = over_keys(trace, a, 300, matvecs=30)
    # Of 300 draws with long tails the ratio is good to 0.2. The samples of XTrace are
    # positively correlated, as its docstring says.
    ratio = value.std() / stderr.square().mean().sqrt()
    low, high = (1.0, 1.5) if trace is D.trace_xtrace else (0.8, 1.2)
    assert low < ratio < high


def slope(trace, a, counts, keys=60):
    errors = [
        rms(over_keys(trace, a, keys, matvecs=m).value, a.trace()) for m in counts
    ]
    return np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


def test_the_error_slopes_are_those_of_the_papers():
    # Eigenvalues 1 / i: the part off the m largest has Frobenius norm m^(-1/2), of which
    # the root of m samples is averaged. The fit of 60 errors is good to 0.1 in the slope;
    # the truncation at 300 makes it steeper.
    a = with_eigenvalues(1 / np.arange(1, 301))
    counts = [12, 24, 48, 96]
    hutchinson, _ = slope(D.trace_hutchinson, a, counts)
    hutchpp, errors = slope(D.trace_hutchpp, a, counts)
    xtrace, smaller = slope(D.trace_xtrace, a, counts)
    assert abs(hutchinson + 0.5) < 0.15
    assert -1.5 < hutchpp < -0.85
    assert -1.6 < xtrace < -0.85
    assert all(x < h for x, h in zip(smaller, errors, strict=True))


def test_exponential_decay_is_followed_exponentially():
    a = with_eigenvalues(0.7 ** np.arange(100))
    xtrace = [
        rms(over_keys(D.trace_xtrace, a, 30, matvecs=m).value, a.trace())
        for m in (10, 20, 40)
    ]
    # 0.7^(m / 2) is 0.17, 0.028 and 8e-4; the root of m / 2 is averaged.
    assert xtrace[0] > 3 * xtrace[1] > 30 * xtrace[2]
    hutchpp = over_keys(D.trace_hutchpp, a, 30, matvecs=40).value
    assert 3 * xtrace[2] < rms(hutchpp, a.trace())  # which follows 0.7^(m / 3)


@pytest.mark.parametrize("trace", [D.trace_hutchpp, D.trace_xtrace])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)], ids=str
)
def test_low_rank_is_exact(trace, dtype, tolerance):
    # Tolerances: some hundred roundings of the trace, 10.
    a = with_eigenvalues([4.0, 3.0, 2.0, 1.0, *[0.0] * 46], dtype=dtype)
    value, stderr = trace(times(a), a[0], key=KEY, matvecs=18)
    assert abs(value - 10) < tolerance
    assert stderr < tolerance


@pytest.mark.parametrize("trace", [D.trace_hutchpp, D.trace_xtrace])
def test_exact_zeros_are_no_trouble(trace):
    d = torch.zeros(40)
    assert trace(lambda v: d * v, d, key=KEY, matvecs=12) == (0, 0)
    d[:3] = torch.tensor([1.0, 2.0, 4.0])
    value, _ = trace(lambda v: d * v, d, key=KEY, matvecs=60)
    assert abs(value - 7) < 1e-5  # ten roundings of 7 in float32


@pytest.mark.parametrize("trace", [D.trace_hutchpp, D.trace_xtrace])
def test_as_many_products_as_dimensions_are_exact(trace):
    a = symmetric(6)
    for matvecs in (18, 30, 60):
        value, _ = trace(times(a), a[0], key=KEY, matvecs=matvecs)
        # Rounding of the sum of numbers up to the norm 6.
        assert abs(value - a.trace()) < 1e-11


@pytest.mark.parametrize("trace", TRACES)
def test_a_single_number_is_its_own_trace(trace):
    value, stderr = trace(lambda v: 3 * v, torch.tensor(1.0), key=KEY, matvecs=4)
    assert abs(value - 3) < 1e-5  # ten roundings in float32
    assert stderr < 1e-5


def test_an_operator_may_write_to_its_argument():
    # Under vmap torch counts no writes, so that they cannot be refused.
    d = torch.linspace(1, 2, 8, dtype=torch.float64)
    for trace in TRACES:
        value = trace(lambda v: v.mul_(d), d, key=KEY, matvecs=16).value
        assert value == trace(lambda v: v * d, d, key=KEY, matvecs=16).value


def test_the_scale_of_the_operator_does_not_matter():
    a = with_eigenvalues(1 / np.arange(1, 31), dtype=torch.float32)
    for scale in (1e-15, 1e12):
        for trace in TRACES:
            one = trace(times(a), a[0], key=KEY, matvecs=12).value
            other = trace(times(scale * a), a[0], key=KEY, matvecs=12).value
            # Some hundred roundings, of float32.
            assert abs(other / scale - one) < 1e-4


@pytest.mark.parametrize("ell", [2, 3, 7, 12])
def test_xtrace_is_the_mean_over_the_vectors_left_out(ell):
    n = 12
    a = symmetric(n)
    omega = normal(KEY, (ell, n), dtype=torch.float64)
    samples = []
    for i in range(ell):
        others = torch.cat([omega[:i], omega[i + 1 :]])
        q = torch.linalg.qr(a @ others.mT)[0]
        r = omega[i] - q @ (q.mT @ omega[i])
        quotient = (r @ a @ r) / (r @ r)
        samples.append((q.mT @ a @ q).trace() + (n - ell + 1) * quotient)
    samples = torch.stack(samples)
    value, stderr = D.trace_xtrace(times(a), a[0], key=KEY, matvecs=2 * ell)
    # The condition numbers of the sketches are below 1e3: rounding times that.
    torch.testing.assert_close(value, samples.mean(), rtol=1e-10, atol=1e-10)
    error = samples.std() / math.sqrt(ell)
    torch.testing.assert_close(stderr, error, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 100])
def test_chunks_do_not_change_the_numbers(chunk_size):
    a = symmetric(8)

    def run(**chunks):
        settings = {"key": KEY, **chunks}
        spectral = {"probes": 5, "steps": 3, **settings}
        return (
            D.spectral_density(times(a), a[0], **spectral),
            D.log_determinant(times(a @ a), a[0], **spectral),
            D.top_eigenpairs(times(a), a[0], 3, steps=2, **settings),
            *(trace(times(a), a[0], matvecs=9, **settings) for trace in TRACES),
        )

    # The same sums, by other kernels.
    torch.testing.assert_close(run(chunk_size=chunk_size), run(), rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------- bad input


def test_numbers_out_of_range_are_told():
    x = torch.ones(3)
    keyed = {"key": KEY}

    def refused(message, operator, *args, **settings):
        with pytest.raises(HyperparameterError, match=message):
            operator(lambda v: v, x, *args, **settings)

    refused(r"lanczos\(steps=...\)` must be at most .* `start`, 3, got 4", D.lanczos, 4)
    refused(r"lanczos\(steps=...\)` must be a positive integer, got 0", D.lanczos, 0)
    density = D.spectral_density
    rule = r"density\(probes=...\)` must be at least 2, got 1"
    refused(rule, density, probes=1, steps=2, **keyed)
    rule = r"density\(steps=...\)` must be a positive integer, got 2.0"
    refused(rule, density, probes=2, steps=2.0, **keyed)
    rule = r"pairs\(k=...\)` must be at most the dimension, 3, got 4"
    refused(rule, D.top_eigenpairs, 4, **keyed)
    rule = r"hutchinson\(matvecs=...\)` must be at least 2, got 1"
    refused(rule, D.trace_hutchinson, matvecs=1, **keyed)
    rule = r"hutchpp\(matvecs=...\)` must be at least 4, got 3"
    refused(rule, D.trace_hutchpp, matvecs=3, **keyed)
    rule = r"xtrace\(chunk_size=...\)` must be a positive integer, got 0"
    refused(rule, D.trace_xtrace, matvecs=6, chunk_size=0, **keyed)
    spectrum = density(lambda v: v, x, probes=2, steps=2, **keyed)
    rule = r"density\(width=...\)` must be positive and finite, got 0.0"
    with pytest.raises(HyperparameterError, match=rule):
        spectrum.density(x, width=0.0)


@pytest.mark.parametrize(
    "operator",
    [
        lambda m, x: D.lanczos(m, x, 2),
        lambda m, x: D.spectral_density(m, x, key=KEY, probes=2, steps=2),
        lambda m, x: D.top_eigenpairs(m, x, 1, key=KEY),
        lambda m, x: D.trace_hutchinson(m, x, key=KEY, matvecs=4),
        lambda m, x: D.trace_hutchpp(m, x, key=KEY, matvecs=4),
        lambda m, x: D.trace_xtrace(m, x, key=KEY, matvecs=4),
    ],
    ids=["lanczos", "density", "eigenpairs", "hutchinson", "hutchpp", "xtrace"],
)
def test_wrong_trees_are_told(operator):
    like = {"w": torch.ones(3)}
    with pytest.raises(
        TreeError, match=r"\(matvec=...\)` must have the shapes of `like`"
    ):
        operator(lambda v: {"w": v["w"][:2]}, like)
    with pytest.raises(TreeError, match=r"structure of `like`, got no 'w' and an unkn"):
        operator(lambda v: {"u": v["w"]}, like)
    with pytest.raises(TreeError, match=r"must hold only floating-point tensors"):
        operator(lambda v: v, {"w": torch.arange(3)})
    with pytest.raises(TreeError, match=r"must hold at least one number"):
        operator(lambda v: v, {"w": torch.zeros(0)})
