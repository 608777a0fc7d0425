"""The maps of Orthogonal, MatrixExponential, SpecialOrthogonal: oracles, hard cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.func import grad, jacfwd

from pureopt import ConstraintError, HyperparameterError, random
from pureopt.constraints import (
    Exponential,
    Householder,
    MatrixExponential,
    Orthogonal,
    OrthogonalStatic,
    SignedCayley,
    Skew,
    SpecialOrthogonal,
)
from pureopt.constraints._rotation_log import rotation_logarithm
from pureopt.constraints._skew import unpack
from tests.constraints.rows_orthogonal import haar, orthogonal_extremes, rotations

MAPS = (SignedCayley(), Exponential(), Householder())
SHAPES = [(1, 1), (2, 2), (5, 5), (4, 1), (7, 3), (5, 3), (3, 7)]

maps = pytest.mark.parametrize("by", MAPS, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(c, shape, scale=1.0, dtype=torch.float64, seed=0):
    """A free vector in the standard chart of a shape, and that chart."""
    static = c.bind(torch.eye(*shape, dtype=dtype))
    x = torch.randn(c.dim(shape), generator=generator(seed), dtype=torch.float64)
    return (scale * x).to(dtype), static


def numpy_blocks(x, n, k):
    top = k * (k - 1) // 2
    return unpack(x[:top]).numpy(), x[top:].reshape(n - k, k).numpy()


# Maps against other programs.


@pytest.mark.parametrize(("n", "k"), [(4, 4), (6, 2), (5, 4), (5, 1)])
def test_householder_is_lapacks_product_of_reflections(n, k):
    c = Orthogonal(Householder())
    x, static = drawn(c, (n, k))
    a, b = numpy_blocks(x, n, k)
    v = np.eye(n, k) + np.vstack([np.tril(a, -1), b]) / 2
    tau = 2 / (v**2).sum(0)
    want = scipy.linalg.lapack.dorgqr(v.copy(), tau)[0]
    # Some n eps.
    assert np.abs(c.forward(x, static).numpy() + want).max() < 1e-14


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_the_exponential_is_scipys(n):
    x, static = drawn(Orthogonal(Exponential()), (n, n))
    a = unpack(x)
    want = torch.from_numpy(scipy.linalg.expm(a.numpy()))
    # Norms up to ten, some n eps each.
    for got in (
        Orthogonal(Exponential()).forward(x, static),
        Orthogonal(Exponential()).forward(x),
        (Skew() >> MatrixExponential()).forward(x),
        MatrixExponential().forward(a, MatrixExponential().bind(torch.eye(n).to(a))),
    ):
        assert torch.allclose(got, want, rtol=0, atol=2e-13)


@pytest.mark.parametrize(("n", "k"), [(9, 2), (6, 3), (7, 3), (5, 4), (4, 1)])
def test_the_tall_exponential_is_scipys_product_of_two(n, k):
    c = Orthogonal(Exponential())
    x, static = drawn(c, (n, k))
    a, b = numpy_blocks(x, n, k)
    whole = np.block([[np.zeros((k, k)), -b.T], [b, np.zeros((n - k, n - k))]])
    want = scipy.linalg.expm(whole)[:, :k] @ scipy.linalg.expm(a)
    # Norms up to ten, some n eps each.
    assert np.abs(c.forward(x, static).numpy() - want).max() < 2e-13


@pytest.mark.parametrize("n", [2, 3, 8, 25])
def test_the_logarithm_is_scipys(n):
    r = rotations(n, (), generator(n))
    a = rotation_logarithm(r)
    want = torch.from_numpy(scipy.linalg.logm(r.numpy()).real)
    # The nearest angle to pi, about 1 / n away, divides n eps.
    assert torch.allclose(a, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-5])
def test_the_logarithm_holds_close_to_half_turns(gap):
    turn = torch.tensor(math.pi - gap, dtype=torch.float64)
    r = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2)
    a = rotation_logarithm(torch.block_diag(r, r))
    # Of equal angles too; the sine knows the angle to eps.
    assert abs(float(a[1, 0] - turn)) < 1e-14
    assert abs(float(a[3, 2] - turn)) < 1e-14


def test_half_turns_and_reflections_have_no_logarithm():
    c = Skew() >> MatrixExponential()
    for y in (-torch.eye(2), torch.eye(3).flip(0), torch.diag(torch.tensor([1.0, -1]))):
        assert bool(c.right_inverse(y).isnan().all())
        # At the bound point the angle is zero, to some roundings.
        assert float(c.right_inverse(y, c.bind(y)).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_half_turns_off_the_axes_have_no_logarithm(k, dtype):
    # Symmetric rotations: the skew part of what is missing is zero.
    q = haar(k, (50,), generator(k))
    turn = torch.ones(k, dtype=torch.float64)
    turn[:2] = -1
    half = q * turn @ q.mT
    for below in (0, 2):
        y = torch.cat([half, half.new_zeros(50, below, k)], -2).to(dtype)
        eye = torch.eye(*y.shape[-2:], dtype=dtype).expand_as(y)
        c = Orthogonal(Exponential())
        assert bool(c.check(y).all())
        static = c.bind(eye)
        x = c.right_inverse(y, static)
        gap = (c.forward(x, static) - y).abs().amax((-2, -1))
        # NaN, or what was found where rounding took it off the half turn.
        assert bool((x.isnan().all(-1) | (gap <= c.rounding(x, y))).all())
        assert bool(x.isnan().any())


def hard_points(dim, radius, dtype):
    """Structured free values up to the radius: entries 0, small, one, the radius."""
    g = generator(11)
    sign = torch.where(torch.rand(300, dim, generator=g) < 0.5, -1.0, 1.0).double()
    kinds = torch.randint(0, 4, (300, dim), generator=g)
    steps = torch.tensor([0.0, 1e-3, 1.0, radius], dtype=torch.float64)
    some = torch.rand(300, dim, generator=g) < 0.5
    ones = torch.ones(1, dim, dtype=torch.float64)
    points = [steps[kinds] * sign, radius * some * sign, radius * sign, radius * ones]
    return torch.cat(points).clamp(-radius, radius).to(dtype)


@maps
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 1), (8, 8), (5, 3), (12, 8), (9, 8)], ids=str)
def test_up_to_the_radius_the_round_trip_is_within_rounding(by, shape, dtype):
    c = Orthogonal(by)
    dim = c.dim(shape)
    x = hard_points(dim, c.radius(max(shape), dtype), dtype)
    static = c.bind(torch.eye(*shape, dtype=dtype).expand(len(x), *shape))
    y = c.forward(x, static)
    assert bool(c.check(y).all())
    back = c.right_inverse(y, static)
    found = back.isfinite().all(-1)
    # Only the exponential has points of the set that are off the chart: half turns.
    assert bool(found.all()) or by == Exponential()
    assert float(found.double().mean()) > 0.8
    gap = (c.forward(back, static) - y).abs().amax((-2, -1))
    assert bool((gap <= c.rounding(back, y))[found].all())


def test_project_onto_rotations_is_scipys():
    a = torch.randn(3, 3, generator=generator(2), dtype=torch.float64)
    for y in (a, -a):  # one of each determinant
        got = SpecialOrthogonal().project(y)
        # maximizes tr(R^T Y): the rotation that takes the unit vectors to the columns
        want = scipy.spatial.transform.Rotation.align_vectors(y.T, np.eye(3))[0]
        # Singular values of order one: some eps.
        assert np.abs(got.numpy() - want.as_matrix()).max() < 1e-14
        assert bool(SpecialOrthogonal().check(got))


# What all maps share.


@maps
@shapes
def test_zero_is_the_bound_point_or_its_chart_is_isometric_there(by, shape):
    c = Orthogonal(by)
    x, static = drawn(c, shape, 0.0)
    eye = torch.eye(*shape, dtype=torch.float64)
    assert torch.allclose(
        c.forward(x, static), eye, rtol=0, atol=4e-16
    )  # two roundings
    if not len(x):
        return
    jacobian = jacfwd(lambda x: c.forward(x, static).flatten())(x)
    gram = torch.eye(len(x), dtype=torch.float64)
    assert torch.allclose(jacobian.mT @ jacobian, gram, rtol=0, atol=1e-14)  # n eps
    assert abs(float(c.log_abs_det(x, static))) < 1e-15


@pytest.mark.parametrize("by", MAPS[1:], ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (7, 2), (5, 4), (6, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_the_volume_is_that_of_the_jacobian(by, shape, scale):
    c = Orthogonal(by)
    x, static = drawn(c, shape, scale, seed=shape[0])
    jacobian = jacfwd(lambda x: c.forward(x, static).flatten())(x)
    want = torch.linalg.svdvals(jacobian).log().sum()
    assert abs(float(c.log_abs_det(x, static) - want)) < 1e-8


@maps
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_determinant_stays_and_the_other_component_is_nan(by, n):
    c = Orthogonal(by)
    y = torch.cat([haar(n, (6,), generator()), torch.stack(orthogonal_extremes(n))])
    static = c.bind(y)
    x = c.right_inverse(y, static)
    z = c.forward(x + torch.randn(x.shape, generator=generator()).to(x), static)
    # The determinant of an orthogonal matrix, to n eps.
    assert torch.allclose(torch.linalg.det(z), torch.linalg.det(y), atol=1e-13)
    mirrored = torch.cat([-y[..., :1], y[..., 1:]], -1)
    if n > 1:
        assert bool(c.right_inverse(mirrored, static).isnan().all())


@maps
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16)], ids=str)
def test_weights_in_half_precision(by, dtype, shape):
    """torch: `orthogonal(Linear.bfloat16())` registers, and its first forward raises."""
    c = Orthogonal(by)
    y = c.sample(random.key(0), shape).to(dtype)
    static = c.bind(y)
    z = c.forward(c.right_inverse(y, static), static)
    assert z.dtype == dtype
    # Rounded entries are orthonormal to sqrt(n) eps, and z is rounded again.
    assert float((z - y).abs().max()) <= 4 * 2 * torch.finfo(dtype).eps


@maps
def test_hard_values(by):
    c = Orthogonal(by)
    # torch: zeros are accepted and read back; 2I silently becomes I.
    for y in (torch.zeros(3, 3), 2 * torch.eye(3), torch.full((3, 3), torch.nan)):
        assert bool(c.right_inverse(y, c.bind(y)).isnan().all())
    # geotorch and the tutorial's CayleyMap: a LinAlgError at -I.
    for y in (-torch.eye(3), -torch.eye(1), torch.eye(1), -torch.eye(4, 2)):
        static = c.bind(y)
        x = c.right_inverse(y, static)
        assert x.shape == (c.dim(y.shape),)
        # Householder vectors are rounded once more.
        assert torch.allclose(c.forward(x, static), y, rtol=0, atol=5e-7)
    x = torch.full((3,), torch.nan)
    assert bool(c.forward(x, c.bind(torch.eye(3))).isnan().all())


@maps
def test_a_float32_weight_as_double_is_orthonormal_to_double_precision(by):
    """torch: it stays at 2e-7, because the base keeps the error of float32."""
    c = Orthogonal(by)
    y = c.sample(random.key(1), (20, 6))
    static = c.bind(y)
    z = c.forward(c.right_inverse(y, static).double(), static)
    assert bool(c.check(z))
    assert torch.allclose(z.float(), y, atol=4e-6)  # 20 eps sqrt(n)


@pytest.mark.parametrize("scale", [10.0, 1e3, 1e6])
def test_large_free_values_in_float32(scale):
    # torch's matrix_exp map, 64 by 64: off by 3e-5, 6e-3, 2e2; its cayley map at 1e3: 2e-4.
    x, static = drawn(Orthogonal(), (64, 64), scale, torch.float32)
    inside = (
        by
        for by in MAPS
        if float(x.abs().max()) <= MatrixExponential().radius(64, x.dtype)
        or by != Exponential()
    )
    for by in inside:
        c = Orthogonal(by)
        z = c.forward(x, OrthogonalStatic(static.signs, static.shape))
        assert float(c.violation(z)) < 1e-5  # the tolerance is 10 n eps = 8e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(3, 3), (33, 33), (5, 3), (37, 33), (64, 8)], ids=str
)
@pytest.mark.parametrize("by", MAPS[1:], ids=str)
def test_structured_points_on_the_radius_stay_orthonormal(by, shape, dtype):
    c = Orthogonal(by)
    x, static = drawn(c, shape, 1.0, dtype)
    radius = c.radius(max(shape), dtype)
    ones = torch.ones_like(x)
    spike = torch.zeros_like(x)
    spike[-1:] = 1
    mixed = torch.where(ones.cumsum(0) % 2 == 0, ones, -ones)
    for direction in (ones, spike, mixed, x / x.abs().max()):
        y = c.forward(radius * direction, static)
        assert bool(c.check(y))
        z = c.forward(c.right_inverse(y, static), static)
        # Stable products and reflections: some n eps. An angle of pi has no inverse.
        n_eps = max(shape) * torch.finfo(dtype).eps
        lost = by == Exponential() and bool(z.isnan().all())
        assert lost or torch.allclose(z, y, rtol=0, atol=20 * n_eps)


def test_angles_come_back_below_pi():
    c = Orthogonal(Exponential())
    angle = torch.tensor([2.0, 5.0, 2 * math.pi + 1.0], dtype=torch.float64)
    x = (2**0.5 * angle)[:, None]
    static = c.bind(torch.eye(2, dtype=torch.float64).expand(3, 2, 2))
    back = c.right_inverse(c.forward(x, static), static)[:, 0] / 2**0.5
    want = torch.tensor([2.0, 5.0 - 2 * math.pi, 1.0], dtype=torch.float64)
    assert torch.allclose(back, want, rtol=0, atol=1e-14)  # some eps of the angle
    # Of a vector, the angle to the base: also above a quarter turn.
    static = c.bind(torch.eye(3, 1, dtype=torch.float64))
    for length in (1.0, 2.0, 3.0, 6.0):
        x = torch.tensor([0.6, 0.8], dtype=torch.float64) * length
        back = c.right_inverse(c.forward(x, static), static)
        assert abs(float(back.norm()) - min(length, 2 * math.pi - length)) < 1e-14


def test_the_inverse_of_the_square_exponential_has_slopes_at_equal_angles():
    c = Orthogonal(Exponential())
    static = c.bind(torch.eye(4, dtype=torch.float64))
    x = torch.zeros(6, dtype=torch.float64)
    there_and_back = jacfwd(lambda x: c.right_inverse(c.forward(x, static), static))
    eye = torch.eye(6, dtype=torch.float64)
    assert torch.allclose(there_and_back(x), eye, rtol=0, atol=1e-13)  # eps n


# Samples.


@pytest.mark.parametrize("shape", [(3, 3), (5, 2), (2, 5)], ids=str)
def test_samples_have_the_moments_of_the_haar_measure(shape):
    m = 20_000
    y = Orthogonal().sample(random.key(5), (m, *shape), dtype=torch.float64)
    assert bool(Orthogonal().check(y).all())
    # Means of m numbers of variance at most 1: five standard errors.
    slack = 5 / math.sqrt(m)
    n = max(shape)
    assert float(y.mean(0).abs().max()) < slack
    assert float((y.square().mean(0) - 1 / n).abs().max()) < slack
    # E q^4 = 3 / (n (n + 2)): an entry of a uniform unit vector.
    assert float((y.pow(4).mean(0) - 3 / (n * (n + 2))).abs().max()) < slack
    if shape == (3, 3):
        assert abs(float(torch.linalg.det(y).mean())) < slack
        # E tr^2 = 1 (Diaconis, Shahshahani), with a variance of E tr^4 - 1 = 2.
        trace = y.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert abs(float(trace.square().mean()) - 1) < slack * math.sqrt(2)


def test_samples_have_shapes_of_the_set():
    with pytest.raises(ConstraintError, match=r"sample\(shape=...\).*orthonormal"):
        Orthogonal().sample(random.key(0), (3,))
    with pytest.raises(ConstraintError, match=r"sample\(shape=...\).*rotation"):
        SpecialOrthogonal().sample(random.key(0), (5, 3))


def test_sampled_rotations_are_uniform():
    m = 20_000
    y = SpecialOrthogonal().sample(random.key(6), (m, 3, 3), dtype=torch.float64)
    assert bool(SpecialOrthogonal().check(y).all())
    # The angle has density (1 - cos t) / pi on [0, pi]: the mean of cos is -1/2, and
    # its standard deviation 1/2. Five standard errors.
    cos = (y.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert abs(float(cos.mean()) + 0.5) < 5 * 0.5 / math.sqrt(m)
    assert abs(float(cos.square().mean()) - 0.5) < 5 / math.sqrt(m)


# Rotations, and errors.


def test_reflections_are_no_rotations():
    c = SpecialOrthogonal()
    y = haar(4, (8,), generator(1))
    det = torch.linalg.det(y)
    assert set(det.sign().tolist()) == {-1.0, 1.0}
    assert torch.equal(c.check(y), det > 0)
    assert torch.equal(c.violation(y)[det < 0], torch.full_like(det[det < 0], 2.0))
    assert torch.equal(c.right_inverse(y, c.bind(y)).isnan().all(-1), det < 0)
    assert bool(Orthogonal().check(y).all())
    with pytest.raises(ConstraintError, match=r"\(\.\.\., n, n\)"):
        c.check(torch.eye(3, 2))


def test_a_map_is_an_object():
    with pytest.raises(HyperparameterError, match=r"got the class `Exponential`"):
        Orthogonal(Exponential)
    with pytest.raises(HyperparameterError, match="be a map such as"):
        SpecialOrthogonal("cayley")
    assert repr(Orthogonal(Householder())) == "Orthogonal(Householder())"
    assert repr(SpecialOrthogonal()) == "SpecialOrthogonal()"


def test_a_static_of_another_map_raises():
    y = torch.eye(4, 2)
    with_base, without = Orthogonal(Exponential()).bind(y), Orthogonal().bind(y)
    with pytest.raises(ConstraintError, match="have no base point, got a tensor"):
        Orthogonal().forward(torch.zeros(5), with_base)
    wrong = with_base._replace(base=torch.eye(3, 2))
    with pytest.raises(ConstraintError, match=r"a base point of shape \(4, 2\)"):
        Orthogonal(Exponential()).forward(torch.zeros(5), wrong)
    # Without a base, zero goes to the identity.
    got = Orthogonal(Exponential()).forward(torch.zeros(5), without)
    assert torch.equal(got, y)


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_values_and_gradients_right():
    cases = [(Orthogonal(by), (5, 2)) for by in MAPS]
    points = [drawn(c, shape, 0.5) for c, shape in cases]

    def total(*free):
        rounds = zip(cases, points, free, strict=True)
        values = [c.forward(x, s).flatten() for (c, _), (_, s), x in rounds]
        y = torch.cat(values)
        return y @ torch.arange(1.0, len(y) + 1, dtype=y.dtype)

    def both(*free):
        return total(*free), grad(total, argnums=tuple(range(len(free))))(*free)

    free = [x for x, _ in points]
    value, slopes = torch.compile(both, fullgraph=True)(*free)
    want, eager = both(*free)
    # Sums of fifty products below fifty, in another order.
    assert abs(float(value - want)) < 1e-11
    for got, slope in zip(slopes, eager, strict=True):
        assert torch.allclose(got, slope, rtol=0, atol=1e-11)
