"""Grassmann and Unitary against scipy and closed forms."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from torch.func import grad_and_value

import pureopt as po
from pureopt import ConstraintError
from pureopt.constraints import (
    Grassmann,
    GrassmannStatic,
    Hurwitz,
    Orthogonal,
    Symplectic,
    Unitary,
    UnitaryStatic,
)
from tests.constraints.rows_manifolds import (
    assert_isometry,
    bound,
    generator,
    hurwitz,
    normal,
    symplectic,
    unitary,
    unitary_extremes,
)
from tests.constraints.rows_orthogonal import haar, orthogonal_extremes

# Grassmann


@pytest.mark.parametrize(("n", "k"), [(5, 2), (7, 3), (5, 4), (9, 1)])
def test_the_free_block_has_the_tangents_of_half_the_principal_angles(n, k):
    y = haar(n, (), generator(n))[:, :k]
    x, _ = bound(Grassmann(), y)
    tangents = torch.linalg.svdvals(x.reshape(n - k, k) / 2)
    angles = scipy.linalg.subspace_angles(y.numpy(), torch.eye(n, k).double().numpy())
    want = torch.from_numpy(angles[: len(tangents)] / 2).tan()
    # Scipy's angles are good to a few eps; no angle is above a right one.
    assert torch.allclose(tangents, want, rtol=0, atol=1e-13)


def test_every_subspace_is_well_inside_the_chart_around_it():
    samples = haar(6, (50,), generator())[..., :3]
    extremes = torch.stack(orthogonal_extremes(6))[..., :3]
    x, _ = bound(Grassmann(), torch.cat([samples, extremes]))
    tangents = torch.linalg.matrix_norm(x.reshape(-1, 3, 3) / 2, 2)
    assert bool((tangents <= 1 + 1e-14).all())  # a few roundings of one


def test_two_bases_of_a_subspace_have_one_free_vector():
    y = haar(7, (4,), generator())[..., :3]
    turned = y @ haar(3, (4,), generator(1))
    x, static = bound(Grassmann(), y)
    other, turned_static = bound(Grassmann(), turned)
    # The polar factor of a random 3 by 3 block: condition numbers up to a thousand.
    assert torch.allclose(x, other, rtol=0, atol=1e-11)
    assert not torch.allclose(static.frame, turned_static.frame, atol=0.1)
    # A basis has a chart of its own: in another one it is NaN, not another basis.
    assert bool(Grassmann().right_inverse(turned, static).isnan().all())


def test_steps_in_a_chart_give_bases_of_the_same_subspaces_in_any_gauge():
    y = haar(6, (), generator())[:, :2]
    turned = y @ haar(2, (), generator(1))
    x, static = bound(Grassmann(), y)
    moved = x + 0.3 * normal(8)
    a = Grassmann().forward(moved, static)
    b = Grassmann().forward(moved, Grassmann().bind(turned))
    assert torch.allclose(a @ a.mT, b @ b.mT, rtol=0, atol=1e-14)  # some n eps


def test_uniform_subspaces_have_the_moments_of_the_beta_distribution():
    n, k, draws = 5, 2, 4000
    y = Grassmann().sample(po.random.key(0), (draws, n, k), dtype=torch.float64)
    projector = y @ y.mT
    # P_11 is Beta(k/2, (n-k)/2).
    mean = k / n
    var = mean * (1 - mean) / (n / 2 + 1)
    five_sigma = 5 * (var / draws) ** 0.5
    assert abs(float(projector[:, 0, 0].mean()) - mean) < five_sigma
    # The fourth moment of a bounded variable is below its second one.
    assert abs(float(projector[:, 0, 0].var()) - var) < 5 * (var / draws) ** 0.5
    assert float((projector.mean(0) - mean * torch.eye(n)).abs().max()) < five_sigma
    # The basis is uniform too: the mean of an entry is zero, its variance 1/n.
    assert float(y.mean(0).abs().max()) < 5 / (n * draws) ** 0.5


def test_grassmann_is_an_isometry_at_zero():
    static = Grassmann().bind(torch.eye(5, 2, dtype=torch.float64))
    assert_isometry(Grassmann(), torch.zeros(6, dtype=torch.float64), static)


def test_a_grassmann_chart_of_another_shape_raises():
    static = Grassmann().bind(torch.eye(5, 3))
    with pytest.raises(ConstraintError, match=r"have shape \(6,\) .* 5 by 3 matrix"):
        Grassmann().forward(torch.zeros(5), static)
    with pytest.raises(ConstraintError, match="which knows the shape of the basis"):
        Grassmann().forward(torch.zeros(6))
    with pytest.raises(ConstraintError, match=r"come from a basis of shape \(3, 5\)"):
        Grassmann().right_inverse(torch.eye(3, 5), static)
    wrong = GrassmannStatic(torch.eye(2), static.shape)
    with pytest.raises(ConstraintError, match=r"have shape \(3, 3\)"):
        Grassmann().forward(torch.zeros(6), wrong)


def test_a_grassmann_frame_of_another_dtype_is_cast_as_the_leaf_says():
    static = Grassmann().bind(haar(5, (), generator())[:, :2])
    x = torch.linspace(-1, 1, 6)
    y = Grassmann().forward(x, static)
    assert y.dtype == torch.float32
    # Some roundings of numbers below one, times a condition number below ten.
    assert torch.allclose(Grassmann().right_inverse(y, static), x, rtol=0, atol=1e-5)


def test_the_dimension_of_a_subspace_needs_a_matrix_shape():
    with pytest.raises(ConstraintError, match=r"Grassmann\.dim\(shape\)` must have"):
        Grassmann().dim((3,))


# Unitary


def test_unitary_is_scipys_solution_of_the_complex_system():
    k, x = 4, normal(16)
    skew = torch.zeros(k, k, dtype=torch.complex128)
    row, column = torch.tril_indices(k, k, -1)
    skew[row, column] = x[:6] / math.sqrt(2) + 0j
    skew = skew - skew.mH
    hermitian = torch.zeros(k, k, dtype=torch.complex128)
    row, column = torch.tril_indices(k, k)
    scale = math.sqrt(0.5) ** (row != column).double()
    hermitian[row, column] = x[6:] * scale + 0j
    hermitian = hermitian + hermitian.tril(-1).mT
    a, eye = skew + 1j * hermitian, torch.eye(k)
    want = scipy.linalg.solve(eye - a / 2, eye + a / 2)
    got = torch.view_as_complex(Unitary().forward(x))
    # Well conditioned systems of size 4 and 8: some n eps.
    assert torch.allclose(got, torch.from_numpy(want), rtol=0, atol=1e-14)


def test_a_unitary_number_is_a_point_on_the_circle():
    x = torch.tensor([[-3.0], [0.5]], dtype=torch.float64)
    z = torch.view_as_complex(Unitary().forward(x))[..., 0, 0]
    assert torch.allclose(z.angle(), 2 * torch.atan(x[:, 0] / 2), rtol=0, atol=1e-15)


def test_real_free_numbers_give_the_orthogonal_map():
    y = haar(5, (), generator())
    x, static = bound(Orthogonal(), y)
    both = torch.cat([x, torch.zeros(15, dtype=x.dtype)])
    signs = UnitaryStatic(
        Unitary().bind(torch.stack([y, 0 * y], -1)).signs,
        torch.empty(5, 5, 2, 0, dtype=torch.int8),
    )
    z = Unitary().forward(both, signs)
    want = Orthogonal().forward(x, static)
    assert torch.allclose(z[..., 0], want, rtol=0, atol=1e-14)  # some n eps
    assert float(z[..., 1].abs().max()) == 0


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_signs_are_enough_for_every_phase(n):
    samples = torch.view_as_real(unitary(n, (50,), generator()))
    q = torch.cat([samples, torch.stack(unitary_extremes(n))])
    static = Unitary().bind(q)
    assert set(static.signs.unique().tolist()) <= {-1, 1}
    det = torch.linalg.det(
        torch.eye(n) + torch.view_as_complex(q) * static.signs.unsqueeze(-2)
    )
    # Pivots of modulus at least one, up to n roundings.
    assert bool((det.abs() >= 1 - 1e-12).all())
    x = Unitary().right_inverse(q, static)
    assert float(x.abs().max()) < 100


def test_off_the_unitary_chart_is_nan():
    y = torch.view_as_real(torch.stack([torch.eye(3), -torch.eye(3)]) + 0j)
    assert Unitary().right_inverse(y).isnan().all(-1).tolist() == [False, True]


def test_haar_unitary_samples_have_their_moments():
    draws, n = 4000, 3
    y = Unitary().sample(po.random.key(1), (draws, n, n, 2), dtype=torch.float64)
    trace = torch.view_as_complex(y).diagonal(dim1=-2, dim2=-1).sum(-1)
    # Diaconis and Shahshahani (1994): E tr^j conj(tr)^k = [j = k] k! for k <= n.
    sigma = draws**-0.5
    assert abs(complex(trace.mean())) < 5 * sigma
    assert abs(complex(trace.square().mean())) < 5 * math.sqrt(2) * sigma
    # Var |tr|^2 = 2 - 1; Var |tr|^4 = E|tr|^8 - 4 <= 24 - 4.
    assert abs(float(trace.abs().square().mean()) - 1) < 5 * sigma
    assert abs(float(trace.abs().pow(4).mean()) - 2) < 5 * math.sqrt(20) * sigma


def test_unitary_projection_is_scipys_polar_factor():
    a = normal(5, 3, 2)
    want, _ = scipy.linalg.polar(torch.view_as_complex(a).numpy())
    got = torch.view_as_complex(Unitary().project(a))
    # Condition number below ten, some n eps.
    assert torch.allclose(got, torch.from_numpy(want), rtol=0, atol=1e-14)


def test_unitary_is_an_isometry_at_zero():
    eye = torch.view_as_real(torch.eye(4, 2, dtype=torch.complex128))
    x = torch.zeros(12, dtype=torch.float64)
    assert_isometry(Unitary(), x, Unitary().bind(eye))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "k"), [(11, 8), (36, 33), (64, 16)])
def test_long_free_vectors_give_unitary_matrices(n, k, dtype):
    """One of the two copies of each part is off by 150 tolerances for (11, 8)."""
    static = Unitary().bind(torch.zeros(n, k, 2, dtype=dtype))
    ones = torch.ones(Unitary().dim((n, k, 2)), dtype=dtype)
    signs = torch.where(normal(ones.numel()) > 0, ones, -ones)
    for x in (ones, signs):
        y = Unitary().forward(0.5 * Unitary().radius(n, dtype) * x, static)
        assert bool(Unitary().check(y))


def test_a_unitary_value_is_stored_as_parts():
    with pytest.raises(ConstraintError, match=r"torch\.view_as_real"):
        Unitary().check(torch.zeros(2, 3, 3))
    with pytest.raises(ConstraintError, match=r"real floating-point.*view_as_real"):
        Unitary().check(torch.eye(3, dtype=torch.complex64))
    for shape in ((3,), (3, 3), (3, 3, 3)):
        with pytest.raises(ConstraintError, match=r"Unitary\.dim\(shape\)` must have"):
            Unitary().dim(shape)
    with pytest.raises(ConstraintError, match=r"n\^2: 1, 4, 9"):
        Unitary().forward(torch.zeros(5))
    static = Unitary().bind(torch.zeros(3, 2, 2))
    with pytest.raises(ConstraintError, match=r"have shape \(8,\) .* 3 by 2 matrix"):
        Unitary().forward(torch.zeros(9), static)
    with pytest.raises(
        ConstraintError, match=r"come from a value of shape \(2, 2, 2\)"
    ):
        Unitary().right_inverse(torch.zeros(2, 2, 2), static)
    with pytest.raises(ConstraintError, match="be a `UnitaryStatic`"):
        Unitary().forward(torch.zeros(4), torch.ones(2))


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_values_and_gradients_right():
    cases = [
        (Grassmann(), haar(5, (), generator())[:, :2]),
        (Unitary(), torch.view_as_real(unitary(3, (), generator()))),
        (Symplectic(), symplectic(2, (), generator())),
        (Hurwitz(0.1), hurwitz(3, (), generator()) - 0.1 * torch.eye(3)),
    ]
    pairs = [bound(c, y) for c, y in cases]
    xs = [x + 0.1 for x, _ in pairs]
    statics = [static for _, static in pairs]

    def total(xs, statics):
        sums = [
            (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum()
            for y in (
                c.forward(x, static)
                for (c, _), x, static in zip(cases, xs, statics, strict=True)
            )
        ]
        return torch.stack(sums).sum()

    compiled, value = torch.compile(grad_and_value(total), fullgraph=True)(xs, statics)
    eager, want = grad_and_value(total)(xs, statics)
    # Sums of some ten products of order ten to a hundred, in another order.
    assert abs(float(value - want)) < 1e-11
    for got, slope in zip(compiled, eager, strict=True):
        assert torch.allclose(got, slope, rtol=0, atol=1e-11)
