"""The linear constraints: packing, isometry, what counts as inside, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, grad_and_value, jacfwd

from pureopt import ConstraintError
from pureopt._tree import tree_leaves
from pureopt.constraints import (
    Banded,
    BlockDiagonal,
    Circulant,
    Domain,
    LinearSubspace,
    LowerTriangular,
    Masked,
    Permutation,
    Skew,
    SumToZero,
    SumToZeroMatrix,
    Symmetric,
    Tied,
    Toeplitz,
    UpperTriangular,
)
from pureopt.constraints._domains import MATRIX
from pureopt.constraints._sum_to_zero import helmert, helmert_adjoint
from pureopt.testing import check_constraint
from tests.constraints.row import randn
from tests.constraints.rows_linear import ROWS

EPS = torch.finfo(torch.float64).eps
both = pytest.mark.parametrize("c", [Symmetric(), Skew()], ids=repr)
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(n: int) -> torch.Tensor:
    return torch.arange(1.0, n + 1, dtype=torch.float64)


@pytest.mark.parametrize(("c", "offset"), [(Symmetric(), 0), (Skew(), -1)], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_packing_is_numpys_lower_triangle_row_by_row(c, offset, n):
    row, column = np.tril_indices(n, offset)
    x = numbers(len(row))
    y = c.forward(x).numpy()
    off = row != column
    want = x.numpy() / np.where(off, math.sqrt(2), 1)
    np.testing.assert_allclose(y[row, column], want, rtol=4e-16)  # two roundings
    np.testing.assert_array_equal(y.T, y if offset == 0 else -y)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (6, 3), (2, 7)], ids=str)
@pytest.mark.parametrize("k", [-9, -2, -1, 0, 1, 2, 9])
def test_triangles_are_numpys(shape, k):
    for c, indices, part in (
        (LowerTriangular(k), np.tril_indices, np.tril),
        (UpperTriangular(k), np.triu_indices, np.triu),
    ):
        row, column = indices(shape[0], k, shape[1])
        assert c.dim(shape) == len(row)
        x = numbers(len(row))
        y = c.forward(x, c.bind(torch.empty(shape)))
        np.testing.assert_array_equal(y[row, column], x)
        assert int(y.count_nonzero()) == len(x)
        np.testing.assert_array_equal(c.project(y + 1), part(y + 1, k))


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (7, 3), (3, 7)], ids=str)
@pytest.mark.parametrize(("lower", "upper"), [(0, 0), (1, 2), (3, 0), (9, 9)])
def test_bands_are_numpys(shape, lower, upper):
    c = Banded(lower, upper)
    band = np.triu(np.tril(np.ones(shape), upper), -lower)
    assert c.dim(shape) == band.sum()
    x = numbers(int(band.sum()))
    y = c.forward(x, c.bind(torch.empty(shape))).numpy()
    # Row by row: the order in which numpy lists the entries of a mask.
    np.testing.assert_array_equal(y[band == 1], x)
    np.testing.assert_array_equal(y[band == 0], 0)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_circulant_is_scipys(n):
    column = numbers(n)
    y = Circulant().forward(column * math.sqrt(n))
    # Three roundings: of the root, its reciprocal, and two products.
    np.testing.assert_allclose(y, scipy.linalg.circulant(column), rtol=4 * EPS)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (6, 2), (1, 5)], ids=str)
def test_toeplitz_is_scipys(shape):
    n, k = shape
    diagonals = np.arange(1.0, n + k)  # from the upper right corner on
    want = scipy.linalg.toeplitz(diagonals[k - 1 :], diagonals[k - 1 :: -1])
    y = torch.from_numpy(want)
    static = Toeplitz().bind(y)
    x = Toeplitz().right_inverse(y, static)
    lengths = [len(np.diagonal(want, d)) for d in range(k - 1, -n, -1)]
    np.testing.assert_allclose(x, diagonals * np.sqrt(lengths), rtol=4 * EPS)
    np.testing.assert_allclose(Toeplitz().forward(x, static), want, rtol=4 * EPS)


def test_block_diagonal_is_scipys():
    c = BlockDiagonal((2, (1, 3), (2, 1)))
    blocks = [numbers(4).reshape(2, 2), numbers(3)[None] + 4, numbers(2)[:, None] + 7]
    want = scipy.linalg.block_diag(*blocks)
    np.testing.assert_array_equal(c.forward(numbers(9)), want)
    np.testing.assert_array_equal(c.right_inverse(torch.from_numpy(want)), numbers(9))


@pytest.mark.parametrize("n", [1, 2, 3, 50, 1000])
def test_the_recursion_is_scipys_helmert_matrix(n):
    basis = torch.from_numpy(scipy.linalg.helmert(n)) if n > 1 else torch.empty(0, 1)
    x = randn(n - 1, generator=generator())
    y = randn(n, generator=generator(1))
    basis = basis.double()
    # Sums of n products below 4 / i: some roundings, both here and there.
    np.testing.assert_allclose(helmert(x), x @ basis, atol=20 * EPS)
    # Its rows are differences of an entry and a mean: 4 is their largest.
    want = basis @ y
    np.testing.assert_allclose(helmert_adjoint(y), want, atol=80 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_hundred_thousand_entries_lose_no_digits(dtype):
    """Prototypes with K = 1000: 2e-7 and 4e-16; here 100 times as many entries."""
    y = randn(100_000, generator=generator())
    y = (y - y.mean()).to(dtype)
    x = SumToZero().right_inverse(y)
    z = SumToZero().forward(x)
    # Ten roundings of the largest entry, 4.4, and none that grows with their number.
    assert (z - y).abs().max() <= 10 * torch.finfo(dtype).eps * y.abs().max()
    assert bool(SumToZero().check(z))


def test_zero_sums_of_a_matrix_are_those_of_helmert_from_both_sides():
    x = randn(3, 4, generator=generator())
    c = SumToZeroMatrix()
    y = c.forward(x.flatten(), c.bind(torch.empty(4, 5)))
    want = scipy.linalg.helmert(4).T @ x.numpy() @ scipy.linalg.helmert(5)
    np.testing.assert_allclose(y, want, atol=40 * EPS)
    # Sums of at most five numbers of order one.
    assert float(y.sum(0).abs().max()) < 20 * EPS
    assert float(y.sum(1).abs().max()) < 20 * EPS
    assert not bool(c.check(y + y.sum() + 1e-6))


@rows
def test_the_map_is_an_isometry_and_project_is_its_orthogonal_projector(row):
    c, n = row.make(), min(5, row.sizes[-1])
    y = row.sample(n if n in row.sizes else row.sizes[0], (), generator())
    static = c.bind(y)
    x = c.right_inverse(y, static)
    basis = jacfwd(lambda x: c.forward(x, static))(x).reshape(y.numel(), -1)
    # Entries below one, at most 64 products added.
    gram = basis.mT @ basis
    assert torch.allclose(gram, torch.eye(len(x)).double(), rtol=0, atol=64 * EPS)
    assert float(c.log_abs_det(x, static)) == 0
    noise = randn(*y.shape, generator=generator(1))
    want = (basis @ (basis.mT @ noise.flatten())).reshape(y.shape)
    assert torch.allclose(c.project(noise), want, rtol=0, atol=200 * EPS)


@rows
def test_no_free_number_is_dead(row):
    """A torch ``tril`` weight keeps n^2 numbers, of which n (n - 1) / 2 never move."""
    c, n = row.make(), row.sizes[len(row.sizes) // 2]
    y = row.sample(n, (), generator())
    static = c.bind(y)
    x = c.right_inverse(y, static)
    assert len(x) == row.dim(n) == c.dim(y.shape)
    slope = grad(lambda x: (c.forward(x, static) - 2 * y).square().sum())(x)
    # The gradient of |E x - 2 y|^2 at E x = y is -2 x.
    assert torch.allclose(slope, -2 * x, rtol=1e-13, atol=1e-13)
    assert not x.numel() or float(x.abs().min()) > 1e-6


@rows
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_the_round_trip_holds_at_the_radius(row, dtype):
    for n in row.sizes:
        c = row.make()
        y = row.sample(n, (), generator()).to(dtype)
        static, radius = c.bind(y), c.radius(max(y.shape), dtype)
        sign = 1 - 2 * (torch.arange(c.dim(y.shape)) % 2).to(dtype)
        for x in (radius * torch.ones_like(sign), radius * sign):
            z = c.forward(x, static)
            assert bool(c.check(z))
            back = c.right_inverse(z, static)
            # Relative, so that no difference overflows; sums of up to 36 terms.
            assert torch.allclose(
                back / x, x / x, rtol=0, atol=8 * torch.finfo(dtype).eps
            )


@given(n=st.integers(2, 9), seed=st.integers(0, 99))
def test_symmetric_and_skew_parts_are_orthogonal(n, seed):
    y = randn(n, n, generator=generator(seed))
    symmetric, skew = Symmetric().project(y), Skew().project(y)
    assert torch.allclose(
        symmetric + skew, y, rtol=0, atol=4 * EPS * float(y.abs().max())
    )
    # n^2 products of order one, which cancel in pairs.
    assert abs(float((symmetric * skew).sum())) <= 4 * EPS * n**2


@both
def test_the_round_trip_is_exact_to_two_roundings(c):
    y = c.project(randn(50, 7, 7, generator=generator()))
    z = c.forward(c.right_inverse(y))
    # Times sqrt(2), then times its reciprocal: half an ulp each, and half for each of
    # the constants.
    assert torch.allclose(z, y, rtol=2 * EPS, atol=0)


@pytest.mark.parametrize(
    "c",
    [LowerTriangular(), Banded(1, 1), Masked(torch.eye(5) > 0), BlockDiagonal((2, 3))],
    ids=lambda c: type(c).__name__,
)
def test_entries_that_are_free_numbers_come_back_exactly(c):
    y = c.project(randn(5, 5, generator=generator()))
    assert torch.equal(c.forward(c.right_inverse(y)), y)


@both
def test_a_rounding_of_asymmetry_is_inside_and_a_visible_one_is_not(c):
    y = c.forward(torch.ones(3))
    y[0, 1] += 2e-7
    assert bool(c.check(y))
    y[0, 1] += 2e-5
    assert not bool(c.check(y))
    # The projection shares the difference between the two entries.
    assert float(c.violation(y)) == pytest.approx(1.01e-5, rel=1e-2)
    # The tolerance is relative to the largest entry: units do not matter.
    assert not bool(c.check(1e-20 * y))


def test_a_diagonal_is_not_skew():
    assert not bool(Skew().check(torch.eye(2)))
    assert bool(Symmetric().check(torch.eye(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_numbers_next_to_zero_are_inside_up_to_their_spacing(dtype):
    spacing = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    y = spacing * torch.tensor([3.0, 1.0, -3.0], dtype=torch.float64)
    assert bool(SumToZero().check(y.to(dtype)))
    assert not bool(SumToZero().check((100 * y).to(dtype)))


def test_a_million_equal_numbers_come_back():
    """Adding them up in float32 would lose three of seven digits."""
    c = Tied(torch.zeros(1_000_000, dtype=torch.int64))
    y = torch.full((1_000_000,), 0.1)
    assert bool(c.check(y))
    x = c.right_inverse(y)
    assert float(x) == pytest.approx(100.0, rel=2e-7)
    # Times 1000, then times its reciprocal.
    assert torch.allclose(c.forward(x), y, rtol=3e-7, atol=0)


def test_groups_are_means_in_the_order_of_their_ids():
    ids = torch.tensor([[5, -1, 0], [0, 5, 5]], dtype=torch.int8)
    y = numbers(6).reshape(2, 3)
    want = torch.tensor([[4, 0, 3.5], [3.5, 4, 4]], dtype=torch.float64)
    c = Tied(ids)
    assert torch.allclose(c.project(y), want, rtol=4 * EPS, atol=0)
    x = torch.tensor([3.5 * math.sqrt(2), 4 * math.sqrt(3)], dtype=torch.float64)
    assert torch.allclose(c.right_inverse(want), x, rtol=4 * EPS, atol=0)
    assert bool(c.right_inverse(y).isnan().all())


def test_the_empty_free_vector_is_the_one_value_of_the_set():
    assert torch.equal(Skew().forward(torch.zeros(4, 0)), torch.zeros(4, 1, 1))
    assert Skew().right_inverse(torch.zeros(4, 1, 1)).shape == (4, 0)
    assert torch.equal(SumToZero().forward(torch.zeros(2, 0)), torch.zeros(2, 1))
    for c, y in (
        (Masked(torch.zeros(2, 3, dtype=torch.bool)), torch.zeros(2, 3)),
        (Tied(torch.full((3,), -1)), torch.zeros(3)),
        (SumToZeroMatrix(), torch.zeros(1, 4)),
        (UpperTriangular(diagonal=4), torch.zeros(4, 3)),
    ):
        static = c.bind(y)
        assert c.right_inverse(y, static).shape == (0,)
        assert torch.equal(c.forward(torch.zeros(0), static), y)
        assert bool(c.check(y))
        assert not bool(c.check(y + 1))


class EqualRows(LinearSubspace):
    """A subspace of a user: matrices with one row, repeated."""

    @property
    def codomain(self):
        return Domain("a matrix of equal rows", "(..., n, k)", 2, inside=(MATRIX,))

    def degrees(self, shape):
        return shape[1]

    def embed(self, x, shape):
        unit = torch.full(
            (shape[0], 1), shape[0] ** -0.5, dtype=x.dtype, device=x.device
        )
        return unit @ x.unsqueeze(-2)

    def adjoint(self, y):
        n = y.shape[-2]
        return torch.full((n,), n**-0.5, dtype=y.dtype, device=y.device) @ y


def test_a_search_for_a_size_that_grows_slowly_ends():
    class One(EqualRows):
        def degrees(self, shape):
            return min(shape[1], 1)

    with pytest.raises(ConstraintError, match="have a last dimension 1, 1, 1, 1"):
        One().forward(torch.zeros(2))


@pytest.mark.compile
def test_a_subspace_of_ones_own_passes_the_test_kit():
    outside = [torch.eye(4, 3, dtype=torch.float64)]
    report = check_constraint(EqualRows(), (4, 3), outside=outside)
    assert report, str(report)


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_values_and_gradients_right():
    """One map per mechanism: scatters, gathers, sums over groups, the recursion."""
    cases = [
        (Symmetric(), (3, 3)),
        (Skew(), (3, 3)),
        (LowerTriangular(), (3, 2)),
        (Banded(0, 1), (3, 3)),
        (Toeplitz(), (2, 3)),
        (SumToZero(), (4,)),
        (Permutation((2, 0, 1)), (3,)),
    ]
    statics = [c.bind(torch.empty(shape)) for c, shape in cases]
    xs = [randn(c.dim(shape), generator=generator()) for c, shape in cases]

    def loss(xs):
        total = xs[0].new_zeros(())
        for (c, _), static, x in zip(cases, statics, xs, strict=True):
            y = c.forward(x, static)
            total = total + (y * y * torch.linspace(1, 2, y.shape[-1]).to(y)).sum()
        return total

    got = torch.compile(grad_and_value(loss), fullgraph=True)(xs)
    want = grad_and_value(loss)(xs)
    for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
        # Sums of at most 50 squares of order one, in another order.
        assert torch.allclose(a, b, rtol=1e-13, atol=1e-13)
