"""Products of many rows by oneDNN: the same numbers and derivatives, where it is taken."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional as F

from pureopt._tree import tree_leaves
from pureopt.derivatives import directional_derivatives, laplacian
from pureopt.derivatives._jets import _rows
from pureopt.derivatives._jets._rows import affine, times_rows
from tests.derivatives.kernel_case import assert_close, drawn, net

pytestmark = pytest.mark.skipif(
    not _rows._has_kernel(), reason="this build of torch has no oneDNN"
)


@pytest.fixture
def chosen(monkeypatch):
    """The kernel for all sizes and processors; what it was chosen for."""
    calls = []
    takes = _rows._takes_onednn

    def noted(x, weight):
        if takes(x, weight):
            calls.append(x.shape)
            return True
        return False

    monkeypatch.setattr(_rows, "_takes_onednn", noted)
    monkeypatch.setattr(_rows, "_WORTH", 0)
    monkeypatch.setattr(_rows, "_FEW", 0)
    monkeypatch.setattr(_rows, "_leaves_instructions_unused", lambda: True)
    return calls


SIZES = st.integers(1, 9)


@given(
    st.lists(SIZES, min_size=1, max_size=3),
    SIZES,
    SIZES,
    st.sampled_from(["plain", "transposed", "strided", "expanded", "negative"]),
    st.sampled_from(["plain", "turned", "gaps", "overlaps", "expanded", "real"]),
)
def test_the_product_is_that_of_linear(leading, m, n, layout, matrix):
    x, weight = drawn(*leading, m), drawn(n, m, seed=1)
    if layout == "transposed":
        x = drawn(m, *leading).movedim(0, -1)
    elif layout == "strided":
        x = drawn(*leading, 2 * m)[..., ::2]
    elif layout == "expanded":
        x = drawn(1, m).expand(*leading, m)
    elif layout == "negative":
        x = torch.complex(x, x).conj().imag
        assert x.is_neg()
    if matrix == "turned":
        weight = drawn(m, n, seed=1).mT
    elif matrix == "gaps":
        weight = drawn(2 * n, m + 3, seed=1)[::2, :m]
    elif matrix == "overlaps":
        weight = drawn(n + m - 1, seed=1).unfold(0, m, 1)
    elif matrix == "expanded":
        weight = drawn(n, 1, seed=1).expand(n, m)
    elif matrix == "real":
        weight = torch.complex(weight, weight).real
    assert_close(
        _rows._Product.apply(x, weight), F.linear(x.double(), weight.double()), m
    )


def f64(f):
    return lambda *args: f(*(a.double() for a in args))


WORDS = {
    "grad": lambda f: grad(f, (0, 1)),
    "jacfwd of grad": lambda f: jacfwd(grad(f, (0, 1)), (0, 1)),
    "jacrev of grad": lambda f: jacrev(grad(f, (0, 1)), (0, 1)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f, (0, 1)), (0, 1)),
    "jacfwd of jacfwd of grad": lambda f: jacfwd(jacfwd(grad(f))),
    "hessian": lambda f: hessian(f, (0, 1)),
    "vmap of grad over rows": lambda f: vmap(grad(f, (0, 1)), (1, None)),
    "vmap of grad over matrices": lambda f: vmap(grad(f, (0, 1)), (None, 1)),
    "vmap of grad over both": lambda f: vmap(grad(f, (0, 1)), (0, 1)),
    "vmap of vmap of jacfwd": lambda f: vmap(vmap(jacfwd(f, (0, 1)), (0, None)), (None, 0)),
}  # fmt: skip


# Not in forward mode, nor where each lane has a matrix of its own.
BY_ONEDNN = {"grad", "jacrev of grad", "vmap of grad over rows"}


@pytest.mark.parametrize("word", WORDS)
def test_every_word_of_derivatives_is_that_of_linear(chosen, word):
    def loss(product):
        return lambda x, w: (product(x, w).sin() * product(x.cos(), w)).sum()

    batch = {
        "vmap of grad over rows": ((3, 2, 4), (5, 4)),
        "vmap of grad over matrices": ((3, 4), (5, 2, 4)),
        "vmap of grad over both": ((2, 3, 4), (5, 2, 4)),
        "vmap of vmap of jacfwd": ((2, 3, 4), (2, 5, 4)),
    }
    left, right = batch.get(word, ((3, 4), (5, 4)))
    x, w = drawn(*left), drawn(*right, seed=1)
    got = WORDS[word](loss(times_rows))(x, w)
    assert bool(chosen) == (word in BY_ONEDNN)
    want = WORDS[word](f64(loss(F.linear)))(x, w)
    for g, v in zip(*map(tree_leaves, (got, want)), strict=True):
        # Four factors, each a sum over at most the 15 outputs.
        assert_close(g, v, 4 * 15)


@pytest.mark.parametrize("weight", ["constant", "learned", "in lanes"])
def test_nested_lanes_in_any_place(chosen, weight):
    x, w = drawn(3, 2, 4, 6), drawn(5, 6, seed=1)
    double = w.double()
    if weight == "learned":
        w.requires_grad_()
    if weight == "in lanes":
        w = drawn(5, 2, 6, seed=1)
        place = (1, 1)
        want = torch.einsum("aibk,oik->ibao", x.double(), w.double())
    else:
        place = (1, None)
        want = torch.einsum("aibk,ok->ibao", x.double(), double)
    inner = vmap(times_rows, (1, None))
    got = vmap(inner, place)(x, w)
    assert bool(chosen) == (weight != "in lanes")
    assert_close(got, want, 6)
    # Lanes of the outer map alone, inside the inner one.
    got = vmap(lambda x, y: vmap(lambda z: times_rows(x, w) + z)(y), (1, None))
    if weight != "in lanes":
        assert_close(got(x[:, :, 0], torch.zeros(7)), want[:, :1].expand(2, 7, 3, 5), 6)


@pytest.mark.parametrize("places", [(0,), (2,), (1, 0), (0, 2)])
def test_the_gradient_of_what_is_in_lanes(chosen, places):
    """The leaf is inside of the lanes, which do not know that it needs a gradient."""
    x, w = drawn(*(6, 4, 4, 4)[: 2 + len(places)]), drawn(5, 4, seed=1)

    def gradient(product, x, w):
        f = lambda x: product(x, w).sin()  # noqa: E731
        for place in places:
            f = vmap(f, place)
        x.requires_grad_()
        return torch.autograd.grad(f(x).sum(), x)[0]

    got = gradient(times_rows, x, w)
    assert chosen
    assert_close(got, gradient(F.linear, x.detach().double(), w.double()), 4 * 5)


def test_lanes_are_rows_of_one_product(monkeypatch, chosen):
    """Where nothing is differentiated; ``vmap`` itself would multiply lane by lane."""
    factors = []
    multiplied = _rows._multiplied
    monkeypatch.setattr(
        _rows, "_multiplied", lambda *args: factors.append(args) or multiplied(*args)
    )
    monkeypatch.setattr(_rows._Product, "apply", None)
    x, w = drawn(3, 2, 4, 6), drawn(5, 6, seed=1)
    vmap(vmap(lambda x: times_rows(x, w)))(x)
    ((rows, matrix),) = factors
    assert rows.data_ptr() == x.data_ptr()
    assert rows.shape == x.shape
    assert matrix is w


def test_a_batched_backward_keeps_its_graph(chosen):
    """It has lanes of another kind, in which an ``autograd.Function`` has no gradient."""
    x, w = drawn(6, 4), drawn(5, 4, seed=1)
    directions = drawn(3, 6, 5, seed=2)

    def second(product, *leaves, directions):
        leaves = [leaf.requires_grad_() for leaf in leaves]
        y = product(*leaves).sin()
        rows = torch.autograd.grad(
            y, leaves, directions, is_grads_batched=True, create_graph=True
        )
        return torch.autograd.grad(sum(r.square().sum() for r in rows), leaves)

    got = second(times_rows, x, w, directions=directions)
    assert chosen
    want = second(
        F.linear,
        x.detach().double(),
        w.detach().double(),
        directions=directions.double(),
    )
    for g, v in zip(got, want, strict=True):
        # Squares of sums over three directions of 30 outputs.
        assert_close(g, v, 2 * 3 * 30)


def test_lanes_of_vectors_are_rows(chosen):
    """``vmap`` over vectors, and its gradients, where the product of a lane has one row."""
    x, w = drawn(6, 4), drawn(5, 4, seed=1)
    f = vmap(grad(lambda x, w: times_rows(x, w).sin().sum(), (0, 1)), (0, None))
    want = vmap(grad(f64(lambda x, w: F.linear(x, w).sin().sum()), (0, 1)), (0, None))
    for g, v in zip(f(x, w), want(x, w), strict=True):
        assert_close(g, v, 4)
    assert (6, 4) in chosen


# What is added up for one number: three layers of at most six products each, for each of
# three coefficients; or for each of the 1 + 2 + ... + 5 pairs of those of order four.
LAPLACIAN = 3 * 6 * 3
ORDER_FOUR = 3 * 6 * 15


def layers(width=6, dtype=torch.float32):
    sizes = ((width, 3), (width, width), (width, width), (width,))
    return [drawn(*s, seed=i).to(dtype) / s[-1] ** 0.5 for i, s in enumerate(sizes)]


def test_laplacians_and_what_is_learned_from_them(chosen):
    x = drawn(5, 3)

    def loss(weights, x, trace):
        return trace(net(weights))(x).square().mean()

    def collapsed(f):
        return vmap(laplacian(f))

    def by_definition(f):
        return vmap(lambda x: hessian(f)(x).trace())

    doubles = layers(dtype=torch.float64)
    assert_close(
        collapsed(net(layers()))(x), by_definition(net(doubles))(x.double()), LAPLACIAN
    )
    got = grad(loss)(layers(), x, collapsed)
    assert chosen
    want = grad(loss)(doubles, x.double(), by_definition)
    for g, v in zip(got, want, strict=True):
        assert_close(g, v, 5 * LAPLACIAN)
    leaves = [w.requires_grad_() for w in layers()]
    got = torch.autograd.grad(loss(leaves, x, collapsed), leaves)
    for g, v in zip(got, want, strict=True):
        assert_close(g, v, 5 * LAPLACIAN)


def test_directional_derivatives_by_linear_and_by_matmul(chosen):
    x, v = drawn(5, 3), drawn(5, 3, seed=9)

    def multiplied(weights):
        return lambda x: torch.tanh((x @ weights[0].mT).sin() @ weights[1].mT).sum(-1)

    for make in (net, multiplied):
        chosen.clear()
        got = directional_derivatives(make(layers()), x, v, 4)
        assert chosen
        want = directional_derivatives(
            make(layers(dtype=torch.float64)), x.double(), v.double(), 4
        )
        for g, value in zip(got, want, strict=True):
            assert_close(g, value, ORDER_FOUR)
        # Point by point: a vector in each lane, a row of all.
        chosen.clear()
        f = make(layers())
        each = vmap(lambda x, v, f=f: directional_derivatives(f, x, v, 4))(x, v)
        assert (3,) in chosen
        for g, value in zip(each, want, strict=True):
            assert_close(g, value, ORDER_FOUR)


def test_what_is_saved_is_what_a_gradient_needs(chosen):
    x, w = drawn(3, 4), drawn(5, 4, seed=1)
    for of_x, of_w in ((True, False), (False, True), (True, True)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, to=saved: to.append(t.shape) or t, lambda t: t
        ):
            y = times_rows(x.requires_grad_(of_x), w.requires_grad_(of_w))
        assert set(saved) == {s for s, n in ((x.shape, of_w), (w.shape, of_x)) if n}
        chosen.clear()
        needed = [t for t, n in ((x, of_x), (w, of_w)) if n]
        got = torch.autograd.grad(y, needed, torch.ones_like(y))
        assert len(chosen) == len(needed)  # backward takes the kernel, too
        y = F.linear(x.double(), w.double())
        want = torch.autograd.grad(y, needed, torch.ones_like(y))
        for g, v in zip(got, want, strict=True):
            assert_close(g, v, 5)


def test_a_write_to_what_is_saved_raises(chosen):
    x, w = drawn(3, 4).requires_grad_(), drawn(5, 4, seed=1)
    y = times_rows(x, w)
    assert chosen
    w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_forward_mode_is_left_to_torch(chosen):
    """Where nested it is zero for an ``autograd.Function`` with a ``jvp``, in torch 2.13."""
    x, w = drawn(3, 4), drawn(5, 4, seed=1)
    _, tangent = jvp(lambda x: times_rows(x, w), (x,), (x,))
    assert not chosen
    assert_close(tangent, F.linear(x.double(), w.double()), 4)
    y, pull = vjp(lambda x: times_rows(x, w), x)
    assert chosen
    _, (tangent,) = jvp(pull, (y,), (y,))
    assert_close(tangent, y.double() @ w.double(), 5)


class Names(torch.utils._python_dispatch.TorchDispatchMode):
    """The kernels that were called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_lanes_are_rows_of_one_call():
    x, w, b = drawn(5, 3), drawn(4, 3, seed=1), drawn(4, seed=2)
    with Names() as seen:
        got = vmap(lambda x: affine(x, w, b))(x)
    assert seen.names == ["t", "addmm"]
    assert got.equal(F.linear(x, w, b))


def test_rows_with_gaps_between_lanes_are_those_of_one_product():
    x, w = drawn(5, 7, 3), drawn(4, 3, seed=1)
    with Names() as seen:
        got = vmap(lambda x: affine(x[2:4], w))(x)
    assert "mm" in seen.names
    assert "bmm" not in seen.names
    assert_close(got, F.linear(x[:, 2:4], w).double(), 3)


ROWS = {
    "lanes last": lambda f, x, w, b: vmap(lambda x: f(x, w, b), 1)(x.mT.contiguous()),
    "lanes of lanes": lambda f, x, w, b: vmap(vmap(lambda x: f(x, w, b)))(x[None]),
    "lanes of matrices": lambda f, x, w, b: vmap(lambda w: f(x, w, b))(
        w.expand(2, 4, 3)
    ),
    "lanes of all": lambda f, x, w, b: vmap(f)(x, w.expand(5, 4, 3), b.expand(5, 4)),
    "lanes of shifts": lambda f, x, w, b: vmap(f, (0, None, 0))(x, w, b.expand(5, 4)),
    "of a gradient": lambda f, x, w, b: vmap(grad(lambda x: f(x, w, b).sin().sum()))(x),
    "of another": lambda f, x, w, b: vmap(
        lambda x: grad(lambda w: f(x, w, b).sin().sum())(w)
    )(x),
    "forward": lambda f, x, w, b: vmap(jacfwd(lambda x: f(x, w, b).sin()))(x),
    "forward of another": lambda f, x, w, b: vmap(
        lambda x: jacfwd(lambda w: f(x, w, b).sin())(w)
    )(x),
    "twice": lambda f, x, w, b: vmap(hessian(lambda x: f(x, w, b).sin().sum()))(x),
    "inner matrices": lambda f, x, w, b: vmap(
        lambda x: vmap(lambda w: f(x, w, b))(w.expand(2, 4, 3))
    )(x),
    "beneath a gradient": lambda f, x, w, b: vmap(
        lambda x: grad(lambda s: (f(x, w, b) * s).sin().sum())(torch.ones(()))
    )(x),
    "beneath a slope": lambda f, x, w, b: vmap(
        lambda x: jvp(lambda w: f(x, w, b).sin() + f(x, b[:, None] * w, b), (w,), (w,))[
            1
        ]
    )(x),
    "beneath lanes": lambda f, x, w, b: vmap(
        lambda x: vmap(lambda s: f(x, w, b) * s)(torch.arange(3.0))
    )(x),
    "rows of rows": lambda f, x, w, b: vmap(lambda x: f(x, w, b))(
        x.expand(2, 3, 5, 3).transpose(0, 1)[:, :, 1:3]
    ),
    "shift for each row": lambda f, x, w, b: vmap(
        lambda x: f(x, w, torch.arange(8.0).view(2, 4))
    )(x[:, None].expand(5, 2, 3)),
    "shifts as many as lanes": lambda f, x, w, b: vmap(
        lambda x: f(x, w, torch.arange(20.0).view(5, 4))
    )(x),
    "a vector": lambda f, x, w, b: vmap(lambda x: f(x, w[0], b[0]))(x),
    "a wider shift": lambda f, x, w, b: vmap(lambda x: f(x, w, b.double()).float())(x),
    "no lanes": lambda f, x, w, b: f(x, w, b),
    "no shift": lambda f, x, w, b: vmap(lambda x: f(x, w))(x),
}


@pytest.mark.parametrize("way", ROWS)
def test_lanes_that_are_rows_change_nothing(way):
    x, w, b = drawn(5, 3), drawn(4, 3, seed=1), drawn(4, seed=2)
    assert_close(ROWS[way](affine, x, w, b), ROWS[way](F.linear, x, w, b).double(), 3)
