"""Matricized: the matrices inside convolutions and other tensors."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

import pureopt as po
from pureopt import CompositionError, ConstraintError, HyperparameterError
from pureopt.constraints import (
    Cayley,
    Grassmann,
    Matricized,
    Orthogonal,
    Positive,
    PowerSpectralNorm,
    Skew,
    Symmetric,
    WeightNorm,
)
from tests.constraints.rows_orthogonal import haar

FLAT = Matricized(Orthogonal(), rows=-4, cols=(-3, -2, -1))
POSITION = Matricized(Orthogonal(), rows=-4, cols=-3)
GROUPS = Matricized(Orthogonal(), rows=-4, cols=(-3, -2, -1), groups=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weight(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def assert_orthonormal_rows(w):
    # Some n eps for n below forty.
    eye = torch.eye(w.shape[-2], dtype=w.dtype)
    assert torch.allclose(w @ w.mT, eye.expand_as(w @ w.mT), rtol=0, atol=1e-13)


def test_flattened_is_the_matrix_of_filters():
    w = weight(5, 3, 2, 2)
    y = FLAT.project(w)
    assert torch.equal(y.flatten(1), Orthogonal().project(w.flatten(1)))
    inner = Orthogonal().bind(y.flatten(1))
    x = FLAT.right_inverse(y, FLAT.bind(y))
    assert torch.equal(x, Orthogonal().right_inverse(y.flatten(1), inner))
    z = FLAT.forward(2 * x, FLAT.bind(y))
    assert torch.equal(z.flatten(1), Orthogonal().forward(2 * x, inner))


def test_each_position_of_a_kernel_is_a_matrix_of_its_own():
    y = POSITION.project(weight(5, 3, 2, 4))
    static = POSITION.bind(y)
    x = POSITION.right_inverse(y, static)
    assert x.shape == (2, 4, 9)
    z = POSITION.forward(x + 1, static)
    for i in range(2):
        for j in range(4):
            inner = Orthogonal().bind(y[:, :, i, j])
            want = Orthogonal().forward(x[i, j] + 1, inner)
            assert torch.equal(z[:, :, i, j], want)
            assert_orthonormal_rows(z[:, :, i, j].mT)


def test_groups_are_consecutive_blocks_of_filters():
    conv = torch.nn.Conv2d(4, 6, 2, groups=2, dtype=torch.float64)
    y = GROUPS.project(conv.weight.detach())
    assert y.shape == (6, 2, 2, 2)
    x = GROUPS.right_inverse(y, GROUPS.bind(y))
    assert x.shape == (2, 18)
    z = GROUPS.forward(x + 0.1, GROUPS.bind(y))
    for block in z.chunk(2):
        assert_orthonormal_rows(block.flatten(1))
    # Filters of different groups see different channels, and may be parallel.
    together = z.flatten(1) @ z.flatten(1).mT
    assert float(together[:3, 3:].abs().max()) > 0.01


def test_an_orthogonal_convolution_with_kernels_of_one_pixel_keeps_the_norm():
    y = POSITION.project(weight(4, 4, 1, 1))
    moved = POSITION.forward(
        POSITION.right_inverse(y, POSITION.bind(y)) + 1, POSITION.bind(y)
    )
    images = weight(2, 4, 5, 5, seed=1)
    out = F.conv2d(images, moved)
    # Orthogonal to some n eps, in sums of a hundred squares.
    assert torch.allclose(out.norm(), images.norm(), rtol=1e-14)


def test_the_order_of_the_named_dimensions_decides_what_a_group_is():
    w = weight(2, 4, 3)
    by_last = Matricized(Orthogonal(), rows=(-1, -3), cols=-2, groups=3).project(w)
    for i in range(3):
        assert torch.equal(by_last[:, :, i], Orthogonal().project(w[:, :, i]))
    by_first = Matricized(Orthogonal(), rows=(-3, -1), cols=-2, groups=2).project(w)
    for i in range(2):
        assert torch.equal(by_first[i].mT, Orthogonal().project(w[i].mT))


def test_one_bad_matrix_spoils_its_element_and_no_other():
    y = POSITION.project(weight(3, 4, 3, 2, 2))
    bad = y.clone()
    bad[1, :, :, 0, 1] *= 1.5
    static = POSITION.bind(bad)
    assert POSITION.check(bad).tolist() == [True, False, True]
    # 1.5^2 - 1, and the tolerance of that matrix: 10 n eps.
    assert abs(float(POSITION.violation(bad)[1]) - 1.25) < 1e-12
    tolerance = 40 * torch.finfo(torch.float64).eps
    assert abs(float(POSITION.tolerance(bad)[1]) / tolerance - 1) < 1e-12
    x = POSITION.right_inverse(bad, static)
    assert x.isnan().flatten(1).all(-1).tolist() == [False, True, False]
    assert x.isnan().flatten(1).any(-1).tolist() == [False, True, False]


def test_on_a_tree_with_an_ensemble_each_member_has_its_own_charts():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 3, groups=2), torch.nn.Conv2d(6, 4, 1)
    )
    params = {k: v.detach() for k, v in model.named_parameters()}
    first = GROUPS.project(params["0.weight"])
    params |= {"0.weight": first, "1.weight": POSITION.project(params["1.weight"])}
    spec = {"0.weight": GROUPS, "1.weight": POSITION}
    space = po.constrain(params, spec)
    assert space.free["0.weight"].shape == (2, 48)
    assert space.free["1.weight"].shape == (1, 1, 14)
    members = torch.stack([first, -first, first.flip(0)])
    static = vmap(GROUPS.bind)(members)
    free = vmap(GROUPS.right_inverse)(members, static)
    moved = vmap(GROUPS.forward)(free, static)
    # 20 eps sqrt(n) times a largest free number of at most ten.
    assert torch.allclose(moved, members, rtol=0, atol=1e-4)
    with pytest.raises(ConstraintError, match="the worst matrix of the tensor"):
        po.constrain(params | {"0.weight": 2 * first}, spec)


def test_the_volume_is_the_sum_over_the_matrices():
    y = POSITION.project(weight(2, 4, 3, 2, 2))
    static = POSITION.bind(y)
    x = POSITION.right_inverse(y, static)
    total = POSITION.log_abs_det(x, static)
    assert total.shape == (2,)
    inner = Orthogonal().bind(y.permute(0, 3, 4, 1, 2))
    want = Orthogonal().log_abs_det(x, inner).flatten(1).sum(-1)
    assert torch.equal(total, want)


def test_samples_are_independent_matrices():
    y = GROUPS.sample(po.random.key(0), (3, 6, 2, 2, 2), dtype=torch.float64)
    assert bool(GROUPS.check(y).all())
    blocks = y.reshape(3, 2, 3, 8)
    assert not torch.allclose(blocks[:, 0], blocks[:, 1])


def test_a_free_value_may_be_a_tree():
    c = Matricized(WeightNorm(), rows=-4, cols=(-3, -2, -1))
    w = weight(5, 3, 2, 2)
    static = c.bind(w)
    x = c.right_inverse(w, static)
    assert x.magnitude.shape == (5,)
    assert x.direction.shape == (5, 12)
    # One division and one product per entry.
    assert torch.allclose(c.forward(x, static), w, rtol=1e-15)
    torch_norm = torch.nn.utils.parametrizations.weight_norm
    conv = torch_norm(torch.nn.Conv2d(3, 5, 2, dtype=torch.float64))
    conv.weight = w
    norms = conv.parametrizations.weight.original0.flatten()
    assert torch.allclose(x.magnitude, norms, rtol=1e-14)


def test_the_inner_constraint_says_what_there_is():
    assert FLAT.bijective
    assert not Matricized(WeightNorm(), rows=-2, cols=-1).bijective
    assert FLAT.offers("log_abs_det")
    assert FLAT.offers("sample")
    assert not Matricized(Symmetric(), rows=-2, cols=-1).offers("sample")


def test_dimensions_may_come_in_a_list():
    c = Matricized(Orthogonal(), rows=[-4], cols=[-3, -2, -1])
    assert c == Matricized(Orthogonal(), rows=(-4,), cols=(-3, -2, -1))
    assert isinstance(hash(c), int)
    assert torch.equal(c.project(weight(5, 3, 2, 2)), FLAT.project(weight(5, 3, 2, 2)))


def test_charts_move_as_the_inner_constraint_moves_them():
    """Power iteration: a value whose estimate is too far off has no right inverse."""
    inner = PowerSpectralNorm(steps=1)
    c = Matricized(inner, rows=-4, cols=(-3, -2, -1))
    static = c.bind(c.project(weight(5, 3, 2, 2)))
    w = weight(5, 3, 2, 2, seed=1)
    assert not bool(c.check(c.forward(w.flatten(1), static)))
    x, moved = w.flatten(1), static.inner
    for _ in range(3):
        x, moved = inner.rebind(x, moved)
    y, after = w.flatten(1), static
    for _ in range(3):
        y, after = c.rebind(y, after)
    assert torch.equal(after.inner, moved)
    assert torch.equal(y, x)
    assert torch.equal(after.shape, static.shape)


def test_composition_needs_the_matrices_the_inner_constraint_takes():
    plain = Matricized(Cayley(), rows=-2, cols=-1)
    chain = Skew() >> plain
    y = haar(3, (), generator())
    static = chain.bind(y)
    assert torch.allclose(chain.forward(chain.right_inverse(y, static), static), y)
    with pytest.raises(CompositionError, match="each a skew-symmetric matrix"):
        Skew() >> Matricized(Cayley(), rows=-3, cols=-2)


@pytest.mark.parametrize(
    ("rows", "cols"), [(0, -1), (-1, 1), ((), -1), ((-1, -2), -2), (-1.0, -2), (-1, -1)]
)
def test_dimensions_are_negative_and_named_once(rows, cols):
    with pytest.raises(HyperparameterError, match="each named once"):
        Matricized(Orthogonal(), rows=rows, cols=cols)


def test_what_does_not_fit_says_so():
    with pytest.raises(HyperparameterError, match="constraint of matrices"):
        Matricized(Positive(), rows=-2, cols=-1)
    with pytest.raises(HyperparameterError, match=r"the class `Orthogonal`.*instance"):
        Matricized(Orthogonal, rows=-2, cols=-1)
    with pytest.raises(HyperparameterError, match="integer >= 1"):
        Matricized(Orthogonal(), rows=-2, cols=-1, groups=0)
    with pytest.raises(ConstraintError, match=r"shape \(\.\.\., d4, d3, d2, d1\)"):
        FLAT.check(torch.zeros(3, 3))
    with pytest.raises(ConstraintError, match="2 groups divide, got 3 rows"):
        GROUPS.check(torch.zeros(3, 2, 2, 2))
    with pytest.raises(ConstraintError, match="knows the shape of the tensor"):
        FLAT.forward(torch.zeros(3))
    y = FLAT.project(weight(5, 3, 2, 2))
    static = FLAT.bind(y)
    with pytest.raises(ConstraintError, match=r"a tensor of shape \(5, 3, 1, 2\)"):
        FLAT.right_inverse(torch.zeros(5, 3, 1, 2), static)
    pairs = Matricized(Symmetric(), rows=-3, cols=-1)
    static = pairs.bind(torch.zeros(3, 2, 3))
    with pytest.raises(ConstraintError, match=r"matrices of shape \(2, 3, 3\)"):
        pairs.forward(torch.zeros(4, 6), static)
    with pytest.raises(ConstraintError, match="have a shape"):
        Matricized(Symmetric(), rows=-3, cols=-1).check(torch.zeros(3, 2, 4))


def test_frames_of_subspaces_per_group():
    c = Matricized(Grassmann(), rows=-4, cols=(-3, -2, -1), groups=2)
    y = c.sample(po.random.key(3), (4, 3, 1, 2), dtype=torch.float64)
    assert c.dim((4, 3, 1, 2)) == 2 * 2 * 4
    x = c.right_inverse(y, c.bind(y))
    assert x.shape == (2, 8)
    # 20 eps sqrt(n), free numbers of at most two.
    assert torch.allclose(c.forward(x, c.bind(y)), y, rtol=0, atol=1e-14)
