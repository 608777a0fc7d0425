"""Calls of sparse tensors under ``exact``: writes, dimensions, lanes, constants."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jacrev, jvp, vmap

from pureopt._errors import DerivativeError
from pureopt.derivatives import exact
from tests.derivatives.row import randn
from tests.derivatives.test_exact_sparse import OTHER, D, E, X, masked

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS")


def mixed_up(s):
    """Writes, each in another way."""
    s.mul_(2)
    s *= 6
    s /= 2
    torch.nn.functional.relu(s, inplace=True)
    return s.neg_()


def test_what_is_written_stays_written():
    def f(x):
        s = x.to_sparse()
        same = s
        mixed_up(s)
        return same.to_dense().exp()

    def dense(x):
        return (-(6 * masked(x)).relu()).exp()

    for x in (X, X.abs()):
        torch.testing.assert_close(
            jvp(exact(f), (x,), (E,)), jvp(dense, (x,), (E,)), rtol=1e-13, atol=1e-13
        )
        gradients = (grad(lambda x, h=h: h(x).sum())(x) for h in (exact(f), dense))
        torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


# Without a rule, or written to dense ones: torch's own functions, and its derivatives.
BY_TORCH = {
    "add_": lambda s: E.clone().add_(s),
    "+=": lambda s: E.clone().__iadd__(s),
    "-=": lambda s: E.clone().__isub__(s),
    "bmm": lambda s: torch.bmm(torch.stack([s, 2 * s]), D.expand(2, 3, 2)),
    "stack": lambda s: torch.stack([s, s * 2]).to_dense(),
    "stored zeros": lambda s: torch.stack([s * 0, s]).to_dense(),
    "stored zeros, turned": lambda s: (s * 0).adjoint().to_dense(),
    "both": lambda s: (s @ s.t()).to_dense(masked_grad=False),
    "both, a constant": lambda s: (s @ OTHER.t().to_sparse()).to_dense(),
    "by name": lambda s: torch.mm(s, mat2=D) + torch.mm(input=s, mat2=D),
    "vector by name": lambda s: torch.mv(s, vec=D[:, 0]),
    "dims by name": lambda s: s.permute(dims=(1, 0)).to_dense(),
}


@pytest.mark.parametrize("name", BY_TORCH)
def test_one_gradient_is_torchs(name):
    def loss(x):
        return BY_TORCH[name](x.to_sparse()).exp().sum()

    torch.testing.assert_close(grad(exact(loss))(X), grad(loss)(X), rtol=1e-13, atol=0)


CUBE = torch.where(randn(3, 2, 2) > 0, randn(3, 2, 2), 0.0)


@pytest.mark.parametrize(
    "turn",
    [lambda s: s.mT, lambda s: s.permute(2, 0, 1), lambda s: s.transpose(-1, 0)],
    ids=["mT", "permute", "transpose"],
)
def test_three_dimensions_turn_as_in_torch(turn):
    def f(x):
        return turn(x.to_sparse()).to_dense()

    y, slope = jvp(exact(f), (CUBE,), (CUBE.cos(),))
    assert torch.equal(y, f(CUBE))
    assert torch.equal(slope, torch.where(y != 0, turn(CUBE.cos()), 0.0))


@pytest.mark.parametrize(
    "f",
    [
        lambda s: torch.sparse.sum(s, 2),
        lambda s: s.sum(-3),
        lambda s: torch.sparse.sum(s, (0, 0)),
        lambda s: torch.sparse.sum(s, []),
        lambda s: torch.sparse.softmax(s, 2),
        lambda s: s.permute(1, 2),
        lambda s: s.transpose(0, 2),
    ],
    ids=["sum", "negative", "twice", "none", "softmax", "permute", "transpose"],
)
def test_dimensions_that_are_not_there_are_refused(f):
    with pytest.raises(DerivativeError, match="dimension"):
        jvp(exact(lambda x: f(x.to_sparse()).to_dense()), (X,), (E,))
    with pytest.raises(DerivativeError, match="a matrix"):
        jvp(exact(lambda x: x.to_sparse().t().to_dense()), (CUBE,), (CUBE,))


FACTORS = torch.tensor([[torch.inf, 1.0, torch.inf], [torch.nan, 2.0, torch.inf]])


@pytest.mark.parametrize(
    "f",
    [
        lambda s: (s / 0).to_dense(),
        lambda s: (s * torch.inf).to_dense(),
        lambda s: (s * FACTORS.double()).to_dense(),
        lambda s: (s / torch.tensor(0.0)).to_dense(),
        lambda s: torch.sparse.mm(s, FACTORS.double().mT),
    ],
    ids=["by zero", "infinity", "array", "zero", "product"],
)
def test_what_another_lane_stores_meets_no_infinity(f):
    lanes = torch.stack([X, X.roll(1, 1) * 2, 0 * X])
    h = exact(lambda x: f(x.to_sparse()))
    for g in (h, lambda x: jvp(h, (x,), (x,))[1], jacrev(h)):
        expected = torch.stack([g(x) for x in lanes])
        torch.testing.assert_close(vmap(g)(lanes), expected, equal_nan=True)


def test_lanes_take_a_factor_of_another_dtype():
    def f(x):
        s = x.to_sparse()
        return (s * 2j).to_dense() + (s.to(torch.int64) * 0.5).to_dense()

    lanes = torch.stack([X, X.roll(1, 1) * 2, 0 * X])
    for h in (exact(f), lambda x: jvp(exact(f), (x,), (x,))[1]):
        expected = torch.stack([h(x) for x in lanes])
        assert torch.equal(vmap(h)(lanes), expected)


def test_a_constant_takes_no_dense_memory():
    n = 200_000
    A = torch.sparse_coo_tensor(
        [[0, 1, 1], [5, n - 1, 5]],
        [1.0, 2.0, 3.0],
        (n, n),
        dtype=torch.float64,
        check_invariants=False,
    )
    y = torch.arange(n, dtype=torch.float64)[:, None]
    f = exact(lambda y: torch.sparse.mm(A, y.square()))
    slope = jvp(f, (y,), (torch.ones_like(y),))[1]
    assert slope[:3, 0].tolist() == [10.0, 4.0 * (n - 1) + 30.0, 0.0]
    g = exact(lambda y: torch.sparse.addmm(y, A, y, beta=0.5, alpha=2.0))
    slope = jvp(g, (y,), (torch.ones_like(y),))[1]
    assert slope[:3, 0].tolist() == [2.5, 10.5, 0.5]


def test_constants_stay_torchs_own_in_forward_mode():
    def f(x):
        A = OTHER.to_sparse()
        assert isinstance(A, torch.Tensor)
        return A.norm() * torch.stack([A, A]).to_dense().sum() * x.sum()

    slope = jvp(exact(f), (X,), (E,))[1]
    torch.testing.assert_close(slope, OTHER.norm() * 2 * OTHER.sum() * E.sum())


def test_a_constant_of_rows_is_left_to_torch():
    rows = OTHER.to_sparse(1)
    with pytest.raises(DerivativeError, match="which has no forward-mode derivative"):
        jvp(exact(lambda y: torch.sparse.mm(rows, y)), (D,), (D,))


def test_a_zero_factor_and_names_as_in_torch():
    A, nan = OTHER.to_sparse(), torch.full((2, 2), torch.nan, dtype=torch.float64)

    def f(y):
        return torch.sparse.addmm(nan, mat1=A, mat2=y, beta=0, alpha=2.0)

    def g(y):
        return torch.sparse.addmm(input=y[:2], mat1=A, mat2=y, beta=0.5)

    assert torch.equal(exact(f)(D), f(D))
    assert torch.equal(jvp(exact(f), (D,), (D,))[1], 2 * OTHER @ D)
    torch.testing.assert_close(jvp(exact(g), (D,), (D,))[1], 0.5 * D[:2] + OTHER @ D)
    y, slope = jvp(exact(lambda x: nan.addmm(x.to_sparse(), D, beta=0)), (X,), (E,))
    torch.testing.assert_close((y, slope), (X @ D, E @ D))


NOTHING = {
    "double": lambda s: s.double(),
    "to": lambda s: s.to(torch.float64),
    "type": lambda s: s.type(torch.float64),
    "positive": torch.positive,
    "+": lambda s: +s,
    "to_sparse": lambda s: s.to_sparse(),
    "to_sparse_coo": lambda s: s.to_sparse_coo(),
    "to_sparse(2)": lambda s: s.to_sparse(2),
    "coalesce": lambda s: s.coalesce(),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_changes_nothing_is_the_same_tensor(name):
    def f(x):
        s = x.to_sparse()
        t = NOTHING[name](s)
        s *= 3
        return t.to_dense()

    slope = 3 * (X != 0).double()
    assert torch.equal(grad(lambda x: exact(f)(x).sum())(X), slope)
    assert torch.equal(jvp(exact(f), (X,), (E,))[1], slope * E)


def test_a_csr_matrix_made_csr_is_the_same():
    def f(x):
        s = x.to_sparse_csr()
        t = s.to_sparse_csr()
        s *= 3
        return t.to_dense()

    assert torch.equal(jvp(exact(f), (X,), (E,))[1], 3 * (X != 0).double() * E)


def test_a_factor_of_zero_may_move():
    assert X[0, 1] == 0

    def f(x):
        return torch.sparse.addmm(x[:, :2], x.to_sparse(), D, beta=x[0, 1])

    def dense(x):
        return x[0, 1] * x[:, :2] + masked(x) @ D

    torch.testing.assert_close(jvp(exact(f), (X,), (E,)), jvp(dense, (X,), (E,)))
    lanes = vmap(exact(f))(torch.stack([X, 2 * X]))
    torch.testing.assert_close(lanes, torch.stack([dense(X), dense(2 * X)]))


def test_a_zero_factor_of_nan_leaves_the_value():
    nan, A = torch.full((2, 2), torch.nan, dtype=torch.float64), OTHER.to_sparse()
    f = exact(lambda y: torch.sparse.addmm(nan, A, y, beta=0))
    y, slope = jvp(f, (D,), (D,))
    torch.testing.assert_close((y, slope), (OTHER @ D, OTHER @ D))


@pytest.mark.parametrize("f", [lambda y: y, exact], ids=["torch", "exact"])
def test_the_names_of_torch_are_known(f):
    A = OTHER.to_sparse()
    for g in (
        lambda y: torch.sparse.mm(A, dense=y),
        lambda y: torch.sparse.mm(sparse=A, dense=y),
        lambda y: torch.sparse.mm(A.to_sparse_csr(), y, reduce="sum"),
        lambda y: torch.sparse.mm(A.to_sparse_csr(), y, "sum"),
    ):
        torch.testing.assert_close(f(g)(D), OTHER @ D)
    mine = [
        lambda x: torch.sparse.mm(x.to_sparse(), dense=D),
        lambda x: torch.sparse.mm(sparse=x.to_sparse(), dense=D),
    ]
    for g in mine:
        torch.testing.assert_close(f(g)(X), X @ D)
        if f is exact:
            torch.testing.assert_close(jvp(f(g), (X,), (E,))[1], masked(E) @ D)


def test_a_constant_in_forward_mode_goes_by_name_too():
    A = OTHER.to_sparse()
    f = exact(lambda y: torch.sparse.mm(sparse=A, dense=y))
    torch.testing.assert_close(jvp(f, (D,), (D.cos(),))[1], OTHER @ D.cos())


def test_stored_zeros_have_derivatives():
    def f(x):
        s = x.to_sparse()
        return torch.stack([s * (x[0, 0] - X[0, 0]), s]).to_dense().exp().sum()

    def dense(x):
        s = masked(x)
        return torch.stack([s * (x[0, 0] - X[0, 0]), s]).exp().sum()

    torch.testing.assert_close(grad(exact(f))(X), grad(dense)(X))
    y, _ = torch.func.vjp(exact(lambda x: x.to_sparse() * 0), X)
    assert y._nnz() == X.count_nonzero()


def test_a_write_keeps_the_dtype():
    def f(x):
        s = x.to_sparse().float()
        s *= E.to_sparse()
        s.t_()
        return s.to_dense()

    y, slope = jvp(exact(f), (X,), (E,))
    assert y.dtype == slope.dtype == torch.float32
    torch.testing.assert_close(slope, (masked(E) * E).t().float())
    torch.testing.assert_close(
        grad(lambda x: exact(f)(x).sum())(X), grad(lambda x: f(x).sum())(X)
    )
    # Not only the numbers that are stored.
    whole = exact(
        lambda x: x.to_sparse().float().mul_(E.to_sparse()).to_dense(masked_grad=False)
    )
    y, slope = jvp(whole, (X,), (E,))
    assert y.dtype == slope.dtype == torch.float32
    wide = torch.tensor(2.0, dtype=torch.float64)
    lanes = vmap(exact(lambda x: x.to_sparse().mul_(wide).to_dense()))(X.float()[None])
    assert torch.equal(lanes[0], 2 * X.float())
    with pytest.raises(DerivativeError, match=r"dtype .*complex128 into .*float64"):
        jvp(exact(lambda x: x.to_sparse().mul_(1j).to_dense()), (X,), (E,))


@pytest.mark.parametrize("name", ["abs_", "absolute_"])
def test_a_write_keeps_complex_numbers_complex(name):
    def f(x):
        s = torch.view_as_complex(x).to_sparse()
        return torch.view_as_real(getattr(s, name)().to_dense())

    with pytest.raises(DerivativeError, match=rf"`{name}` of .*float64 into .*ex128"):
        jvp(exact(f), (D,), (D,))
    y, _ = jvp(
        exact(lambda x: torch.view_as_complex(x).to_sparse().neg_().to_dense()),
        (D,),
        (D,),
    )
    assert torch.equal(y, -torch.view_as_complex(D))


def test_a_type_is_asked_for_or_made():
    kinds = []

    def f(x):
        s = x.to_sparse()
        kinds.append(s.type())
        t = s.type("torch.sparse.FloatTensor").to_dense()
        return t.double().sum() + s.type(torch.float32, True).to_dense().double().sum()

    torch.testing.assert_close(grad(exact(f))(X), 2 * (X != 0).double())
    assert kinds == ["torch.sparse.DoubleTensor"]


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jvp(f, (X,), (E,)),
        lambda f: vmap(f)(X[None]),
        lambda f: vmap(grad(lambda x: f(x).sum()))(X[None]),
    ],
    ids=["forward", "lanes", "samples"],
)
def test_a_type_is_asked_for_in_every_transform(transform):
    kinds = []

    def f(x):
        s = x.to_sparse()
        kinds.extend(t.type() for t in (s, s.float(), s * 1j, s.bfloat16()))
        return s.to_dense()

    transform(exact(f))
    kinds_of_torch = ("Double", "Float", "ComplexDouble", "BFloat16")
    assert kinds == [f"torch.sparse.{kind}Tensor" for kind in kinds_of_torch]
    # Torch has no name for the compressed ones.
    with pytest.raises(RuntimeError, match="SparseCsr"):
        transform(exact(lambda x: x * len(x.to_sparse_csr().type())))
    with pytest.raises(RuntimeError, match="SparseCsr"):
        X.to_sparse_csr().type()


def test_a_product_by_another_reduction_is_refused():
    with pytest.raises(DerivativeError, match="reduce='amax'"):
        jvp(exact(lambda x: torch.sparse.mm(x.to_sparse(), D, "amax")), (X,), (E,))


def test_names_that_torch_does_not_know_are_left_to_it():
    A = OTHER.to_sparse()
    with pytest.raises(TypeError, match="_sparse_mm"):
        jvp(exact(lambda y: torch.sparse.mm(A, y, other=y)), (D,), (D,))
