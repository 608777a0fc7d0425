"""Spheres, balls and unit columns against geometry, integrals and the hard cases."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from torch.func import grad_and_value, jacfwd, jacrev

import pureopt as po
from pureopt import ConstraintError, HyperparameterError
from pureopt.constraints import Ball, Sphere, UnitColumns

EPS32 = torch.finfo(torch.float32).eps


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * po.random.uniform(po.random.key(seed), shape, dtype=torch.float64) - 1


@pytest.mark.parametrize("norm", [1.0, 3.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_point_is_on_the_line_from_the_pole_to_the_tangent_plane(norm, sign):
    x = 5 * uniform(20, 4)
    signs = torch.full((20,), sign, dtype=torch.int8)
    y = Sphere(norm).forward(x, signs)
    touch = torch.full((20, 1), sign * norm, dtype=torch.float64)
    target = torch.cat([touch, x], -1)
    pole = torch.zeros(5, dtype=torch.float64)
    pole[0] = -sign * norm
    share = (y - pole)[:, :1] / (target - pole)[:, :1]
    # Some roundings of numbers up to 5.
    assert torch.allclose(pole + share * (target - pole), y, rtol=0, atol=1e-14)
    assert bool(((share > 0) & (share <= 1)).all())


@pytest.mark.parametrize("n", [2, 5, 50])
def test_in_its_own_chart_a_point_is_at_most_two_radii_away(n):
    c = Sphere(norm=2.0)
    y = c.sample(po.random.key(n), (500, n), dtype=torch.float64)
    x = c.right_inverse(y, c.bind(y))
    # |x|^2 = 4 r^2 (r - |y_1|) / (r + |y_1|), up to roundings.
    assert float(x.norm(dim=-1).max()) <= 4 * (1 + 1e-14)


def test_next_to_the_pole_no_digits_are_lost():
    """The textbook's division by ``1 + y_1`` gives infinity: it rounds to zero there."""
    y = torch.tensor([-1.0, 6e-7, -8e-7])
    # 2 y' (1 - y_1) / |y'|^2, in which |y'|^2 = 1e-12.
    want = torch.tensor([2.4e6, -3.2e6])
    got = Sphere().right_inverse(y)
    assert torch.allclose(got, want, rtol=8 * EPS32, atol=0)
    assert torch.allclose(Sphere().forward(got), y, rtol=8 * EPS32, atol=0)


@pytest.mark.parametrize("c", [Sphere(), Ball()], ids=repr)
def test_the_jacobian_at_zero_is_an_isometry(c):
    """geoopt 0.5.1: all NaN for the exponential map of the sphere."""
    zero = torch.zeros(3, dtype=torch.float64)
    for mode in (jacfwd, jacrev):
        jacobian = mode(c.forward)(zero)
        assert torch.equal(jacobian.mT @ jacobian, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e5, 1e15, 1e25, 1e38])
@pytest.mark.parametrize("c", [Sphere(2.0), Ball(2.0), UnitColumns(2.0)], ids=repr)
def test_huge_free_numbers_are_feasible_and_have_finite_gradients(c, size, dtype):
    """Squares of 1e25 overflow in float32."""
    x = torch.tensor([1.0, 0.0, 1.0, -0.5, 1.0, 0.7], dtype=dtype) * size
    y = c.forward(x)
    assert bool(c.check(y))
    slope, _ = grad_and_value(lambda x: c.forward(x).sum())(x)
    assert bool(slope.isfinite().all())


def test_the_ball_keeps_its_digits_where_the_poincare_ball_loses_them():
    """geoopt 0.5.1, Poincare ball, float32: 38 percent off at ``|u| = 5``."""
    u = torch.tensor([3.0, 4.0])
    back = Ball().right_inverse(Ball().forward(u))
    # y has a few roundings, which come back times 1 + |u|^2 = 26.
    assert float((back - u).norm() / u.norm()) <= 4 * 26 * EPS32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_boundary_of_the_ball_comes_back(dtype):
    eps = torch.finfo(dtype).eps
    y = Sphere().sample(po.random.key(1), (200, 4), dtype=dtype)
    x = Ball().right_inverse(y)
    # |x| = 1 / sqrt(eps), and 1 / sqrt(1 + 1 / |x|^2) is 1 - eps / 2.
    assert bool((x.norm(dim=-1) <= 1.01 * eps**-0.5).all())
    assert float((Ball().forward(x) - y).abs().max()) <= 8 * eps
    assert bool(Ball().right_inverse(1.01 * y).isnan().all())


def test_the_volumes_of_the_charts_are_those_of_the_sets():
    def density(c, d):
        def at(radius):
            x = torch.zeros(d, dtype=torch.float64)
            x[0] = radius
            return float(c.log_abs_det(x).exp())

        return at

    circle = integrate.quad(lambda x: 2 * density(Sphere(2.0), 1)(x), 0, math.inf)
    sphere = integrate.quad(
        lambda x: 2 * math.pi * x * density(Sphere(), 2)(x), 0, math.inf
    )
    disk = integrate.quad(
        lambda x: 2 * math.pi * x * density(Ball(2.0), 2)(x), 0, math.inf
    )
    # What the quadrature promises.
    assert abs(circle[0] - 4 * math.pi) <= 1e-8
    assert abs(sphere[0] - 4 * math.pi) <= 1e-8
    assert abs(disk[0] - 4 * math.pi) <= 1e-8


@pytest.mark.parametrize("n", [2, 5])
def test_samples_have_the_moments_of_the_uniform_distribution(n):
    many = 40_000
    y = Sphere(2.0).sample(po.random.key(3), (many, n), dtype=torch.float64) / 2
    z = Ball(2.0).sample(po.random.key(4), (many, n), dtype=torch.float64) / 2
    w = UnitColumns().sample(po.random.key(5), (many // n, n, n), dtype=torch.float64)
    # Means of 40000 numbers of modulus below 1: five standard deviations are 0.025.
    for unit in (y, w.mT.flatten(0, 1)):
        assert float(unit.mean(0).abs().max()) <= 0.025
        assert float((unit.square().mean(0) - 1 / n).abs().max()) <= 0.025
        fourth = 3 / (n * (n + 2))
        assert float((unit**4).mean(0).sub(fourth).abs().max()) <= 0.025
    assert float(z.mean(0).abs().max()) <= 0.025
    assert abs(float(z.square().sum(-1).mean()) - n / (n + 2)) <= 0.025
    assert abs(float((z.norm(dim=-1) < 0.5).double().mean()) - 0.5**n) <= 0.025


def test_projections_go_to_the_nearest_point_at_every_scale():
    tiny, huge = torch.tensor([3e-30, 4e-30]), torch.tensor([3e30, -4e30])
    for y, want in ((tiny, [0.6, 0.8]), (huge, [0.6, -0.8])):
        assert torch.allclose(Sphere().project(y), torch.tensor(want), atol=4 * EPS32)
    assert torch.equal(Sphere(2.0).project(torch.zeros(3)), torch.tensor([2.0, 0, 0]))
    assert bool(Sphere().project(torch.tensor([torch.inf, 1.0])).isnan().all())
    inside = torch.tensor([0.3, -0.4])
    nearest = Ball().project(inside)
    assert torch.equal(nearest, inside)
    assert nearest.data_ptr() != inside.data_ptr()
    assert torch.allclose(Ball().project(huge), torch.tensor([0.6, -0.8]))


def test_on_the_line_the_sphere_is_two_points():
    y = torch.tensor([[3.0], [-3.0]])
    c = Sphere(norm=3)
    x = c.right_inverse(y, c.bind(y))
    assert x.shape == (2, 0)
    assert torch.equal(c.forward(x, c.bind(y)), y)
    assert c.dim((1,)) == 0


@pytest.mark.parametrize("make", [Sphere, Ball, UnitColumns])
@pytest.mark.parametrize("norm", [0.0, -1.0, math.inf, math.nan])
def test_a_norm_that_is_not_positive_and_finite_raises(make, norm):
    with pytest.raises(HyperparameterError, match=r"norm=.*be positive and finite"):
        make(norm=norm)


@pytest.mark.parametrize("norm", ["1", True, torch.tensor(1.0)])
def test_a_norm_that_is_no_number_raises(norm):
    with pytest.raises(
        HyperparameterError, match=r"Ball\(norm=...\)` must be a number"
    ):
        Ball(norm=norm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("c", [Sphere(), Ball()], ids=repr)
def test_long_vectors_of_few_digits_still_need_their_norm(c, dtype):
    """Ten roundings times the root of the length were half of the norm in bfloat16."""
    y = torch.full((64,), 1 / 8, dtype=dtype)
    assert bool(c.check(y))
    longer = y * (1 + 16 * torch.finfo(dtype).eps)
    assert not bool(c.check(longer))
    assert bool(c.right_inverse(longer).isnan().all())


def test_shapes_that_do_not_fit_raise():
    with pytest.raises(ConstraintError, match="at least one entry"):
        Sphere().bind(torch.zeros(2, 0))
    with pytest.raises(ConstraintError, match="at least one entry"):
        Sphere().dim((0,))
    signs = torch.ones(3, dtype=torch.int8)
    with pytest.raises(ConstraintError, match="signs of shape"):
        Sphere().forward(torch.zeros(2, 4), signs)
    with pytest.raises(ConstraintError, match="signs of shape"):
        Sphere().log_abs_det(torch.zeros(2, 4), signs)
    with pytest.raises(ConstraintError, match="have a shape"):
        Ball().sample(po.random.key(0), ())
    with pytest.raises(ConstraintError, match=r"\(n - 1\) 3 for signs of 3 columns"):
        UnitColumns().forward(torch.zeros(4), signs)
    with pytest.raises(ConstraintError, match=r"n \(n - 1\) without static"):
        UnitColumns().forward(torch.zeros(4))
    with pytest.raises(ConstraintError, match="signs of shape"):
        UnitColumns().right_inverse(torch.eye(2), signs)


def test_the_norm_is_told():
    assert repr(Ball(norm=2.0)) == "Ball(norm=2.0)"
    with pytest.raises(ConstraintError, match=r"\|Y\| / 2 - 1"):
        po.constrain(torch.ones(9), Sphere(norm=2.0))


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_values_and_gradients_right():
    def total(x):
        parts = (Sphere(2.0).forward(x), Ball(2.0).forward(x), UnitColumns().forward(x))
        flat = torch.cat([part.flatten() for part in parts])
        weights = torch.arange(flat.shape[0], dtype=x.dtype)
        return (flat * weights).sum()

    x = uniform(6)
    compiled = torch.compile(grad_and_value(total), fullgraph=True)(x)
    for got, want in zip(compiled, grad_and_value(total)(x), strict=True):
        # Sums of some twenty products of order ten, in another order.
        assert torch.allclose(got, want, rtol=0, atol=1e-12)
