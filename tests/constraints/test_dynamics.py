"""Symplectic and Hurwitz against scipy and closed forms."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from torch.func import vmap

import pureopt as po
from pureopt import ConstraintError, HyperparameterError
from pureopt.constraints import Hurwitz, Symplectic
from pureopt.constraints._hurwitz import _lyapunov
from tests.constraints.rows_manifolds import (
    assert_isometry,
    bound,
    form,
    generator,
    hurwitz,
    normal,
    symplectic,
)

# Symplectic


def hamiltonian(n, seed=0, size=1.0):
    s = normal(n, n, seed=seed)
    s = size * (s + s.mT) / 2
    return form(n // 2) @ s, s


def packed(s):
    row, column = torch.tril_indices(*s.shape)
    return s[row, column] * math.sqrt(2) ** (row != column).double()


def test_symplectic_is_scipys_solution_of_the_defining_system():
    a, s = hamiltonian(6, size=0.3)
    eye = torch.eye(6, dtype=torch.float64)
    want = scipy.linalg.solve(eye - a / 2, eye + a / 2)
    base = symplectic(3, (), generator())
    got = Symplectic().forward(packed(s), base)
    # Condition numbers of ten or so, some n eps.
    assert torch.allclose(got, base @ torch.from_numpy(want), rtol=0, atol=1e-12)


def test_flows_of_hamiltonians_are_symplectic_and_leapfrog_is_while_euler_is_not():
    a, _ = hamiltonian(4, size=0.5)
    flow = torch.linalg.matrix_exp(a)
    eye, h = torch.eye(2, dtype=torch.float64), 0.3
    kick = torch.eye(4, dtype=torch.float64)
    kick[2:, :2] = -h * eye
    drift = torch.eye(4, dtype=torch.float64)
    drift[:2, 2:] = h * eye
    euler = kick + drift - torch.eye(4)
    checked = Symplectic().check(torch.stack([flow, drift @ kick, euler]))
    assert checked.tolist() == [True, True, False]
    x, base = bound(Symplectic(), drift @ kick)
    # In the chart around one step, two more half steps.
    other = Symplectic().right_inverse(kick @ drift @ kick, base)
    z = Symplectic().forward(other, base)
    assert torch.allclose(z, kick @ drift @ kick, rtol=0, atol=1e-14)  # a few eps
    assert float(x.abs().max()) == 0


def test_no_singular_value_inside_the_radius_reaches_the_end_of_the_chart():
    for n in (2, 4, 16, 66):
        radius = Symplectic().radius(n, torch.float64)
        d = n * (n + 1) // 2
        signs = torch.where(normal(20, d, seed=n) > 0, 1.0, -1.0)
        for x in (torch.ones(1, d), signs):
            y = Symplectic().forward(radius * x.double())
            # (1 + 3/4) / (1 - 3/4) = 7
            assert float(torch.linalg.matrix_norm(y, 2).max()) < 7 + 1e-9
            assert bool(Symplectic().check(y).all())


def test_the_end_of_a_symplectic_chart_is_not_finite_and_rebinding_goes_beyond():
    x = torch.zeros(3, dtype=torch.float64)
    end = x.clone()
    end[1] = 2 * math.sqrt(2)  # S = [[0, 2], [2, 0]], A has the eigenvalues 2 and -2
    assert not bool(Symplectic().forward(end).isfinite().all())
    assert not bool(Symplectic().check(Symplectic().forward(end)))
    static = torch.eye(2, dtype=torch.float64)
    for _ in range(20):
        x, static = Symplectic().rebind(end / 4, static)
    squeezed = Symplectic().forward(x, static)
    # (1 + 1/4) / (1 - 1/4) each time.
    want = (5 / 3) ** 20
    assert abs(float(squeezed[0, 0]) / want - 1) < 1e-13
    assert bool(Symplectic().check(squeezed))


def test_many_small_steps_with_rebinding_stay_symplectic_in_float32():
    static = symplectic(3, (), generator()).float()
    for i in range(300):
        step = 0.05 * normal(21, seed=i).float()
        _, static = Symplectic().rebind(step, static)
    assert bool(Symplectic().check(static))
    # Other charts than the one around the value itself still invert it.
    step = 0.05 * normal(21, seed=-1).float()
    x = Symplectic().right_inverse(Symplectic().forward(step, static), static)
    # eps times the condition number, |Y|^2.
    slack = torch.finfo(torch.float32).eps * float(static.abs().max()) ** 2
    assert float((x - step).abs().max()) < 100 * slack


def test_symplectic_is_an_isometry_at_zero():
    assert_isometry(Symplectic(), torch.zeros(10, dtype=torch.float64), ())


def test_symplectic_matrices_have_even_size_and_a_base_of_their_shape():
    with pytest.raises(ConstraintError, match="an even size"):
        Symplectic().check(torch.eye(3))
    with pytest.raises(ConstraintError, match="n even: 3, 10, 21"):
        Symplectic().forward(torch.zeros(6))
    with pytest.raises(ConstraintError, match=r"base of shape \(4, 4\), got shape"):
        Symplectic().forward(torch.zeros(10), torch.eye(2))
    with pytest.raises(ConstraintError, match="be called on a constraint that implem"):
        Symplectic().project(torch.eye(4))


# Hurwitz


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_lyapunovs_equation_is_solved_as_scipy_solves_it(n):
    b = hurwitz(n, (10,), generator(n))
    for one, p in zip(b, _lyapunov(b), strict=True):
        want = scipy.linalg.solve_continuous_lyapunov(
            one.mT.numpy(), -2 * torch.eye(n, dtype=torch.float64).numpy()
        )
        # Eigenvalues left of -0.1: condition numbers up to some 1e4.
        size = abs(want).max()
        assert float((p - torch.from_numpy(want)).abs().max()) < 1e-11 * size


@pytest.mark.parametrize("rate", [1e-4, 1e-8, 1e-12])
def test_barely_damped_oscillators_are_solved_to_the_last_digits(rate):
    y = torch.tensor([[-rate, 3.0], [-3.0, -rate]], dtype=torch.float64)
    x, _ = bound(Hurwitz(), y)
    # P = I / rate is perfectly conditioned; the rest is rounding of 3.
    z = Hurwitz().forward(x)
    assert torch.allclose(z, y, rtol=0, atol=1e-14)
    assert bool(Hurwitz().right_inverse(-y).isnan().all())


def test_the_weighted_norm_decays_as_the_class_says():
    c, x = Hurwitz(0.3), normal(16)
    y = c.forward(x)
    assert bool((torch.linalg.eigvals(y).real < -0.3).all())
    p = _lyapunov(y + 0.3 * torch.eye(4))
    root = torch.linalg.cholesky(p).mT
    for t in (0.1, 1.0, 10.0):
        flow = root @ torch.linalg.matrix_exp(t * y) @ torch.linalg.inv(root)
        assert float(torch.linalg.matrix_norm(flow, 2)) <= math.exp(-0.3 * t)


def test_rates_may_differ_over_a_batch():
    rates = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    c = Hurwitz(rates)
    y = c.forward(torch.zeros(3, 4, dtype=torch.float64))
    diagonal = y.diagonal(dim1=-2, dim2=-1)
    assert torch.equal(diagonal, -(1 + rates)[:, None].expand(3, 2))
    one = torch.diag(torch.tensor([-0.5, -5.0], dtype=torch.float64))
    assert c.check(one.expand(3, 2, 2)).tolist() == [True, False, True]
    sweep = vmap(lambda rate, x: Hurwitz(rate).forward(x))
    assert torch.equal(sweep(rates, torch.zeros(3, 4, dtype=torch.float64)), y)


def test_the_edge_of_stability_is_outside():
    spin = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    y = torch.stack([spin, torch.zeros(2, 2), spin - 1e-8 * torch.eye(2)])
    assert not bool(Hurwitz().check(y).any())
    assert bool(Hurwitz().right_inverse(y).isnan().all())
    # float64 tells the last one from the edge.
    exact = spin.double() - 1e-8 * torch.eye(2)
    assert bool(Hurwitz().check(exact))


def test_what_is_too_ill_conditioned_to_come_back_is_nan_and_not_wrong():
    """Far from normal: the solution of Lyapunov's equation has condition 4^n."""
    y = -torch.eye(33) + torch.ones(33, 33).triu(1)
    y = torch.stack([y, -torch.eye(33)])
    assert Hurwitz().check(y).all()
    assert Hurwitz().right_inverse(y).isnan().all(-1).tolist() == [True, False]


def test_hurwitz_is_an_isometry_at_zero():
    assert_isometry(Hurwitz(2.0), torch.zeros(9, dtype=torch.float64), ())


def test_hurwitz_says_what_it_takes():
    with pytest.raises(HyperparameterError, match="be finite"):
        Hurwitz(math.inf)
    with pytest.raises(HyperparameterError, match="be a number or a tensor"):
        Hurwitz("fast")
    with pytest.raises(ConstraintError, match=r"n\^2: 1, 4, 9"):
        Hurwitz().forward(torch.zeros(5))
    with pytest.raises(ConstraintError, match="broadcasting to the value"):
        Hurwitz(torch.zeros(2)).forward(torch.zeros(3, 4))
    with pytest.raises(ConstraintError, match="max Re eigenvalue"):
        po.constrain(torch.eye(2), Hurwitz())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_right_inverse_leads_back_to_half_the_digits_or_is_nan(dtype):
    """Upper triangular, from well to ill conditioned; once accepted 40 percent off."""
    a = normal(100, 16, 16).triu(1)
    y = (a - torch.linspace(0.1, 3, 100)[:, None, None] * torch.eye(16)).to(dtype)
    assert bool(Hurwitz().check(y).all())
    x = Hurwitz().right_inverse(y)
    kept = x.isfinite().all(-1)
    assert 10 < int(kept.sum()) < 100
    error = (Hurwitz().forward(x) - y)[kept].abs().amax((-2, -1))
    size = y[kept].abs().amax((-2, -1))
    # Accepted before the rounding of x, which the condition may enlarge as much again.
    assert bool((error <= 2 * torch.finfo(dtype).eps ** 0.5 * size).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 33])
def test_the_round_trip_of_hurwitz_exists_at_the_radius(n, dtype):
    signs = torch.where(normal(100, n * n, seed=n) > 0, 1, -1).to(dtype)
    y = Hurwitz().forward(Hurwitz().radius(n, dtype) * signs)
    assert bool(Hurwitz().check(y).all())
    assert bool(Hurwitz().right_inverse(y).isfinite().all())


def test_the_dimension_of_a_shape_that_does_not_exist_raises():
    for c, shape in (
        (Hurwitz(), (2, 3)),
        (Symplectic(), (2, 4)),
        (Symplectic(), (3, 3)),
    ):
        with pytest.raises(ConstraintError, match=r"dim\(shape\)` must have a shape"):
            c.dim(shape)


def test_a_symplectic_base_of_another_dtype_is_cast_as_the_leaf_says():
    base = symplectic(1, (), generator())
    y = Symplectic().forward(torch.zeros(3), base)
    assert y.dtype == torch.float32
    assert torch.equal(y, base.float())
    assert float(Symplectic().right_inverse(y, base).abs().max()) == 0


def test_singular_matrices_are_not_symplectic_however_large():
    """A tolerance relative to the size alone would take the missing form for rounding."""
    flat = torch.diag(torch.tensor([1e4, 1e4, 0.0, 0.0]))
    y = torch.stack([flat, 1e8 * torch.ones(4, 4), 1e3 * torch.eye(4, 4).roll(1, 0)])
    assert not bool(Symplectic().check(y).any())
    assert bool(Symplectic().right_inverse(y, Symplectic().bind(y)).isnan().all())
    exact = torch.diag(torch.tensor([2.0**20, 1.0, 2.0**-20, 1.0]))
    assert bool(Symplectic().check(exact))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_rates_have_no_units(size):
    y = (hurwitz(5, (20,), generator()) * size).float()
    x = Hurwitz().right_inverse(y)
    # Eigenvalues left of -0.1: condition numbers up to some 1e4.
    assert float((Hurwitz().forward(x) - y).abs().max()) < 1e-3 * size
