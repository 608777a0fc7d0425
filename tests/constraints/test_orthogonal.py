"""Cayley and Orthogonal against torch, scipy and closed forms."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch
from torch.func import vmap
from torch.nn.utils import parametrizations

from pureopt import ConstraintError
from pureopt.constraints import Cayley, Orthogonal, OrthogonalStatic, Skew
from tests.constraints.rows_orthogonal import haar, orthogonal_extremes

SHAPES = [(1, 1), (2, 2), (3, 3), (8, 8), (2, 1), (5, 3), (33, 8), (3, 5), (64, 64)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def standard(rows, columns, dtype=torch.float64):
    """The standard chart of a shape, and its dimension."""
    static = Orthogonal().bind(torch.eye(rows, columns, dtype=dtype))
    n, k = max(rows, columns), min(rows, columns)
    return static, n * k - k * (k + 1) // 2


@pytest.mark.parametrize(("n", "k"), [(4, 4), (6, 3), (5, 1)])
def test_the_map_is_torchs_cayley_map_with_fewer_numbers(n, k):
    static, dim = standard(n, k)
    x = torch.randn(dim, generator=generator(), dtype=torch.float64)
    top = k * (k - 1) // 2
    original = torch.zeros(n, k, dtype=torch.float64)
    row, column = torch.tril_indices(k, k, -1)
    original[row, column] = x[:top] / math.sqrt(2)
    original[k:] = x[top:].reshape(n - k, k)
    linear = torch.nn.Linear(k, n, bias=False, dtype=torch.float64)
    parametrizations.orthogonal(
        linear, orthogonal_map="cayley", use_trivialization=False
    )
    linear.load_state_dict({"parametrizations.weight.original": original})
    # Two solutions of well conditioned systems of size n: some n eps.
    got = Orthogonal().forward(x, static)
    assert torch.allclose(got, linear.weight.detach(), rtol=0, atol=1e-14)


def test_cayley_is_scipys_solution_of_the_defining_system():
    a = Skew().forward(torch.randn(10, generator=generator(), dtype=torch.float64))
    eye = torch.eye(5, dtype=torch.float64)
    signs = torch.tensor([1, -1, -1, 1, -1], dtype=torch.int8)
    want = scipy.linalg.solve(eye - a / 2, eye + a / 2) * signs.numpy()
    got = Cayley().forward(a, signs)
    assert torch.allclose(got, torch.from_numpy(want), rtol=0, atol=1e-14)  # some n eps


def test_square_orthogonal_is_the_chain():
    y = haar(6, (3,), generator())
    chain, whole = Skew() >> Cayley(), Orthogonal()
    x = whole.right_inverse(y, whole.bind(y))
    statics = chain.bind(y)
    assert torch.equal(statics[1], whole.bind(y).signs)
    assert torch.equal(chain.forward(x, statics), whole.forward(x, whole.bind(y)))
    assert torch.equal(chain.log_abs_det(x, statics), whole.log_abs_det(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_structured_points_beyond_the_radius_stay_orthonormal(shape, dtype):
    static, dim = standard(*shape, dtype)
    # Eight times the radius, where the round trip ends.
    radius = torch.finfo(dtype).eps ** -0.25
    ones = torch.ones(dim, dtype=dtype)
    spike = torch.zeros(dim, dtype=dtype)
    spike[-1:] = 1
    mixed = torch.ones(dim, dtype=dtype) * 1e-3
    mixed[: dim // 2] = 1
    for x in (ones, spike, mixed, torch.where(ones.cumsum(0) % 2 == 0, ones, -ones)):
        for share in (1.0, 0.1):
            y = Orthogonal().forward(share * radius * x, static)
            assert bool(Orthogonal().check(y))
            assert bool(torch.isfinite(y).all())


@pytest.mark.parametrize("n", [2, 3, 8, 33])
def test_cayley_stays_orthogonal_up_to_its_radius_in_float32(n):
    a = 2 * torch.rand(20, n, n, generator=generator()) - 1
    a = (a.tril(-1) - a.tril(-1).mT) * Cayley().radius(n, torch.float32)
    assert bool(Cayley().check(Cayley().forward(a)).all())
    # Without the closing step the error shows where A is singular, in odd dimensions.
    eye = torch.eye(n)
    plain = torch.linalg.solve(eye - a / 2, eye + a / 2)
    if n in {3, 33}:
        assert not bool(Cayley().check(plain).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_what_was_made_on_the_radius_of_cayley_comes_back(n, dtype):
    radius = Cayley().radius(n, dtype)
    signs = torch.randint(0, 2, (200, n, n), generator=generator()) * 2 - 1
    a = (signs.tril(-1) - signs.tril(-1).mT).to(dtype) * radius
    y = Cayley().forward(a)
    x = Cayley().right_inverse(y)
    gap = (Cayley().forward(x) - y).abs().amax((-2, -1))
    assert bool((gap <= Cayley().rounding(x, y)).all())


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_the_signs_keep_the_chart_away_from_its_edge(n):
    q = torch.cat([haar(n, (50,), generator()), torch.stack(orthogonal_extremes(n))])
    signs = Cayley().bind(q)
    assert signs.dtype == torch.int8
    assert set(signs.unique().tolist()) <= {-1, 1}
    # Pivots of at least one: |det(I + Q D)| >= 1, up to n roundings.
    det = torch.linalg.det(torch.eye(n, dtype=q.dtype) + q * signs.unsqueeze(-2))
    assert bool((det >= 1 - 1e-12).all())
    # det(cayley) = 1, so the signs carry the determinant.
    assert torch.equal(signs.double().prod(-1), torch.linalg.det(q).sign())


def test_the_determinant_never_changes_along_a_path():
    y = haar(4, (2,), generator(3))
    static = Orthogonal().bind(y)
    x = Orthogonal().right_inverse(y, static)
    steps = [torch.linalg.det(Orthogonal().forward(x * t, static)) for t in (-9, 0, 9)]
    # The determinant of an orthogonal matrix to some n eps.
    assert all(torch.allclose(d, torch.linalg.det(y), atol=1e-13) for d in steps)


def test_without_static_the_chart_is_the_standard_one():
    x = torch.zeros(2, 3)
    assert torch.equal(Orthogonal().forward(x), torch.eye(3).expand(2, 3, 3))
    y = haar(3, (), generator(0))
    y = y * torch.linalg.det(y)
    z = Orthogonal().forward(Orthogonal().right_inverse(y))
    assert torch.allclose(z, y, atol=1e-13)  # a few eps times max|A|, about 10


@pytest.mark.parametrize("c", [Orthogonal(), Skew() >> Cayley()], ids=repr)
def test_off_the_chart_is_nan(c):
    y = torch.stack([torch.eye(3), -torch.eye(3), torch.eye(3).flip(0)])
    nan = c.right_inverse(y).isnan().all(-1)
    assert nan.tolist() == [False, True, True]
    turn = torch.tensor(torch.pi - 1e-9)
    near = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()]).reshape(2, 2)
    assert bool(c.right_inverse(near).isnan().all())
    assert bool(c.right_inverse(near, c.bind(near)).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 16, 96])
@pytest.mark.parametrize("c", [Cayley(), Orthogonal()], ids=str)
def test_the_chart_of_the_other_determinant_is_nan(c, n, dtype):
    # There `I + Q D` is singular but for rounding, and what is left of its inverse, once
    # made skew, may be of order one.
    q = haar(n, (20,), generator()).to(dtype)
    mirrored = torch.cat([-q[..., :1], q[..., 1:]], -1)
    static = c.bind(q)
    assert c.right_inverse(q, static).isfinite().all()
    assert c.right_inverse(mirrored, static).isnan().all()


def test_nothing_is_projected_silently():
    assert bool(Orthogonal().right_inverse(2 * torch.eye(3)).isnan().all())
    assert not bool(Orthogonal().check(torch.zeros(3, 3)))
    # 10 n eps of bfloat16 would be above one here.
    assert not bool(Orthogonal().check(torch.zeros(40, 40, dtype=torch.bfloat16)))


def test_project_is_scipys_polar_factor():
    a = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    want = torch.from_numpy(scipy.linalg.polar(a.numpy())[0])
    # Condition number below ten, some n eps.
    assert torch.allclose(Orthogonal().project(a), want, rtol=0, atol=1e-14)
    assert torch.allclose(Orthogonal().project(a.mT), want.mT, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3)])
def test_the_map_is_an_isometry_at_zero(shape):
    static, dim = standard(*shape)
    x = torch.zeros(dim, dtype=torch.float64)
    jacobian = torch.func.jacfwd(lambda x: Orthogonal().forward(x, static).flatten())(x)
    eye = torch.eye(dim, dtype=torch.float64)
    assert torch.allclose(jacobian.mT @ jacobian, eye, rtol=0, atol=1e-15)
    assert float(Orthogonal().log_abs_det(x, static)) == 0


def test_members_of_an_ensemble_have_their_own_signs():
    reflection = torch.diag(torch.tensor([1.0, 1, -1, 1, 1]))[:, :3]
    y = torch.stack([torch.eye(5, 3), -torch.eye(5, 3), reflection])
    static = vmap(Orthogonal().bind)(y)
    assert static.shape.shape == (3, 5, 3, 0)
    assert len({tuple(signs.tolist()) for signs in static.signs}) == 3
    x = vmap(Orthogonal().right_inverse)(y, static)
    assert torch.equal(vmap(Orthogonal().forward)(x, static), y)


def test_weight_decay_and_averages_stay_orthonormal():
    """Torch's default map turns the weight into zeros after one step of AdamW."""
    y = haar(8, (2,), generator())[..., :3].float()
    static = Orthogonal().bind(y[0])
    x = Orthogonal().right_inverse(y[0], static)
    other = Orthogonal().right_inverse(y[1], static)
    for moved in (0.99 * x, 0 * x, (x + other) / 2):
        assert bool(Orthogonal().check(Orthogonal().forward(moved, static)))


def test_a_static_of_another_shape_raises():
    static = Orthogonal().bind(torch.eye(5, 3))
    wrong = OrthogonalStatic(torch.ones(4, dtype=torch.int8), static.shape)
    with pytest.raises(
        ConstraintError, match=r"have shape \(9,\) for .* 5 by 3 matrix"
    ):
        Orthogonal().forward(torch.zeros(8), static)
    with pytest.raises(ConstraintError, match="map over the free value and the static"):
        Orthogonal().forward(torch.zeros(2, 9), static)
    with pytest.raises(
        ConstraintError, match=r"signs of shape \(3,\), got shape \(4,\)"
    ):
        Orthogonal().forward(torch.zeros(9), wrong)
    for y in (torch.eye(2, 3), torch.eye(3, 5)):
        with pytest.raises(ConstraintError, match=r"shape of its static, \(5, 3\)"):
            Orthogonal().right_inverse(y, static)
    with pytest.raises(ConstraintError, match="signs of shape"):
        Orthogonal().right_inverse(torch.eye(5, 3), wrong)
    with pytest.raises(ConstraintError, match="signs of shape"):
        Cayley().log_abs_det(torch.zeros(2, 2), static.signs)
    with pytest.raises(ConstraintError, match=r"signs of shape \(2,\), got `list`"):
        Cayley().forward(torch.zeros(2, 2), [1, 1])
    with pytest.raises(ConstraintError, match=r"last dimension n \(n - 1\) / 2"):
        Orthogonal().forward(torch.zeros(9))
