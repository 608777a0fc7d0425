"""The linear constraints: shapes, configuration, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from pureopt import CompositionError, ConstraintError, HyperparameterError
from pureopt.constraints import (
    Banded,
    BlockDiagonal,
    Cayley,
    Circulant,
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
from pureopt.constraints._domains import MATRIX, SQUARE, VECTOR
from tests.constraints.row import randn

EPS = torch.finfo(torch.float64).eps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_static_the_shape_is_square():
    for c, n in (
        (LowerTriangular(), 4),
        (LowerTriangular(-1), 5),
        (UpperTriangular(), 1),
        (Banded(1, 2), 6),
        (Toeplitz(), 7),
        (SumToZeroMatrix(), 3),
    ):
        assert c.forward(torch.zeros(2, c.dim((n, n)))).shape == (2, n, n)


def test_an_ensemble_of_rectangles_maps_over_values_and_statics():
    y = randn(4, 5, 3, generator=generator()).tril()
    c = LowerTriangular()
    static = vmap(c.bind)(y)
    x = vmap(c.right_inverse)(y, static)
    assert torch.equal(vmap(c.forward)(x, static), y)
    assert torch.equal(c.forward(x, c.bind(y)), y)


def test_a_static_of_another_shape_raises():
    c, y = LowerTriangular(), torch.zeros(2, 5, 3)
    x, static = torch.zeros(2, 12), LowerTriangular().bind(y)
    with pytest.raises(ConstraintError) as info:
        c.forward(x[:, 1:], static)
    assert str(info.value) == (
        "`LowerTriangular.forward(x)` must have shape (2, 12) for the static of a value "
        "of shape (2, 5, 3), got (2, 11). Under vmap, map over the free value and the "
        "static alike."
    )
    with pytest.raises(
        ConstraintError, match=r"be the static of a value of shape \(5, 3"
    ):
        c.right_inverse(y[0], static)
    for wrong in (torch.zeros(3), "shape", (1, 2)):
        with pytest.raises(ConstraintError, match=r"Take it from `bind`"):
            c.forward(x, wrong)
        with pytest.raises(ConstraintError, match=r"Take it from `bind`"):
            c.right_inverse(y, wrong)


@pytest.mark.parametrize(
    "c", [Symmetric(), Circulant(), Masked(torch.eye(2) > 0), SumToZero()], ids=repr
)
def test_a_static_where_the_shape_is_known_raises(c):
    static = LowerTriangular().bind(torch.empty(3, 2))
    for call in (c.forward, c.log_abs_det):
        with pytest.raises(
            ConstraintError, match=r"static=\.\.\.\)` must be `\(\)`, got"
        ):
            call(torch.zeros(2), static)


def test_a_tensor_that_is_no_shape_carrier_raises():
    """The batch of values itself, where its static was meant."""
    with pytest.raises(ConstraintError, match=r"static of a \(\.\.\., n, k\) value"):
        LowerTriangular().forward(torch.zeros(5, 3), torch.zeros(5, 2, 2))


@pytest.mark.parametrize(
    ("c", "length", "text"),
    [
        (
            Symmetric(),
            0,
            "have a last dimension 1, 3, 6, 10, ... (square matrices), got 0",
        ),
        (Symmetric(), 4, "got 4. `right_inverse` of a value gives the right one."),
        (Skew(), 2, "have a last dimension 0, 1, 3, 6, ... (square matrices), got 2"),
        (
            Toeplitz(),
            4,
            "1, 3, 5, 7, ... (square matrices), got 4. For a rectangle pass",
        ),
        (Banded(1, 1), 5, "have a last dimension 1, 4, 7, 10, ..."),
        (
            BlockDiagonal((2, 1)),
            4,
            "`BlockDiagonal.forward(x)` must have a last dimension 5",
        ),
        (
            Masked(torch.eye(2) > 0),
            3,
            "`Masked.forward(x)` must have a last dimension 2",
        ),
        (
            Permutation((1, 0)),
            3,
            "`Permutation.forward(x)` must have a last dimension 2",
        ),
    ],
    ids=repr,
)
def test_a_length_of_no_value_raises(c, length, text):
    for call in (c.forward, c.log_abs_det):
        with pytest.raises(ConstraintError) as info:
            call(torch.zeros(2, length))
        assert text in str(info.value)


def test_a_shape_that_does_not_fit_raises():
    for c, shape in (
        (Masked(torch.eye(2) > 0), (2, 3)),
        (Tied(torch.zeros(3, dtype=torch.int64)), (4,)),
        (BlockDiagonal((2, 1)), (4, 4)),
        (Permutation((1, 0)), (3,)),
        (Circulant(), (2, 3)),
        (Symmetric(), (3, 2)),
    ):
        for call in (c.check, c.bind, c.project, c.right_inverse):
            with pytest.raises(ConstraintError, match=r"have (event|a) shape"):
                call(torch.zeros(shape))
        with pytest.raises(ConstraintError, match=r"have (event|a) shape"):
            c.dim(shape)
    for c, shape in ((SumToZero(), (0,)), (Toeplitz(), (0, 2))):
        with pytest.raises(ConstraintError, match="every size at least 1"):
            c.dim(shape)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: LowerTriangular(0.5),
            "`LowerTriangular(diagonal=...)` must be an integer",
        ),
        (lambda: UpperTriangular(diagonal=True), "must be an integer, got True"),
        (lambda: Banded(-1, 0), "`Banded(lower=...)` must be an integer >= 0, got -1"),
        (
            lambda: Banded(0, 1.0),
            "`Banded(upper=...)` must be an integer >= 0, got 1.0",
        ),
        (lambda: BlockDiagonal(()), "have at least one block"),
        (lambda: BlockDiagonal((2, (0, 3))), "integers >= 1, got (2, (0, 3))"),
        (lambda: BlockDiagonal((2, (1, 2, 3))), "integers >= 1, got (2, (1, 2, 3))"),
        (lambda: BlockDiagonal((2.0,)), "a pair of integers >= 1, got (2.0,)"),
        (
            lambda: Masked(torch.ones(2)),
            "got a tensor of shape (2,) and dtype torch.float",
        ),
        (lambda: Masked([True]), "be a boolean tensor of the shape of the values"),
        (lambda: Masked(torch.tensor(data=True)), "be a boolean tensor of the shape"),
        (lambda: Masked(torch.ones(0) > 0), "`Masked(mask=...)` must have entries"),
        (lambda: Tied(torch.ones(2)), "be a signed integer tensor"),
        (lambda: Tied(torch.ones(0, dtype=torch.int64)), "must have entries"),
        (
            lambda: Permutation((0, 2)),
            "have each of 0, ..., n - 1 once, n >= 1, got (0, 2)",
        ),
        (lambda: Permutation((0, 0)), "n - 1 once, n >= 1, got (0, 0)"),
        (lambda: Permutation(torch.eye(2)), "n >= 1, got tensor([[1., 0.]"),
        (lambda: Permutation(()), "n - 1 once, n >= 1, got ()"),
        (lambda: Permutation((0.5, 1)), "n - 1 once, n >= 1, got (0.5, 1)"),
        (lambda: Permutation("ab"), "n - 1 once, n >= 1, got 'ab'"),
        (lambda: Permutation(None), "n - 1 once, n >= 1, got None"),
        (
            lambda: Permutation(torch.tensor([False, True])),
            "got tensor([False,  True])",
        ),
        (lambda: Permutation(torch.tensor([0j, 1])), "n >= 1, got tensor([0.+0.j, 1."),
        (lambda: BlockDiagonal(5), "`BlockDiagonal(sizes=...)` must have at least one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_configuration_raises_at_construction(make, text):
    with pytest.raises(HyperparameterError) as info:
        make()
    assert text in str(info.value)


def test_configuration_is_a_value_and_a_copy():
    assert BlockDiagonal([2, (1, 3)]) == BlockDiagonal((2, (1, 3)))
    assert hash(Permutation([1, 0])) == hash(Permutation(torch.tensor([1, 0])))
    assert repr(Permutation(torch.tensor([1, 0]))) == "Permutation(order=(1, 0))"
    assert repr(Banded(1, 2)) == "Banded(lower=1, upper=2)"
    mask, ids = torch.tensor([True, False]), torch.tensor([0, 1])
    masked, tied = Masked(mask), Tied(ids)
    mask[0], ids[1] = False, 0
    assert masked.mask.tolist() == [True, False]
    assert tied.groups.tolist() == [0, 1]


def test_what_is_square_goes_where_square_matrices_go():
    for c in (Circulant(), BlockDiagonal((2, 3)), Masked(torch.eye(2) > 0)):
        assert SQUARE.contains(c.codomain)
    for c in (LowerTriangular(), Banded(0, 1), Toeplitz(), BlockDiagonal(((2, 3),))):
        assert MATRIX.contains(c.codomain)
        assert not SQUARE.contains(c.codomain)
    with pytest.raises(CompositionError, match=r"got a circulant matrix .*Write `Skew"):
        Circulant() >> Cayley()


def test_a_permutation_gathers_and_keeps_the_set_before_it():
    order = torch.randperm(6, generator=generator())
    c = SumToZero() >> Permutation(order)
    assert VECTOR.contains(c.codomain)
    x = randn(3, 5, generator=generator())
    y = c.forward(x)
    assert torch.equal(y, SumToZero().forward(x)[:, order])
    # Some roundings of numbers of order one.
    assert torch.allclose(c.right_inverse(y), x, rtol=0, atol=20 * EPS)
    assert c.check(torch.stack([y[0], y[0] + 1])).tolist() == [True, False]
    assert bool(Permutation(order).check(randn(6, generator=generator())))
    assert not bool(Permutation(order).check(torch.full((6,), torch.inf)))
