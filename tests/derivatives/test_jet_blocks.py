"""Laplacians whose directions are carried block after block: the same numbers and work."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F

from pureopt.derivatives import bilaplacian, forward_laplacian, laplacian
from pureopt.derivatives._jets import _directions
from pureopt.derivatives._jets._directions import sum_of_products
from pureopt.derivatives._jets._later import Extent, Later, found
from tests.derivatives.row import randn

EPS = torch.finfo(torch.float64).eps
POINTS, INPUTS = 3, 7


@pytest.fixture(params=[1, 6, 40])
def blocks(request, monkeypatch):
    """Blocks of at most about so many numbers: of one direction, of some."""
    monkeypatch.setattr(_directions, "_NUMBERS", request.param)


def weight(n, m, seed=0):
    """Numbers of size one without a pattern, drawn from nothing."""
    return (torch.arange(1.0, n * m + 1, dtype=torch.float64) ** 2 + seed).cos().view(
        n, m
    ) / m**0.5


def plain(x):
    for n, m in ((8, INPUTS), (5, 8), (9, 5)):
        x = F.linear(x, weight(n, m), torch.ones(n, dtype=x.dtype)).tanh()
    return x.sum()


def residual(x):
    h = F.linear(x, weight(8, INPUTS))
    for seed in (1, 2):
        h = h + F.linear(torch.tanh(h), weight(8, 8, seed)).sigmoid() - h.sin()
    return h.exp().sum()


def heads(x):
    h = F.linear(torch.sin(F.linear(x, weight(6, INPUTS))), weight(8, 6))
    return sum(F.gelu(h * s).sum() for s in (0.5, 1.0, 2.0)) + h.softmax(0)[0]


def normalized(x):
    h = F.layer_norm(torch.tanh(x @ weight(INPUTS, 8)), (8,))
    h = F.silu(weight(4, 8) @ h).reshape(2, 2)
    return (h @ h.mT).logsumexp(0).sum() + F.relu(x).sum() * x.prod()


def in_place(x):
    h = F.linear(x, weight(8, INPUTS))
    y = torch.tanh(h)
    h = h.clone()
    h.mul_(2).add_(y)
    return torch.tanh(F.linear(h, weight(3, 8))).sum()


def bound(want, terms=200):
    """Sums of so many products of numbers of size one in each of some ten operations."""
    return 10 * terms * EPS * max(1.0, float(want.detach().abs().max()))


def assert_close(got, want):
    assert got.shape == want.shape
    assert float((got - want).detach().abs().max()) <= bound(want)


def chain(x):
    h = F.linear(x, weight(8, INPUTS))
    for f in (torch.sin, torch.tanh, torch.cos, torch.sigmoid) * 2:
        h = f(h)
    return h.sum()


def norms(x):
    h = F.linear(x, weight(8, INPUTS))
    for seed in (1, 2):
        h = h + F.linear(F.layer_norm(h, (8,)), weight(8, 8, seed)).tanh()
        h = h * h.sigmoid()
    return h.exp().sum()


NETS = [plain, residual, heads, normalized, in_place, chain, norms]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_laplacian_is_the_trace_of_the_hessian(net, chunk_size):
    x = randn(POINTS, INPUTS, seed=3)
    want = vmap(lambda x: hessian(net)(x).trace())(x)
    assert_close(vmap(laplacian(net, chunk_size=chunk_size))(x), want)
    assert_close(laplacian(net, chunk_size=chunk_size)(x[0]), want[0])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("net", NETS)
def test_the_jacobian_is_found_after_it(net):
    x = randn(POINTS, INPUTS, seed=3)
    _, jacobian, lap = vmap(forward_laplacian(net))(x)
    assert_close(jacobian, vmap(jacrev(net))(x))
    assert_close(lap, vmap(lambda x: hessian(net)(x).trace())(x))


@pytest.mark.usefixtures("blocks")
def test_derivatives_of_it_are_those_of_the_trace():
    x, v = randn(POINTS, INPUTS, seed=3), randn(POINTS, INPUTS, seed=4)

    def loss(operator):
        def total(x, scale):
            f = lambda x: residual(scale * x)  # noqa: E731
            return vmap(operator(f))(x).square().sum()

        return total

    ours = loss(laplacian)
    trace = loss(lambda f: lambda x: hessian(f)(x).trace())
    scale = torch.tensor(0.7, dtype=torch.float64)
    for got, want in zip(
        grad(ours, argnums=(0, 1))(x, scale),
        grad(trace, argnums=(0, 1))(x, scale),
        strict=True,
    ):
        assert_close(got, want)
    tangents = (v, torch.ones_like(scale))
    assert_close(
        jvp(ours, (x, scale), tangents)[1], jvp(trace, (x, scale), tangents)[1]
    )


@pytest.mark.usefixtures("blocks")
def test_sums_of_the_fourth_order_in_blocks():
    x = randn(3, seed=3)
    trace = lambda f: lambda x: hessian(f)(x).trace()  # noqa: E731
    assert_close(bilaplacian(gauss)(x), trace(trace(gauss))(x))


def gauss(x):
    return (x @ weight(3, 5)).sin().exp().sum()


PRODUCTS = {
    getattr(torch.ops.aten, n).default for n in ("mm", "addmm", "bmm", "baddbmm")
}


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    """The products and how many multiplications they take; how much memory there was."""

    def __init__(self):
        super().__init__()
        self.products, self.multiplications, self.elementwise = 0, 0, 0
        self.largest, self.peak, self.alive = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func == torch.ops.aten.mul.Tensor:
            self.elementwise += out.numel()
        if func in PRODUCTS:
            a, b = args[-2:]
            self.products += 1
            self.multiplications += a.shape[-2] * b.numel()
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
            memory = out.untyped_storage()
            if memory.data_ptr() not in self.alive:
                self.alive[memory.data_ptr()] = out.numel()
                weakref.finalize(memory, self.alive.pop, memory.data_ptr())
            self.peak = max(self.peak, sum(self.alive.values()))
        return out


def counted(net, x):
    with Counted() as count:
        vmap(laplacian(net))(x)
    return count


def deep(x):
    for m in (len(x), 9, 9, 9, 9):
        x = torch.tanh(F.linear(x, weight(9, m)))
    return x.sum()


@pytest.mark.parametrize("net", [plain, residual, heads, in_place, chain, norms])
def test_no_product_is_taken_twice(net, monkeypatch):
    x = randn(POINTS, INPUTS, seed=3)
    whole = counted(net, x)
    monkeypatch.setattr(_directions, "_NUMBERS", 20)
    assert counted(net, x).multiplications == whole.multiplications


@pytest.mark.parametrize("net", [chain, residual])
def test_what_is_not_kept_is_made_once_more_at_most(net, monkeypatch):
    x = randn(POINTS, INPUTS, seed=3)
    whole = counted(net, x)
    monkeypatch.setattr(_directions, "_NUMBERS", 20)
    assert counted(net, x).elementwise <= 1.2 * whole.elementwise


def test_no_block_is_larger_than_was_asked_for(monkeypatch):
    x = randn(32, INPUTS, seed=3)
    assert counted(deep, x).largest == INPUTS * 32 * 9
    monkeypatch.setattr(_directions, "_NUMBERS", 2 * 32 * 9)
    assert counted(deep, x).largest == 2 * 32 * 9


def test_the_memory_is_that_of_two_layers(monkeypatch):
    points, inputs = 16, 60
    x = randn(points, inputs, seed=3)
    layer = inputs * points * 9
    assert counted(deep, x).peak > 3 * layer
    monkeypatch.setattr(_directions, "_NUMBERS", points * 9)
    # Beside them what points have one of: blocks, values, the weights and the basis.
    few = 30 * points * 9 + 2 * inputs**2
    assert 2 * layer < counted(deep, x).peak < 2 * layer + few


def test_directions_that_all_points_share_are_one_block(monkeypatch):
    def one(x):
        return torch.tanh(F.linear(x, weight(9, INPUTS))).sum()

    x = randn(32, INPUTS, seed=3)
    monkeypatch.setattr(_directions, "_NUMBERS", INPUTS * 9)
    assert counted(one, x).products == 2  # of the value, of the directions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_blocks_are_for_double_precision_on_the_cpu(dtype, device, monkeypatch):
    seen = []
    at = Later.at
    monkeypatch.setattr(_directions, "_NUMBERS", 6)
    monkeypatch.setattr(
        Later, "at", lambda self, part: (seen.append(part), at(self, part))[1]
    )
    model = torch.nn.Sequential(
        torch.nn.Linear(INPUTS, 8),
        torch.nn.Tanh(),
        torch.nn.Linear(8, 8),
        torch.nn.Tanh(),
    ).to(device, dtype)
    x = torch.ones(INPUTS, dtype=dtype, device=device)
    y = laplacian(lambda x: functional_call(model, {}, (x,)).sum())(x)
    assert y.device.type == device
    assert bool(seen) == (dtype == torch.float64 and device == "cpu")


def test_what_is_whole_in_lanes_has_no_blocks(monkeypatch):
    """Its parts have gaps, which take a copy to multiply and zeros to differentiate."""
    monkeypatch.setattr(_directions, "_NUMBERS", 6)
    seen = []

    def look(x):
        made = Later(lambda _: x, Extent(4, 24))
        seen.append(_directions._size(made))
        made.get()
        seen.extend(_directions._size(c) for c in (made, x, x[:2]))
        return x

    vmap(look)(randn(2, 4, 3))
    assert seen == [Extent(4, 24), None, None, Extent(2, 12)]
    assert _directions._size(randn(4, 30)) == Extent(4, 120)


def later(whole, made, kept=True):
    def make(part):
        made.append(part)
        return whole if part is None else whole[part]

    return Later(make, Extent(len(whole), whole.numel()), kept=kept)


CUTS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 7)).filter(lambda c: c[0] < c[1])
)


@given(CUTS, st.booleans(), st.booleans())
def test_a_coefficient_is_the_same_in_any_parts_in_any_order(cuts, kept, whole_between):
    whole, made = randn(7, 2), []
    c = later(whole, made, kept)
    for start, stop in cuts:
        assert found(c, slice(start, stop)).equal(whole[start:stop])
        if whole_between:
            assert c.get().equal(whole)
            assert c.at(slice(start, stop)).equal(whole[start:stop])
    assert c.get().equal(whole)
    assert c.get() is c.get()


def test_what_is_kept_is_made_once():
    whole, made = randn(7, 2), []
    c = later(whole, made)
    for part in (slice(0, 3), slice(3, 7), slice(0, 7), slice(2, 5), slice(4, 5)):
        assert c.at(part).equal(whole[part])
    assert c.get().equal(whole)
    assert made == [slice(0, 3), slice(3, 7)]


def test_zero_stays_zero():
    none = Later(lambda _: None, Extent(7, 1 << 30))
    assert none.at(slice(0, 2)) is None
    assert sum_of_products(none, none) is None
    assert none.get() is None
    assert none.at(slice(0, 2)) is None


@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 60))
def test_parts_cover_all_directions_once_and_divide_each_other(directions, size, block):
    whole = torch.ones(directions, size, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_directions, "_NUMBERS", block)
        c = later(whole, [])
        parts = _directions._parts(c, c)
        coarse = _directions._parts(*[later(whole[:, : size // 2 + 1], [])] * 2)
    assert (parts == [None]) == (whole.numel() <= 2 * block)
    if parts == [None]:
        return
    assert [p.start for p in parts] == [0, *(p.stop for p in parts[:-1])]
    assert parts[-1].stop == directions
    lengths = [p.stop - p.start for p in parts]
    assert max(lengths) <= max(1, math.ceil(block / size))
    if coarse != [None]:
        assert {p.stop for p in coarse} <= {p.stop for p in parts}


def test_a_number_has_a_jacobian():
    x = torch.tensor(0.7, dtype=torch.float64)
    value, slope, lap = forward_laplacian(torch.sin)(x)
    # One evaluation each.
    torch.testing.assert_close(value, x.sin(), rtol=1e-15, atol=0)
    torch.testing.assert_close(slope, x.cos(), rtol=1e-15, atol=0)
    torch.testing.assert_close(lap, -x.sin(), rtol=1e-15, atol=0)


def test_forward_mode_of_a_laplacian_keeps_float32():
    x = randn(POINTS, INPUTS, dtype=torch.float32)
    cubes = lambda x: (x**3).sum()  # noqa: E731
    got = vmap(jacfwd(laplacian(cubes)))(x)
    assert got.dtype == torch.float32
    assert got.equal(torch.full_like(x, 6.0))
