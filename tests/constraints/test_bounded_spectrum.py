"""Bounded eigenvalues and singular values against scipy and closed forms."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from torch.func import jacfwd

from pureopt import ConstraintError, HyperparameterError, random
from pureopt.constraints import BoundedSingularValues, BoundedSpectrum, Symmetric
from tests.constraints.row import randn
from tests.constraints.rows_definite import of_spectrum, rotation

EPS = torch.finfo(torch.float64).eps


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [1e-8, 1e-2, 1.0, 5.0, 30.0])
def test_the_map_is_scipys_hyperbolic_tangent(scale):
    a = scale * randn(5, 5, generator=generator())
    a = a + a.mT
    x = Symmetric().right_inverse(a)
    # The nearest of scipy's is by eigenvectors, because tanhm forms exponentials.
    values, vectors = scipy.linalg.eigh(a.numpy())
    want = torch.from_numpy((vectors * torch.tensor(values).tanh().numpy()) @ vectors.T)
    # Six well conditioned solves, each some n eps of a matrix below one.
    assert torch.allclose(
        BoundedSpectrum(-1, 1).forward(x), want, rtol=0, atol=50 * EPS
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 8, 33])
def test_both_bounds_and_the_inside_round_trip_together(n, dtype):
    """geotorch's almost_orthogonal refuses both ends; a gram matrix would mix them."""
    spectrum = torch.tensor([-1.0, 3.0, 0.5, 3 - 1e-5] * n, dtype=torch.float64)[:n]
    y = of_spectrum(rotation(n, (), generator()), spectrum).to(dtype)
    c = BoundedSpectrum(-1, 3)
    x = c.right_inverse(y)
    eps = torch.finfo(dtype).eps
    # |A| is at most 19: its rounding 20 eps, and some n eps of the decomposition.
    assert float((c.forward(x) - y).abs().max()) <= (20 + 5 * n) * eps * 3
    assert bool(c.check(c.forward(x)))


def test_bounds_that_are_close_keep_their_digits():
    c = BoundedSpectrum(1000, 1000.001)
    y = of_spectrum(
        rotation(4, (), generator()),
        torch.tensor([1000, 1000.0002, 1000.0007, 1000.001], dtype=torch.float64),
    )
    # Rounding of numbers of order 1000, some n eps.
    assert torch.allclose(c.forward(c.right_inverse(y)), y, rtol=0, atol=2e4 * EPS)


def test_the_map_is_smooth_where_eigenvalues_meet():
    c = BoundedSpectrum(-2, 4)
    jacobian = jacfwd(lambda x: c.forward(x).flatten())(torch.zeros(6).double())
    # At zero it is half the width times an isometry.
    eye = 9 * torch.eye(6, dtype=torch.float64)
    assert torch.allclose(jacobian.mT @ jacobian, eye, rtol=0, atol=1e-14)


def test_samples_are_uniform():
    """For n = 1 the interval; in general E tr and E tr of the square are known."""
    key = random.key(3)
    one = BoundedSpectrum(2, 5).sample(key, (4000, 1, 1), dtype=torch.float64)
    assert abs(float(one.mean()) - 3.5) < 5 * (0.75 / 4000) ** 0.5
    assert abs(float(one.var()) - 0.75) < 0.06  # 9/12, five standard errors
    # n = 2: rejection from the cube of coordinates is an independent sampler.
    y = BoundedSpectrum(-1, 1).sample(key, (20_000, 2, 2), dtype=torch.float64)
    cube = 2 * torch.rand(60_000, 3, generator=generator(), dtype=torch.float64) - 1
    a = torch.stack([cube[:, 0], cube[:, 1], cube[:, 1], cube[:, 2]], -1)
    a = a.reshape(-1, 2, 2)
    a = a[BoundedSpectrum(-1, 1).check(a)]
    for moment in (lambda t: t[:, 0, 1] ** 2, lambda t: t[:, 0, 0] * t[:, 1, 1]):
        # Numbers of order 0.1 to 0.3: five standard errors of 20000 draws.
        assert abs(float(moment(y).mean() - moment(a).mean())) < 0.012


def test_rectangular_samples_are_uniform_in_the_ball():
    y = BoundedSingularValues(0, 2).sample(
        random.key(4), (20_000, 2, 1), dtype=torch.float64
    )
    # A column in the disk of radius 2: the mean square is half of 4.
    assert abs(float((y**2).sum((-1, -2)).mean()) - 2) < 5 * (4 / 3 / 20_000) ** 0.5
    with pytest.raises(ConstraintError, match="implements `sample`"):
        BoundedSingularValues(1, 2).sample(random.key(0), (2, 2))


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
def test_almost_orthogonal_matrices_take_orthogonal_ones_at_their_bound(shape):
    y = torch.linalg.qr(randn(6, 6, generator=generator()))[0][: shape[0], : shape[1]]
    y = BoundedSingularValues(1, 1.5).project(y)
    c = BoundedSingularValues(1, 1.5)
    x = c.right_inverse(y, c.bind(y))
    assert x.shape == (shape[0] * shape[1],)
    # 20 eps of the spectrum at its bound, and the rounding of the Cayley transform.
    assert float((c.forward(x, c.bind(y)) - y).abs().max()) <= float(c.rounding(x, y))
    s = torch.linalg.svdvals(c.forward(x + 1, c.bind(y)))
    assert bool(((s > 1 - 1e-14) & (s < 1.5 + 1e-14)).all())


def test_project_clamps():
    a = randn(5, 3, generator=generator())
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    y = BoundedSingularValues(1, 1.5).project(a)
    assert torch.allclose(y, (u * s.clamp(1, 1.5)) @ vh, rtol=0, atol=20 * EPS)
    square = a.mT @ a
    values, vectors = torch.linalg.eigh(square)
    z = BoundedSpectrum(1, 2).project(square)
    want = of_spectrum(vectors, values.clamp(1, 2))
    assert torch.allclose(z, want, rtol=0, atol=50 * EPS)


def test_the_determinant_keeps_its_sign():
    y = torch.diag(torch.tensor([1.0, -1.0, 1.0]))
    c = BoundedSingularValues(0.5, 2)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    for step in (-3, 0, 3):
        assert float(torch.linalg.det(c.forward(step * x + step, static))) < 0


def test_a_shape_without_samples_raises():
    for shape in ((), (3,), (0, 3), (3, 0)):
        with pytest.raises(ConstraintError, match="have a shape"):
            BoundedSingularValues(0, 1).sample(random.key(0), shape)


def test_wrong_bounds_and_lengths_raise():
    with pytest.raises(HyperparameterError, match=r"be above low = 2, got 1"):
        BoundedSpectrum(2, 1)
    with pytest.raises(HyperparameterError, match="be finite, got inf"):
        BoundedSpectrum(0, float("inf"))
    with pytest.raises(HyperparameterError, match="be a number, got"):
        BoundedSpectrum(torch.tensor(0.0), 1)
    with pytest.raises(HyperparameterError, match=r"be >= 0, got -1"):
        BoundedSingularValues(-1, 1)
    with pytest.raises(ConstraintError, match=r"BoundedSpectrum.forward\(x\).*n \(n"):
        BoundedSpectrum(0, 1).forward(torch.ones(4))
    with pytest.raises(ConstraintError, match="Without static the matrix is square"):
        BoundedSingularValues(0, 1).forward(torch.ones(6))
    assert repr(BoundedSpectrum(0, 1)) == "BoundedSpectrum(low=0, high=1)"
