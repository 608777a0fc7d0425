"""``exact`` on sparse tensors: what they are dense, in every nesting."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional as F

from pureopt._errors import DerivativeError
from pureopt.derivatives import exact, exact_ops, hvp
from pureopt.derivatives._exactness._sparse import SparseStandIn
from pureopt.derivatives._exactness._sparse_rules import ELEMENTWISE
from tests.derivatives.exact_case import differentiated, words
from tests.derivatives.row import randn

ZERO = torch.zeros((), dtype=torch.float64)
X = torch.tensor([[0.5, 0.0, -0.3], [0.0, 0.7, 0.0]], dtype=torch.float64)
KEPT = X != 0
D, E, SQUARE = randn(3, 2), randn(2, 3, seed=1), randn(2, 2, seed=2)
OTHER = torch.tensor([[1.5, 2.0, 0.0], [0.0, 0.0, -1.0]], dtype=torch.float64)

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS")


def masked(x):
    """What is stored; what is zero is a constant."""
    return torch.where(KEPT, x, 0.0)


def union(x):
    return torch.where(KEPT | (OTHER != 0), x, 0.0)


def sparse(x):
    return x.to_sparse()


def softmax(x, dim):
    e = torch.where(KEPT, x.exp(), 0.0)
    return e / e.sum(dim, keepdim=True).clamp_min(1e-300)


def log_softmax(x, dim):
    return torch.where(KEPT, x - (KEPT * x.exp()).sum(dim, keepdim=True).log(), 0.0)


def tripled(s):
    return s.to_dense() * 3


# From a sparse matrix to a dense tensor, and the same of the dense one: only what is stored
# has derivatives, as in torch's reverse mode.
STORED = {
    "to_dense": (lambda s: s.to_dense(), lambda x: x),
    "masked_grad": (lambda s: s.to_dense(masked_grad=True), lambda x: x),
    "values": (lambda s: s.coalesce().values(), lambda x: x[KEPT]),
    "_values": (lambda s: s._values(), lambda x: x[KEPT]),
    "by hand": (
        lambda s: torch.zeros_like(X).index_put(tuple(s.indices()), s.values()),
        lambda x: x,
    ),
    "sparse.mm": (lambda s: torch.sparse.mm(s, D), lambda x: x @ D),
    "sparse.mm, second": (lambda s: torch.sparse.mm(SQUARE, s), lambda x: SQUARE @ x),
    "sparse.mm, both": (
        lambda s: torch.sparse.mm(s, s.t()).to_dense(),
        lambda x: x @ x.t(),
    ),
    "sparse.addmm": (
        lambda s: torch.sparse.addmm(SQUARE, s, D, beta=0.5, alpha=2.0),
        lambda x: 0.5 * SQUARE + 2 * x @ D,
    ),
    "sparse.sum": (torch.sparse.sum, lambda x: x.sum()),
    "sparse.sum, dim": (
        lambda s: torch.sparse.sum(s, 1).to_dense(),
        lambda x: x.sum(1),
    ),
    "sparse.sum, dims": (lambda s: torch.sparse.sum(s, (0, -1)), lambda x: x.sum()),
    "sparse.sum, dtype": (
        lambda s: torch.sparse.sum(s, dtype=torch.float64),
        lambda x: x.sum(),
    ),
    "t": (lambda s: s.t().to_dense(), lambda x: x.t()),
    "T": (lambda s: s.T.to_dense(), lambda x: x.t()),
    "mT": (lambda s: s.mT.coalesce().values(), lambda x: x.t()[KEPT.t()]),
    "transpose": (lambda s: torch.transpose(s, 0, -1).to_dense(), lambda x: x.t()),
    "permute": (lambda s: s.permute(1, 0).to_dense(), lambda x: x.t()),
    "times": (lambda s: (2 * s * E[0, 0]).to_dense(), lambda x: 2 * x * E[0, 0]),
    "times dense": (lambda s: (E * s * E[0]).to_dense(), lambda x: x * E * E[0]),
    "times sparse": (
        lambda s: (s * OTHER.to_sparse()).to_dense(),
        lambda x: x * OTHER,
    ),
    "divided": (lambda s: (s / E[0, 0] / 2).to_dense(), lambda x: x / E[0, 0] / 2),
    "negated": (lambda s: (-s).to_dense(), lambda x: -x),
    "difference": (lambda s: (s - 3 * s).to_dense(), lambda x: -2 * x),
    "power": (lambda s: (s**3 + s.pow(2)).to_dense(), lambda x: x**3 + x**2),
    "softmax": (
        lambda s: torch.sparse.softmax(s, 1).to_dense(),
        lambda x: softmax(x, 1),
    ),
    "log_softmax": (
        lambda s: torch.sparse.log_softmax(s, dim=0).to_dense(),
        lambda x: log_softmax(x, 0),
    ),
    "clone": (lambda s: s.clone().to(torch.float64).double().to_dense(), lambda x: x),
    "detach": (
        lambda s: s.detach().to_dense() * s.to_dense(),
        lambda x: x.detach() * x,
    ),
    "sparse_mask": (
        lambda s: E.sparse_mask(s).to_dense() * tripled(s),
        lambda x: 3 * E * x,
    ),
    "again": (lambda s: s.to_sparse().to_sparse_coo().to_dense(), lambda x: x),
    "to a layout": (lambda s: s.to_sparse_csr().t().to_dense(), lambda x: x.t()),
}
# Here what is zero has derivatives, too.
ALL = {
    "to_dense": (lambda s: s.to_dense(masked_grad=False), lambda x: x),
    "of a product": (
        lambda s: (s * E / 3).to_dense(masked_grad=False),
        lambda x: x * E / 3,
    ),
    "of the transposed": (lambda s: s.t().to_dense(masked_grad=False), lambda x: x.t()),
    "mm": (lambda s: torch.mm(s, D) + s.mm(D), lambda x: 2 * x @ D),
    "matmul": (lambda s: s @ D + torch.matmul(s, D), lambda x: 2 * x @ D),
    "matmul, vector": (lambda s: s @ D[:, 0], lambda x: x @ D[:, 0]),
    "matmul, second": (lambda s: SQUARE @ s, lambda x: SQUARE @ x),
    "mv": (lambda s: torch.mv(s, D[:, 0]) + s.mv(D[:, 1]), lambda x: x @ D.sum(1)),
    "linear": (lambda s: F.linear(s, E, E[:, 0]), lambda x: F.linear(x, E, E[:, 0])),
    "linear, second": (lambda s: F.linear(E, s), lambda x: F.linear(E, x)),
    "addmm": (lambda s: SQUARE.addmm(s, D), lambda x: SQUARE + x @ D),
    "addmm, numbers": (
        lambda s: torch.addmm(SQUARE, s, D, beta=0.5, alpha=2.0),
        lambda x: 0.5 * SQUARE + 2 * x @ D,
    ),
    "sum": (lambda s: s.sum() + torch.sum(s), lambda x: 2 * x.sum()),
    "sum, axis": (lambda s: torch.sum(s, axis=(0, 1)), lambda x: x.sum()),
    "added": (lambda s: E + s, lambda x: E + x),
    "subtracted": (lambda s: E - s, lambda x: E - x),
    "added, alpha": (lambda s: torch.add(E, s, alpha=2), lambda x: E + 2 * x),
}
EVERY = {
    **{f"{name}, stored": (*pair, masked) for name, pair in STORED.items()},
    **{f"{name}, all": (*pair, lambda x: x) for name, pair in ALL.items()},
    "sum of two": (
        lambda s: (s + OTHER.to_sparse()).to_dense(),
        lambda x: x + OTHER,
        union,
    ),
    "sum of two, all": (
        lambda s: (s + OTHER.to_sparse()).to_dense(masked_grad=False),
        lambda x: x + OTHER,
        lambda x: x,
    ),
}


def along(f):
    """Of one number: what is zero moves as well."""

    def moved(t):
        y = f(X + t * E + t * t * E.sin())
        return (y.exp() * (1 + torch.arange(y.numel()).reshape(y.shape).cos())).sum()

    return moved


def check_words(sparsely, densely):
    """All words up to order four."""
    truth = [differentiated(densely, "R" * order)(ZERO).item() for order in range(5)]
    for prefix in [*words(1), *words(3)]:
        g = differentiated(sparsely, prefix)
        here, forward = jvp(g, (ZERO,), (torch.ones_like(ZERO),))
        pairs = zip(truth[len(prefix) :], (here, forward), strict=False)
        for expected, got in (*pairs, (truth[len(prefix) + 1], grad(g)(ZERO))):
            # Other orders of the same sums, of some hundred terms of the result's size.
            assert got.item() == pytest.approx(expected, rel=1e-10, abs=1e-10), prefix


@pytest.mark.parametrize("name", EVERY)
def test_every_nesting_is_that_of_the_dense_function(name):
    f, dense, kept = EVERY[name]
    assert torch.equal(exact(lambda: f(X.to_sparse()))(), f(X.to_sparse()))
    check_words(
        along(exact(lambda x: f(x.to_sparse()))), along(lambda x: dense(kept(x)))
    )


@pytest.mark.parametrize("name", EVERY)
def test_torchs_reverse_mode_has_the_same_gradient(name):
    f, dense, kept = EVERY[name]
    if name in {"_values, stored", "to a layout, stored"}:
        pytest.skip("torch has none of it")

    def loss(f):
        return lambda x: along(f)(ZERO * x.sum() + 0) + f(x).exp().sum()

    expected = grad(loss(lambda x: f(x.to_sparse())))(X)
    for got in (
        grad(loss(exact(lambda x: f(x.to_sparse()))))(X),
        grad(loss(lambda x: dense(kept(x))))(X),
    ):
        # One sum in another order.
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_keeps_zeros_is_applied_to_what_is_stored(name):
    g = getattr(torch, name)
    x = X.abs() if name == "sqrt" else X

    def f(x, stored=True):
        y = g(x.to_sparse()).to_dense() if stored else torch.where(KEPT, g(x), 0.0)
        return y.exp()

    assert torch.equal(exact(f)(x), f(x))
    v = masked(E)
    for nesting in ((grad, jvp), (jvp, jvp), (jvp, grad), (grad, grad)):
        got, expected = (
            nested(h, nesting, x, v) for h in (exact(f), lambda x: f(x, False))
        )
        torch.testing.assert_close(
            masked(got), masked(expected), rtol=1e-12, atol=1e-12
        )
        assert got.isfinite().all()


def nested(f, nesting, x, v):
    for each in nesting:
        f = grad(summed(f)) if each is grad else line(f, v)
    return f(x)


def summed(f):
    return lambda x: (f(x) * (1 + E * E)).sum()


def line(f, v):
    return lambda x: jvp(f, (x,), (v,))[1]


def energy(x):
    return torch.sparse.mm(x.sin().to_sparse(), D).exp().sum()


def dense_energy(x):
    return (masked(x.sin()) @ D).exp().sum()


def test_arrays_of_derivatives_are_those_of_the_dense_function():
    for outer in (jacfwd, jacrev):
        for f, g in (
            (energy, dense_energy),
            (lambda x: x.to_sparse() @ D, lambda x: x @ D),
        ):
            # Sums of three products.
            same = {"rtol": 1e-12, "atol": 1e-12}
            torch.testing.assert_close(outer(exact(f))(X), outer(g)(X), **same)
            for inner in (jacfwd, jacrev):
                for again in (jacfwd, jacrev):
                    torch.testing.assert_close(
                        again(outer(inner(exact(f))))(X),
                        again(outer(inner(g)))(X),
                        **same,
                    )
    torch.testing.assert_close(hessian(exact(energy))(X), hessian(dense_energy)(X))
    torch.testing.assert_close(
        hvp(energy, X, E), (hessian(dense_energy)(X) * E).sum((-1, -2))
    )


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_compressed_layouts_have_the_same_derivatives(layout):
    def make(x):
        return getattr(x, f"to_sparse_{layout}")()

    both = {
        "to_dense": (lambda s: s.to_dense(), masked),
        "values": (
            lambda s: s.values().cumsum(0),
            lambda x: (x[KEPT] if layout == "csr" else x.t()[KEPT.t()]).cumsum(0),
        ),
        "matmul": (lambda s: s @ D, lambda x: x @ D),
        "times": (
            lambda s: (s * 2).t().to_sparse().to_dense(),
            lambda x: 2 * masked(x).t(),
        ),
        "sum": (lambda s: s.sum(), lambda x: x.sum()),
    }
    for f, dense in both.values():
        assert torch.equal(exact(lambda f=f: f(make(X)))(), f(make(X)))
        check_words(along(exact(lambda x, f=f: f(make(x)))), along(dense))
    places = ("crow_indices", "col_indices")
    places = places if layout == "csr" else ("ccol_indices", "row_indices")

    wanted = {name: getattr(make(X), name)() for name in places}

    def seen(x):
        s = make(x)
        for name, index in wanted.items():
            assert torch.equal(getattr(s, name)(), index)
        assert s.layout == getattr(torch, f"sparse_{layout}")
        assert not s.is_sparse
        return s.sum()

    jvp(exact(seen), (X,), (E,))


def test_rows_may_be_stored_as_they_are():
    cube = randn(3, 2, 2)
    cube[1] = 0.0

    def f(x):
        s = x.to_sparse(1)
        assert (s.sparse_dim(), s.dense_dim(), s._nnz()) == (1, 2, 2)
        assert torch.sparse.sum(s, 2).to_dense().shape == (3, 2)
        return s.sin().to_dense() + torch.sparse.sum(s, 0)

    def dense(x):
        y = torch.where(cube != 0, x, 0.0)
        return y.sin() + y.sum(0)

    v = randn(3, 2, 2, seed=1)
    for t in (grad, jvp):
        got, expected = (
            nested(h, (jvp,), cube, v)
            if t is jvp
            else grad(lambda x, h=h: h(x).exp().sum())(cube)
            for h in (exact(f), dense)
        )
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_complex_numbers_are_mended_in_it():
    z = torch.complex(X, 2 * X)

    def f(t, g):
        return g((z * (1 + t * E + 1j * t * t)).exp() * KEPT).sum()

    for word in words(3):
        got, expected = (
            differentiated(exact(lambda t, g=g: f(t, g)), word)(ZERO).item()
            for g in (
                lambda y: torch.abs(y.to_sparse()).to_dense(),
                lambda y: torch.where(KEPT, torch.where(KEPT, y, 1.0).abs(), 0.0),
            )
        )
        # The same operations.
        assert got == pytest.approx(expected, rel=1e-12), word


def test_factors_may_be_integers_or_not_finite():
    n = torch.tensor([[2**40 + 1, 3, 1], [1, 1, 7]])
    whole = {"masked_grad": False}
    for f in (
        lambda s: s * n,
        lambda s: s / torch.tensor(3),
        lambda s: s / 3,
        lambda s: s * torch.tensor(torch.inf),
        lambda s: s / torch.tensor(0.0),
    ):
        y, slope = jvp(
            exact(lambda x, f=f: f(x.to_sparse()).to_dense(**whole)), (X,), (E,)
        )
        assert torch.equal(y, f(X.to_sparse()).to_dense())
        limit = torch.where(KEPT, f(E), 0.0)
        expected = torch.where(KEPT | f(E).isinf(), limit, f(E))
        torch.testing.assert_close(slope, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_number_is_stored_or_not(value):
    t = torch.tensor(value, dtype=torch.float64)
    slope = jvp(exact(lambda t: t.to_sparse().to_dense()), (t,), (t + 1,))[1]
    assert slope == (0 if value == 0 else value + 1)


def test_it_answers_as_torchs_does():
    def f(x):
        s = x.to_sparse()
        assert isinstance(s, SparseStandIn)
        assert s.is_sparse
        assert not s.is_sparse_csr
        assert s.layout == torch.sparse_coo
        assert (s.shape, s.size(), s.size(1), s.dim(), s.ndim) == (
            (2, 3),
            (2, 3),
            3,
            2,
            2,
        )
        assert (s.dtype, s.device) == (X.dtype, X.device)
        assert (s.numel(), len(s), s._nnz()) == (6, 2, 3)
        assert (s.sparse_dim(), s.dense_dim(), s.is_coalesced()) == (2, 0, True)
        assert s.is_floating_point()
        assert not torch.is_complex(s)
        assert torch.equal(s.indices(), X.to_sparse().indices())
        assert torch.equal(s._indices(), KEPT.nonzero().t())
        assert repr(s) == "SparseStandIn(shape=(2, 3), dtype=torch.float64, nnz=3)"
        return s.sum()

    jvp(exact(f), (X,), (E,))


def test_elsewhere_it_is_torchs_own():
    def f(x):
        s = x.to_sparse()
        assert isinstance(s, torch.Tensor)
        return s.to_dense().exp().sum()

    exact(f)(X)
    leaf = X.clone().requires_grad_()
    torch.autograd.grad(exact(f)(leaf), leaf)
    # Blocks are.
    exact(lambda: X[:, :2].to_sparse_bsr((1, 1)))()


def test_dual_numbers_of_autograd_are_differentiated():
    with forward_ad.dual_level():
        y = exact(energy)(forward_ad.make_dual(X, E))
        slope = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(slope, jvp(dense_energy, (X,), (E,))[1])


def test_a_constant_is_multiplied_in_forward_mode():
    f = exact(lambda y: torch.sparse.mm(OTHER.to_sparse(), y.sin()))
    slope = jvp(f, (D,), (D,))[1]
    torch.testing.assert_close(slope, OTHER @ (D.cos() * D))


def test_in_reverse_mode_the_result_may_be_sparse():
    y, pullback = vjp(exact(lambda x: x.sin().to_sparse()), X)
    assert y.layout == torch.sparse_coo
    torch.testing.assert_close(y.to_dense(), X.sin())
    torch.testing.assert_close(pullback(E.sparse_mask(y))[0], masked(E * X.cos()))


def test_in_reverse_mode_a_function_without_a_rule_is_torchs():
    f = exact(
        lambda x: torch.stack([x.to_sparse(), x.to_sparse()]).to_dense().exp().sum()
    )
    torch.testing.assert_close(grad(f)(X), masked(2 * X.exp()))
    with pytest.raises(DerivativeError, match=r"got `torch.stack`. .*`.to_dense\(\)`"):
        jvp(f, (X,), (E,))


REFUSED = {
    "no rule": (
        lambda s: s.index_select(0, torch.tensor([0])),
        "`torch.Tensor.index_select`",
    ),
    "an index": (lambda s: s[0], "__getitem__"),
    "a comparison": (lambda s: s == 0, "eq"),
    "in place": (lambda s: s.zero_(), "zero_"),
    "in place, of a dense one": (lambda s: E.clone().add_(s), "add_"),
    "out": (lambda s: torch.mul(s, 2, out=OTHER.to_sparse()), "mul"),
    "itself": (lambda s: s, "to_dense"),
    "in a tree": (lambda s: {"s": [s]}, "to_dense"),
    "a dense one is added": (lambda s: s + E, "add"),
    "a larger factor": (lambda s: s * E[None].expand(2, 2, 3), r"\(2, 2, 3\)"),
    "three dimensions": (lambda s: s @ randn(2, 3, 2), "dimensions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused_in_words(name):
    f, match = REFUSED[name]
    with pytest.raises(DerivativeError, match=match) as caught:
        jvp(exact(lambda x: f(x.to_sparse())), (X,), (E,))
    assert str(caught.value).startswith("`exact(f=...)` must ")


# Where the result does not show how many elements are stored.
SHAPED = [name for name in EVERY if not ("values" in name or "softmax" in name)]
SHAPED = [name for name in SHAPED if name not in {"by hand, stored", "mT, stored"}]


@pytest.mark.parametrize("name", SHAPED)
def test_a_lane_is_the_call_on_its_numbers(name):
    f = exact(lambda x: EVERY[name][0](x.to_sparse()))
    lanes = torch.stack([X, X.roll(1, 1) * 2, 0 * X])
    g = grad(lambda x: f(x).exp().sum())
    for h in (f, jacfwd(f), jacrev(f), lambda x: jvp(g, (x,), (E + x,))[1]):
        # The same operations, batched.
        torch.testing.assert_close(
            vmap(h)(lanes), torch.stack([h(x) for x in lanes]), rtol=1e-12, atol=1e-12
        )


def test_lanes_of_roots_and_of_lanes():
    def f(x):
        s = x.to_sparse()
        return (s.sqrt() + s**1.5).to_dense() + s.sin().sum()

    lanes = torch.stack([X.abs(), X.abs().roll(1, 1), X * 0]).expand(2, 3, 2, 3)
    for h in (exact(f), jacfwd(exact(f)), jacrev(exact(f))):
        got = vmap(vmap(h), in_dims=1, out_dims=1)(lanes.clone())
        # The same operations, batched.
        expected = torch.stack([torch.stack([h(x) for x in row]) for row in lanes])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


IN_LANES = {
    "values": lambda s: s.values(),
    "indices": lambda s: s.indices(),
    "nnz": lambda s: s._nnz(),
    "softmax": lambda s: torch.sparse.softmax(s, 1),
    "no rule": lambda s: torch.stack([s, s]),
    "itself": lambda s: s,
}


@pytest.mark.parametrize("name", IN_LANES)
def test_what_differs_from_lane_to_lane_is_refused(name):
    with pytest.raises(DerivativeError, match=r"to_dense\(\)"):
        vmap(exact(lambda x: IN_LANES[name](x.to_sparse())))(torch.stack([X, 2 * X]))


def test_what_torch_refuses_is_refused_in_its_words():
    with pytest.raises(RuntimeError) as theirs:
        X.to_sparse(3)
    with pytest.raises(RuntimeError) as ours:
        jvp(exact(lambda x: x.to_sparse(3).to_dense()), (X,), (E,))
    assert str(ours.value) == str(theirs.value)


def test_it_may_leave_the_scope():
    def f(x):
        with exact_ops():
            s = x.to_sparse()
        return (2 * s).to_dense()

    assert torch.equal(jacfwd(f)(X), 2 * jacfwd(masked)(X))


def test_what_is_not_stored_meets_no_infinity():
    d = D.clone()
    d[2, 0], d[1, 1] = torch.inf, torch.nan
    x = X.clone()
    x[:, 1:] = 0.0
    f = exact(lambda x: x.to_sparse() @ d)
    y, slope = jvp(f, (x,), (x,))
    assert torch.equal(y, x.to_sparse() @ d)
    assert slope.isfinite().all()
    assert grad(lambda x: f(x).sum())(x).isfinite().all()


@pytest.mark.compile
def test_the_compiler_takes_no_sparse_tensor_into_a_graph():
    def slope(x):
        return jvp(exact(energy), (x,), (E,))[1]

    whole = torch.compile(slope, fullgraph=True, backend="aot_eager")
    with pytest.raises(Unsupported, match="to_sparse"):
        whole(X)
    torch.compiler.reset()
    parts = torch.compile(slope, backend="aot_eager")
    torch.testing.assert_close(parts(X), slope(X))
